"""One run with a Mamba-2 model, a dense one and a hybrid with experts, through every phase."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from frame_jax import checkpoints
from frame_jax.export.checkpoint import main as export
from frame_jax.main import main
from frame_jax.models.hugging_face.weights import import_checkpoint
from frame_jax.models.transformer import read_description
from tests.integration.small_run import settings, write_config, write_corpus

MAMBA2 = {"num_heads": 4, "head_dim": 16, "state_size": 8, "chunk_size": 16}
pytestmark = pytest.mark.slow
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_token": 2,
    "intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("decoders")
    write_corpus(root / "corpus.jsonl")
    known = settings(root)
    reference, pretrain = known["reference"], known["pretrain"]
    reference["weak"]["model"] |= {"layers": ["mamba2+none"], "mamba2": MAMBA2}
    reference["weak"]["training"] = reference["weak"]["training"] | {"steps": 20}
    reference["strong"]["training"]["steps"] = 30
    pretrain["model"] |= {
        "num_layers": 4,
        "layers": ["mamba2+experts", "attention+experts"],
        "mamba2": MAMBA2,
        "experts": EXPERTS | {"norm_topk_prob": True},
        "partial_rotary_factor": 0.0,
    }
    pretrain["training"] = pretrain["training"] | {"steps": 16, "milestones": 1}
    config = write_config(
        root, reference=reference, pretrain=pretrain, curricula={"frame": {"preset": "frame"}}
    )
    assert main(["--config", str(config)]) == 0
    return root / "run"


def test_every_phase_ends_and_the_model_learns(run: Path) -> None:
    lines = (run / "pretrain" / "frame" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert records[-1]["loss"] < records[0]["loss"]
    assert len(records[-1]["expert_load"]) == len(records[-1]["router_entropy"]) == 4
    held_out = json.loads((run / "evaluation" / "frame.json").read_text())
    assert held_out and (run / "report" / "index.html").is_file()
    quadrants = pq.read_table(run / "quadrants" / "assignment.parquet")["quadrant"].to_pylist()
    assert {"Q1", "Q2", "Q3", "Q4"} <= set(quadrants)


def test_it_is_exported_as_granite_and_comes_back(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "exported"
    assert export([str(run), "--trial", "frame", "--out", str(out)]) == 0
    assert json.loads((out / "config.json").read_text())["model_type"] == "granitemoehybrid"
    decoder, params = import_checkpoint(out)
    folder = run / "pretrain" / "frame"
    ours = read_description(folder)
    kept = checkpoints.load_params(folder / "checkpoints", ours)
    assert decoder.config.layer_specs == ours.config.layer_specs
    for name, leaf in kept["layers"]["group_1"].items():
        np.testing.assert_array_equal(params["layers"]["group_1"][name], leaf)
