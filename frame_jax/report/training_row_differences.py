"""Final losses on training rows in, their differences to the baseline's by time trained out."""

from __future__ import annotations

from typing import Any

import duckdb

from frame_jax.config.run import RunConfig, Trial
from frame_jax.evaluation.training_rows import BINS
from frame_jax.report.held_out_results import Result, read_results
from frame_jax.run.directory import RunDirectory, list_parts
from frame_jax.sql import parquet_table


def training_row_differences(config: RunConfig, directory: RunDirectory) -> list[dict[str, Any]]:
    """Rows of arm, tokens (when trained on) and difference (nats per token, mean over seeds).

    Of the same rows under the same seed, so what makes a row hard cancels. Empty where training
    rows were not measured, or the baseline was not.
    """
    every = read_results(directory)
    measured = {
        trial: every[trial.name]
        for trial in config.trials
        if "training_rows" in every.get(trial.name, {})
    }
    by_bin: dict[tuple[str, int], list[tuple[int, float]]] = {}
    for trial, result in measured.items():
        base = next(
            (t for t in measured if t.arm == config.baseline and t.seed == trial.seed), None
        )
        if base is None or base == trial:
            continue
        for number, difference in differences_by_step(directory, trial, result, measured[base]):
            last = result["checkpoints"][-1]
            tokens = round((number + 0.5) / BINS * last["tokens"])
            by_bin.setdefault((trial.arm, number), []).append((tokens, difference))
    return [
        {
            "arm": arm,
            "tokens": found[0][0],
            "difference": sum(difference for _, difference in found) / len(found),
        }
        for (arm, _), found in sorted(by_bin.items())
    ]


def differences_by_step(
    directory: RunDirectory, trial: Trial, result: Result, base: Result
) -> list[tuple[int, float]]:
    """Difference of a trial to the baseline in each span of its run, by number."""
    one, two = (
        parquet_table(*list_parts(directory.root / each["training_rows"]["folder"], ".parquet"))
        for each in (result, base)
    )
    steps = result["checkpoints"][-1]["step"]
    with duckdb.connect() as connection:
        return connection.execute(
            f"""
            SELECT arm.step * {BINS} // {steps} AS span,
                sum(arm.nll - base.nll) / sum(arm.predicted_tokens)
            FROM {one} arm JOIN {two} base USING (quadrant, row)
            GROUP BY span HAVING sum(arm.predicted_tokens) > 0 ORDER BY span
            """
        ).fetchall()
