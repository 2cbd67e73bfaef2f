"""`metrics.jsonl` and `curriculum.json` of every arm in, thinned series and numbers out.

DuckDB streams the metrics, so a run of a million steps needs no more memory, and makes no larger a
page, than a run of a thousand.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import duckdb

from frame_jax.run.directory import read_json
from frame_jax.sql import json_lines_table

POINTS = 500  # of a curve
GAP, WINDOW = 0.04, 0.04  # share of the run beside a boundary that is left out, that is averaged
COLUMNS = {
    "step": "BIGINT",
    "tokens": "BIGINT",
    "loss": "DOUBLE",
    "learning_rate": "DOUBLE",
    "grad_norm": "DOUBLE",
    "update_norm": "DOUBLE",
    "mixture": "MAP(VARCHAR, DOUBLE)",
    "seconds": "DOUBLE",
    "tokens_per_second": "DOUBLE",
    "mfu": "DOUBLE",
    "goodput": "DOUBLE",
}


@dataclasses.dataclass(frozen=True)
class StageSteps:
    """Steps [start, stop) of a run; `start` is also the number of updates made before it."""

    name: str
    start: int
    stop: int


@dataclasses.dataclass(frozen=True)
class TrialCurves:
    """One model's training run.

    Attributes:
        name: Of the curriculum, or of the reference model.
        metrics: Its `metrics.jsonl`.
        stages: In order.
        steps: Optimizer steps.
        batch_size: Rows of a global batch.
        sequence_length: Tokens a row predicts.
    """

    name: str
    metrics: Path
    stages: tuple[StageSteps, ...]
    steps: int
    batch_size: int
    sequence_length: int

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.sequence_length


def read_trial_curves(folder: Path, name: str) -> TrialCurves | None:
    """The training run in `folder`, or None where there is none."""
    if not (folder / "metrics.jsonl").exists() or not (folder / "curriculum.json").exists():
        return None
    trial_record = read_json(folder / "curriculum.json")
    stops = [stage["last_step"] for stage in trial_record["stages"]]  # whole steps, rounded up
    stages = tuple(
        StageSteps(stage["name"], start, stop)
        for stage, start, stop in zip(trial_record["stages"], [0, *stops], stops, strict=False)
    )
    return TrialCurves(
        name,
        folder / "metrics.jsonl",
        stages,
        trial_record["steps"],
        trial_record["batch_size"],
        trial_record["sequence_length"],
    )


def query_metrics(path: Path, sql: str, *parameters: Any) -> list[dict[str, Any]]:
    """Rows of a query over `metrics`, the lines of a `metrics.jsonl`."""
    with duckdb.connect() as connection:
        cursor = connection.execute(
            f"WITH metrics AS (FROM {json_lines_table(path, COLUMNS)}) {sql}", parameters
        )
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def thinned_series(arm: TrialCurves, points: int = POINTS) -> list[dict[str, Any]]:
    """At most `points` rows of arm, tokens, loss and tokens_per_second, averaged over equal spans.

    A span's speed is the median of its steps; its loss is the mean of the finite ones.
    """
    return query_metrics(
        arm.metrics,
        """
        SELECT ? AS arm, CAST(max(tokens) AS BIGINT) AS tokens,
               avg(loss) FILTER (isfinite(loss)) AS loss,
               median(tokens_per_second) FILTER (isfinite(tokens_per_second)) AS tokens_per_second
        FROM metrics GROUP BY step * ? // ? HAVING loss IS NOT NULL ORDER BY tokens
        """,
        arm.name,
        points,
        arm.steps,
    )


def mixture_series(arm: TrialCurves, points: int = 160) -> list[dict[str, Any]]:
    """Rows of arm, tokens, quadrant and share: what the batches were made of."""
    return query_metrics(
        arm.metrics,
        """
        , spans AS (SELECT step * ? // ? AS span, max(tokens) AS tokens, count(*) AS steps
                    FROM metrics GROUP BY span),
        cells AS (SELECT step * ? // ? AS span, unnest(map_entries(mixture)) AS entry
                  FROM metrics)
        SELECT ? AS arm, CAST(any_value(tokens) AS BIGINT) AS tokens, entry.key AS quadrant,
               sum(entry.value) / any_value(steps) AS share
        FROM spans JOIN cells USING (span) GROUP BY span, quadrant ORDER BY span, quadrant
        """,
        points,
        arm.steps,
        points,
        arm.steps,
        arm.name,
    )


def stage_bands(arm: TrialCurves) -> list[dict[str, Any]]:
    """Rows of name, start and end (tokens seen) of every stage."""
    return [
        {
            "name": stage.name,
            "start": stage.start * arm.tokens_per_step,
            "end": stage.stop * arm.tokens_per_step,
            "shade": index % 2,
        }
        for index, stage in enumerate(arm.stages)
    ]


def mean_training_loss(arm: TrialCurves, start: int, stop: int) -> float | None:
    """Mean training loss over steps [start, stop), in nats per token."""
    rows = query_metrics(
        arm.metrics,
        """
        SELECT avg(loss) FILTER (isfinite(loss)) AS loss FROM metrics WHERE step >= ? AND step < ?
        """,
        start,
        stop,
    )
    return rows[0]["loss"]


@dataclasses.dataclass(frozen=True)
class TrainingDrop:
    """The training loss on the two sides of a stage's beginning, in nats per token.

    Attributes:
        stage: The stage that begins.
        step: Updates made before it.
        before: Mean over a window before; the very first step's loss for the first stage.
        after: Mean over a window after.
    """

    stage: str
    step: int
    before: float | None
    after: float | None


def training_drops(arm: TrialCurves) -> list[TrainingDrop]:
    """One drop for each stage. [ours]

    The two windows lie `GAP` of the run away from the boundary, because a smooth transition mixes
    both stages beside it, and are `WINDOW` of the run long; neither is more than a quarter of its
    stage.
    """

    def spans(stage: StageSteps) -> tuple[int, int]:
        quarter = (stage.stop - stage.start) // 4
        gap, window = math.ceil(GAP * arm.steps), math.ceil(WINDOW * arm.steps)
        return min(gap, quarter), max(min(window, quarter), 1)

    drops = []
    for previous, stage in zip([None, *arm.stages], arm.stages, strict=False):
        gap, window = spans(stage)
        after = mean_training_loss(arm, stage.start + gap, stage.start + gap + window)
        if previous is None:
            before = mean_training_loss(arm, 0, 1)
        else:
            gap, window = spans(previous)
            before = mean_training_loss(arm, stage.start - gap - window, stage.start - gap)
        drops.append(TrainingDrop(stage.name, stage.start, before, after))
    return drops


@dataclasses.dataclass(frozen=True)
class Boundary:
    """Size of gradients and updates on the two sides of a stage's beginning.

    Attributes:
        stage: The stage that begins.
        step: Updates made before it.
        grad_norm: Mean norm before and after; None for runs that did not note it.
        update_norm: The same of the updates.
    """

    stage: str
    step: int
    grad_norm: tuple[float | None, float | None]
    update_norm: tuple[float | None, float | None]


def boundary_norms(arm: TrialCurves) -> list[Boundary]:
    """One for each stage but the first. [ours]

    Means are over `WINDOW` of the run right before and right after, at most a quarter of the stage.
    """

    def mean(start: int, stop: int) -> dict[str, float | None]:
        return query_metrics(
            arm.metrics,
            """
            SELECT avg(grad_norm) FILTER (isfinite(grad_norm)) AS grad,
                   avg(update_norm) FILTER (isfinite(update_norm)) AS update
            FROM metrics WHERE step >= ? AND step < ?
            """,
            start,
            stop,
        )[0]

    found = []
    for previous, stage in itertools.pairwise(arm.stages):
        spans = [
            max(min(math.ceil(WINDOW * arm.steps), (s.stop - s.start) // 4), 1)
            for s in (previous, stage)
        ]
        before = mean(stage.start - spans[0], stage.start)
        after = mean(stage.start, stage.start + spans[1])
        norms = [(before[key], after[key]) for key in ("grad", "update")]
        found.append(Boundary(stage.name, stage.start, *norms))
    return found


def training_speed(arm: TrialCurves) -> dict[str, float | None]:
    """How much was trained how fast: one number for each key.

    Returns:
        steps, tokens, seconds (spent in steps), tokens_per_second and mfu (of the median step; mfu
        is None where the device's peak is unknown), goodput (share of the time of all attempts
        that was spent in steps; an attempt begins with a step that is not timed), and final_loss,
        the mean over the last twentieth of the steps.
    """
    return query_metrics(
        arm.metrics,
        """
        , numbered AS (SELECT *, count(*) FILTER (seconds IS NULL) OVER (ORDER BY step) AS attempt
                       FROM metrics),
        attempts AS (SELECT sum(seconds) AS in_steps, arg_max(goodput, step) AS goodput
                     FROM numbered GROUP BY attempt)
        SELECT CAST(count(*) AS BIGINT) AS steps, CAST(max(tokens) AS BIGINT) AS tokens,
               sum(seconds) AS seconds, median(tokens_per_second) AS tokens_per_second,
               median(mfu) AS mfu,
               (SELECT sum(in_steps) / sum(in_steps / goodput) FROM attempts WHERE goodput > 0)
               AS goodput,
               avg(loss) FILTER (isfinite(loss) AND step >= 0.95 * ?) AS final_loss
        FROM metrics
        """,
        arm.steps,
    )[0]
