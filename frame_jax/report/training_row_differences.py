"""Differences between the final losses of arms on training rows, by when they were trained on."""

from __future__ import annotations

from dataclasses import dataclass

from frame_jax.config.run import RunConfig
from frame_jax.evaluation.results import read_results
from frame_jax.evaluation.training_rows import BINS
from frame_jax.report.paired_differences import baseline_trials
from frame_jax.report.query import query
from frame_jax.run.directory import RunDirectory, list_parts
from frame_jax.sql import parquet_table


@dataclass(frozen=True)
class TrainingRowPoint:
    """An arm against the baseline on the training rows of one span of its run.

    Attributes:
        arm: The arm.
        tokens: Training tokens seen in the middle of the span.
        difference: Nats per token, mean over seeds.
    """

    arm: str
    tokens: int
    difference: float


def training_row_differences(config: RunConfig, directory: RunDirectory) -> list[TrainingRowPoint]:
    """Compares the final losses of each arm with the baseline's on the same rows and seed.

    What makes a row hard cancels. Empty where training rows were not measured, or the baseline was
    not.
    """
    every = read_results(directory)
    results = {trial: every[trial.name] for trial in config.trials if trial.name in every}
    measured = {
        trial: (result.final, directory.root / result.training_rows.folder)
        for trial, result in results.items()
        if result.training_rows is not None
    }
    by_span: dict[tuple[str, int], list[tuple[int, float]]] = {}
    for trial, base in baseline_trials(config, measured).items():
        final, folder = measured[trial]
        one, two = (
            parquet_table(*list_parts(each, ".parquet")) for each in (folder, measured[base][1])
        )
        spans = query(
            lambda span, difference: (span, difference),
            f"""
            SELECT arm.step * {BINS} // {final.step} AS span,
                sum(arm.nll - base.nll) / sum(arm.predicted_tokens)
            FROM {one} arm JOIN {two} base USING (quadrant, row)
            GROUP BY span HAVING sum(arm.predicted_tokens) > 0 ORDER BY span
            """,
        )
        for span, difference in spans:
            tokens = round((span + 0.5) / BINS * final.tokens)
            by_span.setdefault((trial.arm, span), []).append((tokens, difference))
    return [
        TrainingRowPoint(arm, found[0][0], sum(value for _, value in found) / len(found))
        for (arm, _), found in sorted(by_span.items())
    ]
