"""The tokenizer: exact round trips, special tokens, and given files."""

import dataclasses
import json
import re
import time
import unicodedata

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers

from frame_jax.config.corpus import SourceConfig, TokenizerConfig
from frame_jax.config.training import ReferenceConfig, ReferenceModelConfig
from frame_jax.corpus.tokenizer import load_tokenizer, make_tokenizer
from frame_jax.corpus.tokenizer_training import (
    BOS,
    EOS,
    SHORT_WORDS,
    WORD_CHARACTERS,
    WORDS,
    cutting,
    prepare_tokenizer,
    split_text,
    train_tokenizer,
)
from frame_jax.errors import UserError
from frame_jax.run.directory import RunDirectory, read_json, remove
from frame_jax.scoring.tokenizers import read_tokenizer, tokenizer_differences
from tests.corpus.tokenizer_kinds import KINDS

TEXTS = [
    "The quick brown fox — it's 12345 years old, isn't it?\r\n\r\n  Yes.\t\n",
    "数据的顺序会影响模型的损失。然后,我们训练四个阶段!",
    "def f(x):\n    if x:\n\treturn {'a': [1, 2]}  # comment\n\n\n",
    "emoji 👩‍👩‍👧 नमस्ते ｆｕｌｌ e\u0301 \u00e9 \u200b\ufeff\x00\x1c\x85\u2028 end",
    f"literally {BOS} and {EOS}{EOS}",
]
any_text = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.fixture(scope="module")
def trained():
    backend = train_tokenizer(TEXTS * 3, 400)
    return make_tokenizer(backend, backend.token_to_id(BOS), backend.token_to_id(EOS))


@pytest.mark.parametrize("text", TEXTS)
def test_english_chinese_and_code_come_back_exactly(trained, text):
    [ids] = trained.encode_batch([text])
    assert trained.decode(ids) == text
    assert not {trained.bos_id, trained.eos_id} & set(ids)
    assert max(ids) < trained.vocab_size <= 400


@settings(max_examples=300)
@given(st.lists(any_text, max_size=4))
def test_any_unicode_text_comes_back_exactly(trained, texts):
    assert [trained.decode(ids) for ids in trained.encode_batch(texts)] == texts


@given(any_text, any_text)
def test_spelled_out_special_tokens_are_ordinary_text(trained, before, after):
    text = before + BOS + EOS + after
    [ids] = trained.encode_batch([text])
    assert not {trained.bos_id, trained.eos_id} & set(ids) and trained.decode(ids) == text


def test_training_is_deterministic_and_keeps_the_special_tokens_apart():
    texts = [text + str(i) for i in range(50) for text in TEXTS]
    one, two = train_tokenizer(texts, 350), train_tokenizer(iter(texts), 350)
    assert one.to_str() == two.to_str()
    assert one.get_vocab_size() == 350
    assert (one.token_to_id(BOS), one.token_to_id(EOS)) == (0, 1)
    # All bytes are there, so nothing is ever unknown.
    assert train_tokenizer(["a"], 4096).get_vocab_size() == 258


@settings(max_examples=200)
@given(st.text("ab \n\t中\u2028"), st.integers(1, 5))
def test_pieces_of_a_text_join_and_start_lines(text, characters):
    pieces = list(split_text(text, characters))
    assert "".join(pieces) == text
    assert all(characters <= len(piece) <= 2 * characters for piece in pieces[:-1])
    assert len(pieces[-1]) <= 2 * characters


def test_long_texts_come_back_exactly(trained):
    text = "".join(TEXTS) * 3000 + "x" * 300_000
    [ids] = trained.encode_arrays([text])
    assert ids.dtype == np.uint32 and trained.decode(ids) == text
    assert ids.tolist() == trained.backend.encode(text, add_special_tokens=False).ids


def save(tmp_path, backend):
    path = tmp_path / "given.json"
    backend.save(str(path))
    return str(path)


