"""Training rows that were made up, by when they were trained on, against sums by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from frame_jax.evaluation.results import (
    TrainingRowsResult,
    read_result,
    scores_folder,
    write_result,
)
from frame_jax.evaluation.training_rows import BINS
from frame_jax.report.paired_differences import training_row_differences
from frame_jax.run.directory import RunDirectory, part_name
from tests.report.synthetic import BATCH_ROWS, SEQUENCE_LENGTH, make_run

STEPS = 2 * BINS  # two steps a span


def write_rows(
    directory: RunDirectory, trial: str, rows: list[tuple[str, int, int, float]]
) -> None:
    """Gives a trial its sample of training rows: quadrant, row, step and loss; 10 tokens each."""
    folder = scores_folder(directory, trial, str(STEPS)) / "training_rows" / "4"
    folder.mkdir(parents=True)
    for part in range(2):
        own = rows[part::2]
        columns = {
            "quadrant": [row[0] for row in own],
            "row": pa.array([row[1] for row in own], pa.int64()),
            "step": pa.array([row[2] for row in own], pa.int64()),
            "predicted_tokens": pa.array([10] * len(own), pa.int64()),
            "nll": pa.array([row[3] for row in own], pa.float64()),
        }
        pq.write_table(pa.table(columns), folder / part_name(part, 2, ".parquet"))
    result = TrainingRowsResult(4, str(folder.relative_to(directory.root)))
    measured = dataclasses.replace(read_result(directory, trial), training_rows=result)
    write_result(directory, measured)


def test_rows_are_compared_with_themselves_by_when_the_order_trained_on_them(
    tmp_path: Path,
) -> None:
    config, directory = make_run(
        tmp_path / "run", arms=("frame", "random"), steps=STEPS, documents=20, seeds=2
    )
    assert training_row_differences(config, directory) == []  # nothing was measured
    hard = {("Q1", 0): 7.0, ("Q1", 5): 30.0, ("Q3", 0): 50.0, ("Q3", 9): 11.0}
    for seed, suffix in enumerate(("", "-seed1")):
        base = [(*row, 3 * n, nll + seed) for n, (row, nll) in enumerate(hard.items())]
        write_rows(directory, f"random{suffix}", base)
    # Read by frame in the first span twice, in the second and in the last; as many nats apart.
    write_rows(
        directory,
        "frame",
        [("Q3", 0, 0, 52.0), ("Q3", 9, 1, 12.0), ("Q1", 5, 3, 30.0), ("Q1", 0, STEPS - 1, 3.0)],
    )
    write_rows(
        directory,
        "frame-seed1",
        [("Q3", 0, 1, 55.0), ("Q3", 9, 0, 12.0), ("Q1", 5, 2, 31.0), ("Q1", 0, STEPS - 2, 6.0)],
    )
    found = training_row_differences(config, directory)
    whole = STEPS * BATCH_ROWS * SEQUENCE_LENGTH
    middles = [round((number + 0.5) / BINS * whole) for number in (0, 1, BINS - 1)]
    assert [(point.arm, point.tokens) for point in found] == [("frame", at) for at in middles]
    # Seed 0: (2 + 1) / 20, 0, -4 / 10; seed 1, where random is 1 higher: (4 + 0) / 20, 0, -2 / 10.
    assert [point.difference for point in found] == pytest.approx([0.175, 0.0, -0.3])
