"""A continued model is written as the checkpoint that it came from: names, files, config."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors
from safetensors.numpy import save_file

from frame_jax.config.models import ModelConfig
from frame_jax.models.hugging_face.config import FAMILIES
from frame_jax.models.hugging_face.export import (
    export_checkpoint,
    keep_origin,
    kept_origin,
    model_config,
)
from frame_jax.models.hugging_face.tensors import checkpoint_tensors
from frame_jax.models.hugging_face.weights import import_checkpoint
from frame_jax.models.transformer import Decoder
from frame_jax.run.directory import write_json
from frame_jax.run.special_tokens import SpecialTokens
from tests.models.hugging_face.test_config import COMPUTED, SMALL

FILES = {
    "tokenizer.json": '{"version": "1.0"}',
    "tokenizer_config.json": '{"chat_template": "x"}',
    "generation_config.json": '{"temperature": 0.5}',
    "chat_template.jinja": "{{ messages }}",
    "merges.txt": "a b\n",
}


def names(folder: Path) -> set[str]:
    found: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with safetensors.safe_open(path, framework="np") as file:
            found |= set(file.keys())
    return found


@pytest.mark.parametrize(
    ("case", "family", "layout"),
    [
        ("LayerNorm, an output", "gpt_neox", 0),
        ("LayerNorm, an output", "gpt_neox", 1),
        ("experts", "mixtral", 1),
        ("plain", "mistral", 0),  # Llama is the first family that computes it
    ],
)
def test_a_continued_model_is_written_as_it_was(
    case: str, family: str, layout: int, tmp_path: Path
) -> None:
    decoder = Decoder(ModelConfig(**SMALL | COMPUTED[case][1]), 12)
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), decoder.shapes())
    source = tmp_path / "source"
    source.mkdir()
    own = FAMILIES[family].to_hf_config(decoder.config) | {"model_type": family}
    config = model_config(decoder, 0, 1, 64) | own
    config |= {"torch_dtype": "bfloat16", "unknown": [1]}
    write_json(source / "config.json", config)
    tensors = checkpoint_tensors(decoder, FAMILIES[family].layouts[layout])
    save_file({n: t.stored(params) for n, t in tensors.items()}, source / "model.safetensors")
    for name, text in FILES.items():
        (source / name).write_text(text)

    for trial, given in (("first", source), ("second", tmp_path / "first")):
        (tmp_path / trial).mkdir()
        keep_origin(given, tmp_path / trial, decoder)
        keep_origin(tmp_path, tmp_path / trial, decoder)  # from what has gone, after a kill
    out = tmp_path / "out"
    out.mkdir()
    trained = jax.tree.map(lambda leaf: leaf * 0.3, params)
    export_checkpoint(
        out,
        decoder,
        trained,
        tokenizer=tmp_path / "is not read",
        special_tokens=SpecialTokens(0, 1, 0),
        context=64,
        origin=kept_origin(tmp_path / "second"),
    )
    assert names(out) == names(source) == set(tensors)
    written = json.loads((out / "config.json").read_text())
    assert written == config | {"torch_dtype": "float32"}
    for name, text in FILES.items():
        assert (out / name).read_text() == text
    jax.tree.map(np.testing.assert_array_equal, import_checkpoint(out, 64)[1], trained)


def test_a_model_from_scratch_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / "trial").mkdir()
    keep_origin(tmp_path, tmp_path / "trial", Decoder(ModelConfig(), 12))
    assert kept_origin(tmp_path / "trial") is None