def byte_level(special=(), normalizer=None):
    backend = train_tokenizer(TEXTS, 300)
    data = json.loads(backend.to_str())
    renamed = dict(zip((BOS, EOS), special, strict=False))
    tokens = [t for t in data["added_tokens"] if t["content"] in renamed]
    # As files in the wild have it: not all of them call their special tokens special.
    data["added_tokens"] = [
        t | {"content": renamed[t["content"]], "special": False} for t in tokens
    ]
    vocabulary = data["model"]["vocab"]
    for name in (BOS, EOS):
        vocabulary[renamed.get(name, f"unused{name}")] = vocabulary.pop(name)
    backend = tokenizers.Tokenizer.from_str(json.dumps(data))
    if normalizer:
        backend.normalizer = normalizer
    return backend


def prepare(tmp_path, make_config, write_jsonl, backend, text=TEXTS[0], **names):
    path = write_jsonl("a.jsonl", [{"id": "first", "text": text}])
    config = make_config(
        SourceConfig(kind="jsonl", path=str(path)),
        tokenizer=TokenizerConfig(path=save(tmp_path, backend), **names),
    )
    directory = RunDirectory(config.run_directory)
    prepare_tokenizer(config, directory)
    special = read_json(directory.tokenizer.with_name("special_tokens.json"))
    tokenizer = load_tokenizer(directory)
    keys = ("bos_id", "eos_id", "vocab_size")
    assert [special[key] for key in keys] == [getattr(tokenizer, key) for key in keys]
    return tokenizer


@pytest.mark.parametrize(
    ("special", "names", "wanted"),
    [
        (("<s>", "</s>"), {}, ("<s>", "</s>")),
        (("<|endoftext|>",), {}, ("<|endoftext|>", "<|endoftext|>")),
        (("<one>", "<two>"), {"bos_token": "<one>", "eos_token": "<two>"}, ("<one>", "<two>")),
        (("<one>", "<two>"), {"eos_token": "<two>"}, ("<two>", "<two>")),
    ],
)
def test_a_given_tokenizer_keeps_its_ids_and_finds_its_special_tokens(
    tmp_path, make_config, write_jsonl, special, names, wanted
):
    backend = byte_level(special)
    backend.enable_truncation(4)
    backend.enable_padding(length=64)
    ids = tuple(backend.token_to_id(name) for name in wanted)
    text = f"a long text with {special[0]} spelled out " * 5
    tokenizer = prepare(tmp_path, make_config, write_jsonl, backend, text, **names)
    assert (tokenizer.bos_id, tokenizer.eos_id) == ids
    [encoded] = tokenizer.encode_batch([text])
    assert tokenizer.decode(encoded) == text and not set(ids) & set(encoded)


