"""An exported checkpoint is the model that was trained: bit for bit here, logit for logit there."""

import json

import jax
import numpy as np
import pytest
import tokenizers
import yaml

from frame_jax.config.models import RopeScalingConfig
from frame_jax.corpus.tokenizer import load_tokenizer
from frame_jax.corpus.tokenizer_training import BOS, EOS
from frame_jax.errors import UserError
from frame_jax.export.checkpoint import export_trial, main
from frame_jax.models.hugging_face.export import export_checkpoint, pad_token_id
from frame_jax.models.hugging_face.weights import import_checkpoint
from frame_jax.models.transformer import Decoder
from frame_jax.run.special_tokens import SpecialTokens
from frame_jax.scoring.tokenizers import require_same_tokenizer
from tests.arm import CONTEXT, PADDED, STEPS, VOCAB_SIZE, make_arm

LONG_ROPE = RopeScalingConfig(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
)
SHAPES = {
    "llama": {"tie_embeddings": False},
    "llama_tied_long_rope": {"rope_theta": 500.0, "rope_scaling": LONG_ROPE},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": True, "head_dim": 16, "tie_embeddings": False},
}


@pytest.mark.parametrize("name", SHAPES)
def test_importing_an_export_gives_the_same_bits(name, tmp_path) -> None:
    directory, decoder, params = make_arm(tmp_path / "run", **SHAPES[name])
    assert export_trial(directory, "frame", tmp_path / "out") == STEPS[-1]
    again, imported = import_checkpoint(tmp_path / "out", longest=CONTEXT)
    assert (again.config, again.vocab_size) == (decoder.config, PADDED)
    jax.tree.map(np.testing.assert_array_equal, imported, params[STEPS[-1]])
    require_same_tokenizer(tmp_path / "out", directory.tokenizer, "test")


def test_any_kept_checkpoint_by_step_or_stage(tmp_path, capsys) -> None:
    directory, _, params = make_arm(tmp_path / "run")
    run, out = str(directory.root), tmp_path / "out"
    assert main([run, "--stage", "Q3", "--out", str(out / "stage")]) == 0
    assert main([run, "--step", "3", "--out", str(out / "step")]) == 0
    for name in ("stage", "step"):
        imported = import_checkpoint(out / name)[1]
        np.testing.assert_array_equal(imported["embedding"], params[3]["embedding"])
    assert "step 3 of 6" in (out / "step" / "README.md").read_text("utf-8")
    for arguments, message in (
        (["--stage", "Q4"], "there are: Q3, Q1"),
        (["--step", "4"], "there are: 3, 6"),
        (["--trial", "random"], "there are: frame"),
    ):
        assert main([run, *arguments, "--out", str(out / "no")]) == 2
        assert message in capsys.readouterr().err
        assert not (out / "no").exists()
    assert main([run, "--out", str(out / "step")]) == 2
    assert "is there already" in capsys.readouterr().err


def test_the_mean_of_the_last_checkpoints(tmp_path, capsys) -> None:
    directory, _, params = make_arm(tmp_path / "run")
    run, out = str(directory.root), tmp_path / "out"
    assert main([run, "--average_last", "2", "--out", str(out / "mean")]) == 0
    imported = import_checkpoint(out / "mean")[1]
    mixed = jax.tree.map(lambda a, b: (a + b) / 2, *(params[s] for s in STEPS))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), imported, mixed
    )
    card = (out / "mean" / "README.md").read_text("utf-8")
    assert "mean of the checkpoints at steps 3, 6" in card
    for arguments, message in (
        (["--average_last", "3"], "last 3 checkpoints needs as many, and 2 were kept"),
        (["--average_last", "1"], "at least 2"),
    ):
        assert main([run, *arguments, "--out", str(out / "no")]) == 2
        assert message in capsys.readouterr().err
        assert not (out / "no").exists()


def test_large_weights_are_cut_into_files(tmp_path) -> None:
    directory, decoder, params = make_arm(tmp_path / "run")
    (tmp_path / "out").mkdir()
    export_checkpoint(
        tmp_path / "out",
        decoder,
        params[3],
        tokenizer=directory.tokenizer,
        special_tokens=SpecialTokens(0, 1, 0),
        context=CONTEXT,
        shard_bytes=40_000,
    )
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 3
    assert all(file.stat().st_size < 50_000 for file in files[1:])  # the first is the embedding
    jax.tree.map(np.testing.assert_array_equal, import_checkpoint(tmp_path / "out")[1], params[3])


