"""Fixtures for the scoring tests."""

import json

import numpy as np
import pytest
from scoring_helpers import BOS, VOCAB, make_documents, make_model, write_part

from frame_jax.checkpoints import Checkpointer
from frame_jax.config import CorpusConfig, RunConfig, ScoringConfig, SourceConfig
from frame_jax.models.functional import write_description
from frame_jax.run_directory import RunDirectory


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
        specials = {"bos_id": BOS, "eos_id": BOS, "vocab_size": VOCAB}
        directory.tokenizer.with_name("special_tokens.json").write_text(json.dumps(specials))
        for index in range(parts):
            write_part(directory, index, parts)
        models = models or [make_model(1), make_model(2, hidden_size=48)]
        for role, (decoder, params) in zip(("weak", "strong"), models, strict=True):
            folder = directory.reference(role)
            write_description(folder, decoder)
            checkpointer = Checkpointer(folder / "checkpoints", [], "fingerprint")
            checkpointer.save(3, params, {"unused": np.zeros(1)})
            checkpointer.close()
        config = RunConfig(
            run_directory=str(directory.root),
            corpus=CorpusConfig([SourceConfig("python_library")], parts=parts),
            scoring=ScoringConfig(
                **{"context": 32, "overlap": 8, "compute_dtype": "float32"} | scoring
            ),
        )
        return config, directory

    return make