def test_given_tokenizers_that_cannot_be_used_are_refused(tmp_path, make_config, write_jsonl):
    def refused(backend, message, text=TEXTS[0], **names):
        with pytest.raises(UserError, match=message):
            prepare(tmp_path, make_config, write_jsonl, backend, text, **names)

    refused(byte_level(("<one>",)), r"none of the usual tokens.*tokenizer\.bos_token")
    refused(byte_level(("<s>",)), r"has no token '<no>'", bos_token="<no>")
    lossy = byte_level(("<s>",), normalizers.Lowercase())
    refused(lossy, r"not lossless: of document 'first'.*'The quick.*'the quick")
    words = tokenizers.Tokenizer(models.WordLevel({"[UNK]": 0, "<s>": 1, "The": 2}, "[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    refused(words, "not lossless")
    for content, message in (("{}", "not a tokenizer.json"), (None, "there is no file")):
        path = tmp_path / "broken.json"
        path.unlink(missing_ok=True)
        if content:
            path.write_text(content)
        config = make_config(
            SourceConfig(kind="jsonl", path=str(tmp_path / "data" / "a.jsonl")),
            tokenizer=TokenizerConfig(path=str(path)),
        )
        with pytest.raises(UserError, match=message):
            prepare_tokenizer(config, RunDirectory(tmp_path / "broken"))


def test_composing_characters_is_no_loss(tmp_path, make_config, write_jsonl):
    backend = byte_level(("<s>", "</s>"), normalizers.NFC())
    tokenizer = prepare(tmp_path, make_config, write_jsonl, backend, "e\u0301t\u00e9")
    decoded = tokenizer.decode(tokenizer.encode_batch(["e\u0301t\u00e9"])[0])
    assert decoded == unicodedata.normalize("NFC", decoded) == "\u00e9t\u00e9"


def test_tokenizers_that_prepend_a_blank_encode_long_texts(tmp_path, make_config, write_jsonl):
    backend = byte_level(("<s>", "</s>"))
    backend.normalizer = normalizers.Prepend(" ")
    backend.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    text = "many lines\n" * 20_000
    tokenizer = prepare(tmp_path, make_config, write_jsonl, backend, text)
    assert tokenizer.decode(tokenizer.encode_batch([text])[0]) == text


LOSES = "exactly one blank loses it"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["metaspace first", "metaspace always", "prepended", "gpt2"])
def test_a_leading_blank_refuses_no_corpus_and_its_loss_is_said(
    tmp_path, make_config, write_jsonl, kind
):
    loses = kind in ("metaspace first", "metaspace always")
    for number, text in enumerate((" one", "  two", "   three", "four", " ", "")):
        place = tmp_path / str(number)
        place.mkdir()
        tokenizer = prepare(place, make_config, write_jsonl, KINDS[kind](), text or "five")
        [ids] = tokenizer.encode_batch([text])
        back = text[1:] if loses and text in (" one", " ") else text
        assert tokenizer.decode(ids) == back
        said = read_json(RunDirectory(tmp_path / "run").tokenizer.with_name("special_tokens.json"))
        remove(tmp_path / "run")
        # Said of the tokenizer, whatever documents the sample holds.
        assert any(LOSES in note for note in said["notes"]) == loses


def test_more_than_a_leading_blank_lost_is_still_refused(tmp_path, make_config, write_jsonl):
    backend = KINDS["metaspace first"]()
    backend.decoder = decoders.Sequence([backend.decoder, decoders.Strip(" ", 1, 0)])
    with pytest.raises(UserError, match="not lossless"):
        prepare(tmp_path, make_config, write_jsonl, backend, "   three")


def changed(backend, change):
    data = json.loads(backend.to_str())
    change(data)
    return make_tokenizer(tokenizers.Tokenizer.from_str(json.dumps(data)), 1, 2)


def no_byte(data):
    vocabulary = data["model"]["vocab"]
    vocabulary["unused"] = vocabulary.pop("æ")
    kept = [m for m in data["model"]["merges"] if "æ" not in "".join(m)]
    data["model"]["merges"] = kept


def one_id(data):
    data["model"]["vocab"]["b"] = data["model"]["vocab"]["a"]


def taken_id(data):
    data["model"]["vocab"]["b"] = len(data["model"]["vocab"])
    add(data, "<new>")


def add(data, content, **rules):
    names = ("single_word", "lstrip", "rstrip", "normalized", "special")
    token = {"id": len(data["model"]["vocab"]), "content": content}
    data["added_tokens"].append(token | dict.fromkeys(names, False) | rules)


def put(data, *keys, value):
    *path, last = keys
    for key in path:
        data = data[key]
    data[last] = value


REMOVED = {"type": "Split", "pattern": {"String": " "}, "behavior": "Removed", "invert": False}
BLANKS = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": True}
TWICE = {
    "type": "TemplateProcessing",
    "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 2,
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
    "special_tokens": {},
}
# What each changes in a byte-level tokenizer's file, and a text that it loses.
CAUSES_OF_LOSS = {
    "normalizer": (lambda d: put(d, "normalizer", value={"type": "Lowercase"}), "Text"),
    "a cut away": (lambda d: put(d, "pre_tokenizer", "pretokenizers", 0, value=REMOVED), "a b"),
    "no bytes": (lambda d: put(d, "pre_tokenizer", "pretokenizers", 1, value=BLANKS), "数 b"),
    "a blank in front": (
        lambda d: put(d, "pre_tokenizer", "pretokenizers", 1, "add_prefix_space", value=True),
        "text",
    ),
    "no cutting": (lambda d: put(d, "pre_tokenizer", value=None), "数"),
    "a byte is no token": (no_byte, "数"),
    "an id of two": (one_id, "ab"),
    "an id that an added token takes": (taken_id, "b"),
    "prefix": (lambda d: d["model"].update(continuing_subword_prefix="##", merges=[]), "xyz"),
    "suffix": (lambda d: put(d, "model", "end_of_word_suffix", value="</w>"), "xyz"),
    "decoder": (
        lambda d: put(d, "decoder", value={"type": "WordPiece", "prefix": "", "cleanup": True}),
        "a b",
    ),
    "no decoder": (lambda d: put(d, "decoder", value=None), "a b"),
    "twice": (lambda d: put(d, "post_processor", value=TWICE), "a"),
    "blanks before": (lambda d: add(d, "<x>", lstrip=True), "a  <x>"),
    "blanks after": (lambda d: add(d, "<x>", rstrip=True), "<x>  a"),
    "spelled in bytes": (lambda d: add(d, "é"), "é"),
}


@pytest.mark.parametrize("cause", CAUSES_OF_LOSS)
def test_what_may_lose_text_is_decoded_to_see(cause):
    change, text = CAUSES_OF_LOSS[cause]
    backend = train_tokenizer(TEXTS, 300)
    assert make_tokenizer(backend, 1, 2).lossless
    tokenizer = changed(backend, change)
    assert not tokenizer.lossless
    [loss] = tokenizer.losses([text], tokenizer.encode_arrays([text]))
    assert loss is not None


LOSSLESS = ("gpt2", "llama3", "o200k", "digits from the right", "no cutting")
AFTER = {
    "type": "Sequence",
    "processors": [
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        TWICE | {"single": [TWICE["single"][0]]},
    ],
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    def change(data):
        if request.param in LOSSLESS:
            add(data, "<x>", lstrip=True, rstrip=True, special=True)
            add(data, "<tool>", normalized=True)
            add(data, "  ", single_word=True)
            put(data, "post_processor", value=AFTER)

    return request.param, changed(KINDS[request.param](), change)


@settings(max_examples=60)
@given(text=st.lists(any_text | st.sampled_from(["<x>", "  ", "<tool>", "<s>"])).map("".join))
def test_only_what_spells_every_text_is_called_lossless(kind, text):
    name, tokenizer = kind
    assert tokenizer.lossless == (name in LOSSLESS)
    [ids] = tokenizer.encode_arrays([text])
    if tokenizer.lossless:
        assert tokenizer.decode(ids) == text and tokenizer.losses([text], [ids]) == [None]


def test_ids_of_bos_and_eos_are_seen_without_decoding(trained):
    assert trained.lossless
    for special in (trained.bos_id, trained.eos_id):
        [loss] = trained.losses(["text"], [np.array([300, special], np.uint32)])
        assert "BOS or EOS" in loss


def notes_of(tmp_path):
    return read_json(RunDirectory(tmp_path / "run").tokenizer.with_name("special_tokens.json"))[
        "notes"
    ]


def test_which_start_was_taken_is_said(tmp_path, make_config, write_jsonl):
    prepare(tmp_path, make_config, write_jsonl, byte_level(("<s>", "</s>")))
    assert notes_of(tmp_path) == [
        "documents start with '<s>' (id 0), found by its usual name, and end with '</s>' (id 1), "
        "found by its usual name"
    ]
    remove(tmp_path / "run")
    prepare(tmp_path, make_config, write_jsonl, byte_level(("<s>", "</s>")), bos_token="</s>")
    [note] = notes_of(tmp_path)
    assert note.startswith("documents start with '</s>' (id 1), from tokenizer.bos_token, and")
    remove(tmp_path / "run")
    prepare(tmp_path, make_config, write_jsonl, byte_level(("<|endoftext|>",)))
    [note] = notes_of(tmp_path)
    assert "(id 0), the token that ends a document, because no other was found" in note


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("config.json", {"bos_token_id": 1}, r"another start of text, '</s>' \(id 1\).*bos_token"),
        ("tokenizer_config.json", {"bos_token": "</s>"}, r"another start of text, '</s>' \(id 1\)"),
        ("tokenizer_config.json", {"bos_token": {"content": "</s>"}}, "another start of text"),
        ("config.json", {"bos_token_id": 9999}, "does not have: 9999"),
        ("tokenizer_config.json", {"bos_token": "<x>"}, "does not have: '<x>'"),
        ("config.json", {"bos_token_id": 0}, None),
        ("config.json", {"bos_token_id": None}, None),
        ("tokenizer_config.json", {"bos_token": "<s>"}, None),
        ("tokenizer_config.json", {"bos_token": None}, None),
    ],
)
@pytest.mark.parametrize("beside", ["the tokenizer", "a checkpoint"])
def test_another_start_named_by_a_checkpoint_is_said(
    tmp_path, make_config, write_jsonl, file, content, said, beside
):
    path = write_jsonl("a.jsonl", [{"id": "first", "text": TEXTS[0]}])
    folder = tmp_path / "checkpoint" if beside == "a checkpoint" else tmp_path
    folder.mkdir(exist_ok=True)
    (folder / file).write_text(json.dumps(content))
    config = dataclasses.replace(
        make_config(
            SourceConfig(kind="jsonl", path=str(path)),
            tokenizer=TokenizerConfig(path=save(tmp_path, byte_level(("<s>", "</s>")))),
        ),
        reference=ReferenceConfig(
            weak=ReferenceModelConfig(checkpoint=str(folder)), strong=ReferenceModelConfig()
        ),
    )
    prepare_tokenizer(config, RunDirectory(tmp_path / "run"))
    _, *others = notes_of(tmp_path)
    if said is None:
        assert not others
    else:
        assert len(others) == 1 and str(folder / file) in others[0] and re.search(said, others[0])


