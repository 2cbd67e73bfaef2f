"""Fixtures for the scoring tests."""

import json

import pytest

from frame_jax.run.directory import RunDirectory
from tests.scoring.scoring_helpers import (
    BOS,
    VOCAB,
    make_documents,
    make_model,
    run_config,
    write_model,
    write_part,
)


@pytest.fixture
def models():
    return [make_model(1), make_model(2, hidden_size=48)]


@pytest.fixture
def documents():
    return make_documents()


@pytest.fixture
def make_run(tmp_path):
    """Writes a run directory with tokens in parts and two reference models; returns its config."""

    def make(name="run", parts=3, models=None, **scoring):
        directory = RunDirectory(tmp_path / name)
        directory.tokenizer.parent.mkdir(parents=True)
        special_tokens = {"bos_id": BOS, "eos_id": BOS, "vocab_size": VOCAB}
        directory.tokenizer.with_name("special_tokens.json").write_text(json.dumps(special_tokens))
        for index in range(parts):
            write_part(directory, index, parts)
        models = models or [make_model(1), make_model(2, hidden_size=48)]
        for role, (decoder, params) in zip(("weak", "strong"), models, strict=True):
            write_model(directory, role, decoder, params)
        return run_config(directory.root, **scoring), directory

    return make
