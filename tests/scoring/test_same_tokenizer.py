"""Both models must read the same tokens: differences that change ids are found and named."""

import copy
import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from frame_jax.errors import UserError
from frame_jax.scoring.tokenizers import (
    read_tokenizer,
    require_rows,
    require_same_tokenizer,
    tokenizer_differences,
)


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<bos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog"] * 5, trainer)
    return json.loads(tokenizer.to_str())


def write(folder, tokenizer):
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


def test_a_tokenizer_is_itself_however_it_is_written(tokenizer, tmp_path):
    other = copy.deepcopy(tokenizer)
    other["model"]["merges"] = [" ".join(pair) for pair in other["model"]["merges"]]
    other["model"]["vocab"] = dict(reversed(other["model"]["vocab"].items()))
    # Absent from older files.
    del other["model"]["ignore_merges"], other["pre_tokenizer"]["use_regex"]
    other["truncation"] = {
        **{"direction": "Right", "max_length": 512, "strategy": "LongestFirst", "stride": 0}
    }
    other["post_processor"] = json.loads(
        processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", 0)]).__getstate__()
    )
    other["added_tokens"][0]["special"] = False  # the run makes its BOS special
    (tmp_path / "run.json").write_text(json.dumps(tokenizer))
    require_same_tokenizer(write(tmp_path, other), tmp_path / "run.json", "key")
    theirs, ours = (read_tokenizer(tmp_path / f"{name}.json") for name in ("tokenizer", "run"))
    assert list(tokenizer_differences(theirs, ours)) == []


def swap_two_ids(other):
    vocab = other["model"]["vocab"]
    a, b = list(vocab)[50:52]
    vocab[a], vocab[b] = vocab[b], vocab[a]


def add_a_token(other):
    other["added_tokens"].append(added(289, "<new>"))


def added(index, content, **rules):
    off = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return {"id": index, "content": content, **off, **rules}


def find_a_word_in_text(other):
    other["added_tokens"].append(added(1, "!"))


def lose_a_merge(other):
    other["model"]["merges"].pop()


def other_spaces(other):
    other["pre_tokenizer"]["add_prefix_space"] = True


def other_normalizer(other):
    other["normalizer"] = {"type": "NFKC"}


def other_model(other):
    other["model"] = {"type": "WordLevel", "vocab": other["model"]["vocab"], "unk_token": "!"}


def byte_fallback(other):
    other["model"]["byte_fallback"] = True


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (swap_two_ids, r"2 tokens have other ids \('.+' is \d+, not \d+"),
        (add_a_token, r"it has 290 tokens, the run's 289; only it has 1 tokens \('<new>'\)"),
        (find_a_word_in_text, r"added tokens are found in text by other rules \('!'\)"),
        (lose_a_merge, r"merges, the run's \d+, and only the first \d+ agree"),
        (other_spaces, "its pre_tokenizer is not the same"),
        (other_normalizer, "its normalizer is not the same"),
        (other_model, "it is WordLevel, the run's is BPE"),
        (byte_fallback, "its model differs in byte_fallback"),
    ],
)
def test_what_changes_ids_is_refused_in_words(tokenizer, tmp_path, change, words):
    other = copy.deepcopy(tokenizer)
    change(other)
    write(tmp_path, other)
    run = tmp_path / "run.json"
    run.write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match=words) as error:
        require_same_tokenizer(tmp_path, run, "reference.weak.checkpoint")
    assert "reference.weak.checkpoint" in str(error.value)


def test_a_special_token_of_one_alone_changes_no_id(tokenizer, tmp_path):
    """Such as one for padding, which no text contains."""
    run, other = tmp_path / "run.json", copy.deepcopy(tokenizer)
    other["added_tokens"].append(added(289, "<pad>", special=True))
    for theirs, ours in ((tokenizer, other), (other, tokenizer)):
        run.write_text(json.dumps(ours))
        require_same_tokenizer(write(tmp_path, theirs), run, "key", bos_id=0)
    run.write_text(json.dumps(other))
    with pytest.raises(UserError, match=r"only the run has 1 tokens \('<pad>'\)"):
        require_same_tokenizer(write(tmp_path, tokenizer), run, "key", bos_id=289)


def test_a_model_needs_a_row_for_every_token_that_a_document_may_hold(tokenizer, tmp_path):
    other = copy.deepcopy(tokenizer)
    require_rows(289, other, 0, "key")
    with pytest.raises(UserError, match=r"key: the model knows 288 tokens, .* 1 others"):
        require_rows(288, other, 0, "key")
    other["added_tokens"].append(added(289, "<pad>", special=True))
    require_rows(289, other, 0, "key")
    with pytest.raises(UserError, match=r"\('<pad>' is 289\)"):
        require_rows(289, other, 289, "key")
    other["added_tokens"][-1]["special"] = False  # text that spells it becomes it
    with pytest.raises(UserError, match=r"\('<pad>' is 289\).*special: true"):
        require_rows(289, other, 0, "key")


def test_a_damaged_tokenizer_is_named(tokenizer, tmp_path):
    (tmp_path / "run.json").write_text(json.dumps(tokenizer))
    (write(tmp_path, tokenizer) / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"/tokenizer.json is damaged"):
        require_same_tokenizer(tmp_path, tmp_path / "run.json", "reference.weak.checkpoint")


def test_a_checkpoint_without_tokenizer_json_is_refused(tokenizer, tmp_path):
    with pytest.raises(UserError, match=r"has no tokenizer.json"):
        require_same_tokenizer(tmp_path, tmp_path / "run.json", "reference.strong.checkpoint")
