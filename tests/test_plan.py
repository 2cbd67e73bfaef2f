"""The cost table: what imported reference models cost, and from where their shape is known."""

import dataclasses
import json
from pathlib import Path

import pytest
from rich.console import Console

from frame_jax.config import (
    CorpusConfig,
    CurriculumConfig,
    ReferenceConfig,
    ReferenceModelConfig,
    RunConfig,
    SourceConfig,
    StageConfig,
)
from frame_jax.curriculum.stages import Schedule, resolve
from frame_jax.errors import UserError
from frame_jax.plan import Corpus, cost_table

CORPUS = Corpus(reference=1_000_000, train=8_000_000, held_out=500_000, source="a test")
CHECKPOINT = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 10,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096,
}
# Matrices of a layer: four of 10 x 10 and three of 10 x 20; two tables of 100 x 10; norms.
PARAMETERS = 3 * (400 + 600 + 20) + 2000 + 10
SCORING = 8_500_000 * (2 * (3 * 1000 + 1000) + 3 * 4 * 10 * 1024 / 2)


def costs(weak: Path | None = None) -> tuple[dict[str, list[str]], str]:
    """Lines of the table by what they are about, and all of its text."""
    reference = ReferenceConfig(
        weak=ReferenceModelConfig(checkpoint=None if weak is None else str(weak))
    )
    config = RunConfig(
        run_directory="nowhere",
        corpus=CorpusConfig([SourceConfig("python_library")]),
        reference=reference,
    )
    console = Console(width=300)
    with console.capture() as capture:
        console.print(cost_table(config, CORPUS, None))
    text = capture.get()
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines()]
    return {line[0]: line[1:] for line in lines if line}, text


def test_an_imported_model_costs_no_training_and_is_scored_at_its_own_size(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CHECKPOINT))
    lines, text = costs(weak=tmp_path)
    parameters, _, tokens, flops, share, _ = lines["reference weak, imported"]
    assert (parameters, tokens, flops, share) == (f"{PARAMETERS:,}", "0", "0.00e+00", "0.0%")
    assert lines["scoring, weak"][3] == f"{SCORING:.2e}"
    assert f"reference.weak is imported; its shape is from {tmp_path / 'config.json'}" in text
    assert lines["reference strong"][3] != "0.00e+00" and "reference.strong" not in text


def test_a_checkpoint_that_is_not_there_yet_is_assumed_and_said_to_be(tmp_path: Path) -> None:
    lines, text = costs(weak=tmp_path)
    trained, _ = costs()
    assert lines["scoring, weak"][0] == trained["scoring, weak"][0]
    assert lines["reference weak, imported"][2] == "0"
    assert "config.json is not there; its shape is assumed to be reference.weak.model" in text
    assert trained["reference weak"][2] != "0"


def test_a_checkpoint_that_cannot_be_scored_is_refused_by_the_plan(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CHECKPOINT | {"model_type": "gpt2"}))
    with pytest.raises(UserError, match="model_type 'gpt2'"):
        costs(weak=tmp_path)
    short = CHECKPOINT | {"max_position_embeddings": 512}
    (tmp_path / "config.json").write_text(json.dumps(short))
    with pytest.raises(UserError, match="at most 512 tokens"):
        costs(weak=tmp_path)


def schedule(epochs: int = 1) -> Schedule:
    """Three stages of 25, 5 and 10 rows."""
    stages = [StageConfig({cell: 1.0}) for cell in ("a", "b", "c")]
    curriculum = CurriculumConfig(stages=stages, transition="hard", epochs=epochs)
    rows = {"a": 25, "b": 5, "c": 10}
    return resolve(curriculum, rows, batch_rows=8, sequence_length=1)


def test_stage_starts_rise_from_0_and_name_a_step_once() -> None:
    assert schedule().stage_starts(8) == [0, 3]  # rows 25 and 30 are both in step 3
    assert schedule().stage_starts(5) == [0, 5, 6]
    assert schedule(epochs=2).stage_starts(5) == [0, 5, 6, 8, 13, 14]
    assert dataclasses.replace(schedule(), stages=schedule().stages[:1]).stage_starts(8) == [0]
