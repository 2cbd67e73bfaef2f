"""Compares the losses of two arms, paired by seed and by document, item or training row.

DuckDB does the sums, so memory does not grow with the held-out split.
"""

import math
from collections.abc import Collection, Sequence
from pathlib import Path

import duckdb
import numpy as np

from frame_jax.config.run import RunConfig, Trial
from frame_jax.evaluation.results import SLICE_SQL, read_results
from frame_jax.evaluation.tasks import ratio_error
from frame_jax.evaluation.training_rows import BINS
from frame_jax.report.held_out_curves import TrainingRowPoint
from frame_jax.report.study_results import Verdict
from frame_jax.report.verdict import decide_verdict
from frame_jax.run.directory import RunDirectory, list_parts
from frame_jax.sql import parquet_table, query


def baseline_trials(config: RunConfig, trials: Collection[Trial]) -> dict[Trial, Trial]:
    """The baseline's trial under the same seed, for each trial of another arm that has one."""
    by_seed = {trial.seed: trial for trial in trials if trial.arm == config.baseline}
    return {
        trial: by_seed[trial.seed]
        for trial in trials
        if trial.arm != config.baseline and trial.seed in by_seed
    }


def slice_verdicts(
    directory: RunDirectory, pairs: Sequence[tuple[Path, Path]]
) -> dict[str, Verdict]:
    """Decides whether an arm's bits per byte are lower on each slice of the held-out split.

    With d_i the difference of document i, averaged over seeds, b_i its bytes and D = sum(d) /
    sum(b), the standard error of D over documents is that of a ratio of two means,
    sqrt(sum((d_i - D b_i)^2)) / sum(b): documents are compared with themselves, so what makes one
    hard for every arm cancels. [ours]

    `pairs` are, for each seed, the folders of losses by document of the arm and of the other one.
    Verdicts are by slice, see `evaluation.results.SLICE_SQL`; none without a document in common.
    """
    tokens = list_parts(directory.tokens, ".parquet")
    union = " UNION ALL ".join(
        f"SELECT {seed} AS seed, doc_id, arm.nll - other.nll AS d "
        f"FROM {parquet_table(*list_parts(one, '.parquet'))} arm "
        f"JOIN {parquet_table(*list_parts(two, '.parquet'))} other USING (doc_id)"
        for seed, (one, two) in enumerate(pairs)
    )
    with duckdb.connect() as connection:
        connection.execute("SET threads = 1")  # the order of a sum is in its last digits
        connection.execute(
            f"""
            CREATE TABLE losses AS
            WITH documents AS (
                SELECT doc_id, domain, language, bytes FROM {parquet_table(*tokens)}
                WHERE split = 'held_out'),
            assigned AS (
                SELECT doc_id, quadrant FROM {parquet_table(directory.assignment)}
                WHERE split = 'held_out')
            SELECT seed, doc_id, domain, language, quadrant, bytes::DOUBLE AS b, d / ln(2) AS d
            FROM ({union}) JOIN documents USING (doc_id) LEFT JOIN assigned USING (doc_id)
            """
        )
        seeds = connection.execute(
            f"""
            SELECT {SLICE_SQL}, seed, sum(d) / sum(b) FROM losses
            GROUP BY GROUPING SETS
                ((seed), (seed, domain), (seed, language), (seed, quadrant)) ORDER BY ALL
            """
        ).fetchall()
        errors = connection.execute(
            f"""
            WITH means AS (
                SELECT doc_id, any_value(domain) AS domain, any_value(language) AS language,
                    any_value(quadrant) AS quadrant, any_value(b) AS b, avg(d) AS d
                FROM losses GROUP BY doc_id)
            SELECT {SLICE_SQL}, sum(d) / sum(b) AS mean,
                sqrt(greatest(0, sum(d * d) - 2 * mean * sum(d * b) + mean * mean * sum(b * b)))
                    / sum(b)
            FROM means GROUP BY GROUPING SETS ((), (domain), (language), (quadrant)) ORDER BY slice
            """
        ).fetchall()
    by_slice: dict[str, list[float]] = {}
    for name, _, difference in seeds:
        by_slice.setdefault(name, []).append(difference)
    return {
        name: decide_verdict(by_slice[name], error)
        for name, _, error in errors
        if name is not None and name in by_slice  # without a document in common there is no seed
    }


def task_verdict(pairs: Sequence[tuple[Path, Path]]) -> Verdict:
    """Decides whether an arm's bits per byte of the right answers of a task are lower.

    `pairs` are, for each seed, the folders of the task's parts under the arm and the other one.
    """
    seeds, sizes = [], np.zeros(0)
    for one, two in pairs:
        (bits, sizes), (other, _) = (right_answer_bits(folder) for folder in (one, two))
        seeds.append(bits - other)
    by_seed = tuple(float(d.sum() / sizes.sum()) for d in seeds)
    mean = np.mean(seeds, axis=0)
    return decide_verdict(by_seed, ratio_error(mean, sizes) or 0.0)


def right_answer_bits(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads the bits and bytes of the right answer of each item: float64 [items] each."""
    items = query(
        lambda nll, size: (nll, size),
        "SELECT nll[answer + 1], bytes[answer + 1] "  # SQL counts from 1
        f"FROM {parquet_table(*list_parts(folder, '.parquet'))}",
    )
    nll, sizes = np.array(items, np.float64).T
    return nll / math.log(2), sizes


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