def test_a_run_without_a_tokenizer_says_so(tmp_path):
    with pytest.raises(UserError, match="no tokenizer yet"):
        load_tokenizer(RunDirectory(tmp_path))


def test_dropout_is_left_out_and_said_once(tmp_path, make_config, write_jsonl):
    backend = byte_level(("<s>", "</s>"))
    backend.model.dropout = 0.5
    tokenizer = prepare(tmp_path, make_config, write_jsonl, backend, TEXTS[0] * 20)
    first, *others = [tokenizer.encode_batch(TEXTS) for _ in range(5)]
    assert all(other == first for other in others)
    assert sum("dropout" in note for note in notes_of(tmp_path)) == 1
    given, kept = tmp_path / "given.json", RunDirectory(tmp_path / "run").tokenizer
    assert json.loads(kept.read_text("utf-8"))["model"]["dropout"] is None
    # A checkpoint whose file asks for it reads the same tokens.
    assert not list(tokenizer_differences(read_tokenizer(given), read_tokenizer(kept)))


LONG = {"letters": "ACGT", "symbols": "=-", "blanks": " \t", "lines": "\n ", "marks": "a\u0301"}


@settings(max_examples=200)
@given(st.text("ab 1\n\t中.=\u0301", max_size=300))
def test_words_of_ordinary_length_are_cut_alike_for_training(text):
    short = cutting(SHORT_WORDS).pre_tokenize_str(text)
    assert short == cutting(WORDS).pre_tokenize_str(text)


@pytest.mark.parametrize("kind", LONG)
def test_long_words_are_cut_for_training_alone(kind):
    random = np.random.default_rng(0)
    text = "".join(random.choice(list(LONG[kind]), 200_000))
    places = [place for _, place in cutting(SHORT_WORDS).pre_tokenize_str(text)]
    assert max(stop - start for start, stop in places) <= 2 * WORD_CHARACTERS
    started = time.process_time()
    backend = train_tokenizer([text], 1000)
    assert time.process_time() - started < 5  # or else 12 s and more, by the square of the length
    assert backend.pre_tokenizer.pre_tokenize_str(text) == cutting(WORDS).pre_tokenize_str(text)


def test_that_words_were_cut_for_training_is_said(tmp_path, make_config, write_jsonl):
    for name, text in (("short", "word " * 900), ("long", "x" * 300)):
        path = write_jsonl("a.jsonl", [{"text": text}])
        config = make_config(SourceConfig(kind="jsonl", path=str(path)), run=name)
        prepare_tokenizer(config, RunDirectory(config.run_directory))
        notes = read_json(tmp_path / name / "tokenizer" / "special_tokens.json")["notes"]
        assert any("words of up to 256 letters" in note for note in notes) == (name == "long")
