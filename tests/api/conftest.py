"""A folder as the examples of the public API know it: two tiny checkpoints and a run."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml

from frame_jax.config.models import ModelConfig
from frame_jax.corpus.tokenizer_training import train_tokenizer
from frame_jax.models.hugging_face.export import export_checkpoint
from frame_jax.models.transformer import Decoder
from frame_jax.run.directory import RunDirectory
from frame_jax.run.special_tokens import SpecialTokens
from tests.scoring.scoring_helpers import write_model

VOCAB = 300
TEXTS = ["A short text.", "", "Another, longer text, which goes on for more than one window. " * 9]


def make_models() -> dict[str, tuple[Decoder, dict]]:
    models = {}
    for seed, (name, width) in enumerate({"small": 16, "large": 32}.items()):
        shape = {"hidden_size": width, "intermediate_size": 2 * width, "num_heads": 2}
        decoder = Decoder(ModelConfig(num_layers=1, num_kv_heads=1, **shape), VOCAB, "float32")
        params = jax.tree.map(np.array, decoder.init(jax.random.key(seed)))
        models[name] = decoder, params
    return models


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`small` and `large`, Hugging Face folders, and `runs/mine` with the same models."""
    root = tmp_path_factory.mktemp("api")
    run = RunDirectory(root / "runs/mine")
    run.tokenizer.parent.mkdir(parents=True)
    backend = train_tokenizer(["A text of the interpreter's own manual.\n"], VOCAB)
    backend.save(str(run.tokenizer))
    bos, eos = (backend.token_to_id(name) for name in ("<|bos|>", "<|eos|>"))
    vocab_size = backend.get_vocab_size()
    special = {"bos_id": bos, "eos_id": eos, "vocab_size": vocab_size}
    run.tokenizer.with_name("special_tokens.json").write_text(json.dumps(special))
    models = make_models()
    for role, (name, (decoder, params)) in zip(("weak", "strong"), models.items(), strict=True):
        (root / name).mkdir()
        export_checkpoint(
            root / name,
            decoder,
            params,
            tokenizer=run.tokenizer,
            special_tokens=SpecialTokens(bos, eos, 0),
            context=64,
        )
        write_model(run, role, decoder, params)
    config = {
        "run_directory": str(run.root),
        "corpus": {"sources": [{"kind": "text", "path": "x"}]},
        "scoring": {"context": 64, "overlap": 8, "compute_dtype": "float32"},
    }
    run.config.write_text(yaml.safe_dump(config))
    return root