def test_a_model_without_a_counterpart_is_refused(tmp_path) -> None:
    directory, _, _ = make_arm(tmp_path / "run", qkv_bias=True, qk_norm=True)
    with pytest.raises(UserError, match="qwen2 has no model"):
        export_trial(directory, "frame", tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


def test_the_model_card_has_what_the_hub_reads(tmp_path) -> None:
    """But for license and languages, which it says are missing."""
    directory, _, _ = make_arm(tmp_path / "run")
    export_trial(directory, "frame", tmp_path / "out")
    empty, header, card = (tmp_path / "out/README.md").read_text("utf-8").split("---\n", 2)
    assert not empty and yaml.safe_load(header) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["frame", "curriculum", "pretraining"],
    }
    assert "License and languages are not stated yet" in card
    assert f"has {PADDED} rows, the tokenizer {VOCAB_SIZE} tokens: the rest is padding" in card


def test_a_card_without_padding_says_nothing_of_it(tmp_path) -> None:
    directory, _, _ = make_arm(tmp_path / "run")
    path = directory.tokenizer.with_name("special_tokens.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": PADDED}))
    export_trial(directory, "frame", tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text("utf-8")
    assert f"has {PADDED} rows, the tokenizer {PADDED} tokens. BOS" in card
    assert "padding" not in card


@pytest.mark.parametrize(("pad", "expected"), [(None, EOS), ("<pad>", "<pad>")])
def test_what_fills_up_a_batch(tmp_path, pad, expected) -> None:
    """EOS, or a token of that name that the model has a row for."""
    directory, decoder, _ = make_arm(tmp_path / "run")
    backend = tokenizers.Tokenizer.from_file(str(directory.tokenizer))
    if pad is not None:
        backend.add_special_tokens([pad])
    index = backend.token_to_id(expected)
    assert pad_token_id(backend, backend.token_to_id(EOS), decoder.vocab_size) == index
    assert pad_token_id(backend, backend.token_to_id(EOS), VOCAB_SIZE) == backend.token_to_id(EOS)


@pytest.mark.torch
def test_the_exported_tokenizer_frames_pads_and_keeps_text_text(tmp_path) -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    directory, _, _ = make_arm(tmp_path / "run")
    export_trial(directory, "frame", tmp_path / "out")
    ours = load_tokenizer(directory)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for text in (f"spelled {BOS}{EOS} out", BOS, f"{EOS} "):
        [ids] = ours.encode_batch([text])
        assert tokenizer(text).input_ids == [ours.bos_id, *ids]
        assert not {ours.bos_id, ours.eos_id} & set(ids)
    a, b = ours.encode_batch(["one text", " and another"])
    assert tokenizer("one text", " and another").input_ids == [ours.bos_id, *a, *b]
    assert tokenizer.pad_token == tokenizer.eos_token

    texts = ["one", "a longer text than the other"]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    assert batch.input_ids.shape[0] == 2 and batch.attention_mask[0].sum() < len(batch[0])
    with torch.no_grad():
        padded = model(**batch).logits[:, -1]
        alone = [model(**tokenizer(text, return_tensors="pt")).logits[0, -1] for text in texts]
    np.testing.assert_allclose(padded, torch.stack(alone), rtol=1e-4, atol=1e-4)
    settings = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    written = model.generate(**batch, **settings)[:, -5:]
    for text, expected in zip(texts, written, strict=True):
        prompt = tokenizer(text, return_tensors="pt")
        assert model.generate(**prompt, **settings)[0, -5:].tolist() == expected.tolist()


@pytest.mark.torch
@pytest.mark.parametrize("name", SHAPES)
def test_transformers_computes_the_same_logits_and_generates(name, tmp_path) -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    directory, decoder, params = make_arm(tmp_path / "run", **SHAPES[name])
    export_trial(directory, "frame", tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.float32
    tokens = np.random.default_rng(0).integers(0, PADDED, (3, CONTEXT)).astype(np.int32)
    with torch.no_grad():
        expected = model(torch.tensor(tokens, dtype=torch.long)).logits.numpy()
    ours, weights = Decoder(decoder.config, PADDED, "float32"), params[STEPS[-1]]
    positions = np.broadcast_to(np.arange(CONTEXT), tokens.shape)
    hidden, _ = ours.forward(weights, tokens, np.zeros_like(tokens), positions)
    actual = np.asarray(hidden @ ours.unembedding(weights).T)
    assert np.abs(expected).max() > 1
    print(f"{name}: largest difference of a logit {np.abs(actual - expected).max():.2e}")
    np.testing.assert_allclose(actual, expected, atol=1e-4, rtol=1e-4)

    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    special = json.loads(directory.tokenizer.with_name("special_tokens.json").read_text())
    assert tokenizer.bos_token_id == special["bos_id"] != tokenizer.eos_token_id
    for text in ("Hello, world!\n", "四象限", "a  b"):
        ids = tokenizer(text).input_ids
        assert ids[0] == special["bos_id"] and special["bos_id"] not in ids[1:]
        assert tokenizer.decode(ids[1:]) == text
    prompt = tokenizer("The", return_tensors="pt").input_ids
    written = model.generate(prompt, max_new_tokens=12, min_new_tokens=12)[0]
    assert len(tokenizer.decode(written[prompt.shape[1] :], skip_special_tokens=False)) > 0
