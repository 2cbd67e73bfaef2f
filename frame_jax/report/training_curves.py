"""Curves and means from the metrics of training runs.

DuckDB streams the metrics, so a run of a million steps needs no more memory, and makes no larger a
page, than a run of a thousand.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frame_jax.run.trial_record import FILE, TrialRecord, load_trial_record
from frame_jax.sql import Row, json_lines_table, query

POINTS = 500  # of a curve
GAP, WINDOW = 0.04, 0.04  # share of the run beside a boundary that is left out, that is averaged
NUMBERS = ("loss", "grad_norm", "update_norm", "seconds", "tokens_per_second", "mfu", "goodput")
COLUMNS = {"step": "BIGINT", "tokens": "BIGINT", "mixture": "MAP(VARCHAR, DOUBLE)"}
COLUMNS |= dict.fromkeys(NUMBERS, "DOUBLE")


@dataclass(frozen=True)
class StageSteps:
    """Steps [start, stop) of a run; `start` is also the number of updates made before it."""

    name: str
    start: int
    stop: int

    def span(self, share: float, steps: int) -> int:
        """Steps that are this share of a run of `steps` steps, at most a quarter of the stage."""
        return min(math.ceil(share * steps), (self.stop - self.start) // 4)


@dataclass(frozen=True)
class TrainingRun:
    """A training run of the arm, or of the reference model, `name`: its folder and its record."""

    name: str
    folder: Path
    record: TrialRecord

    @property
    def stages(self) -> list[StageSteps]:
        """Its stages in whole steps, in order; a step that two stages share is the first one's."""
        stops = [stage.last_step for stage in self.record.stages]
        return [
            StageSteps(stage.name, start, stage.last_step)
            for stage, start in zip(self.record.stages, [0, *stops], strict=False)
        ]

    def query(self, kind: Callable[..., Row], sql: str, *parameters: Any) -> list[Row]:
        """Runs a query over `metrics`, the lines of `metrics.jsonl`; see `sql.query`."""
        metrics = json_lines_table(self.folder / "metrics.jsonl", COLUMNS)
        return query(kind, f"WITH metrics AS (FROM {metrics}) {sql}", *parameters)


def read_training_run(folder: Path, name: str) -> TrainingRun | None:
    """Reads the record of the training run in `folder`; None where there is none."""
    if not (folder / "metrics.jsonl").exists() or not (folder / FILE).exists():
        return None
    return TrainingRun(name, folder, load_trial_record(folder))


@dataclass(frozen=True)
class CurvePoint:
    """A span of the run `arm` that ends at `tokens`; `loss` is the mean of the finite ones, in nats
    per token."""

    arm: str
    tokens: int
    loss: float


def thinned_curve(run: TrainingRun, points: int = POINTS) -> list[CurvePoint]:
    """Averages the metrics of a run over at most `points` equal spans."""
    return run.query(
        CurvePoint,
        """
        SELECT ? AS arm, CAST(max(tokens) AS BIGINT) AS tokens,
               avg(loss) FILTER (isfinite(loss)) AS loss
        FROM metrics GROUP BY step * ? // ? HAVING loss IS NOT NULL ORDER BY tokens
        """,
        run.name,
        points,
        run.record.steps,
    )


@dataclass(frozen=True)
class MixturePoint:
    """The share that a quadrant has in the rows of the batches of a span that ends at `tokens`."""

    tokens: int
    quadrant: str
    share: float


def mixture_curve(run: TrainingRun, points: int = 160) -> list[MixturePoint]:
    """Averages the mixture of the batches of a run over at most `points` equal spans."""
    return run.query(
        MixturePoint,
        """
        , spans AS (SELECT step * ? // ? AS span, max(tokens) AS tokens, count(*) AS steps
                    FROM metrics GROUP BY span),
        shares AS (SELECT step * ? // ? AS span, unnest(map_entries(mixture)) AS entry
                   FROM metrics)
        SELECT CAST(any_value(tokens) AS BIGINT) AS tokens, entry.key AS quadrant,
               sum(entry.value) / any_value(steps) AS share
        FROM spans JOIN shares USING (span) GROUP BY span, quadrant ORDER BY span, quadrant
        """,
        *(points, run.record.steps, points, run.record.steps),
    )


def training_drops(run: TrainingRun) -> list[tuple[float | None, float | None]]:
    """Mean training loss, nats per token, before and after each stage begins; None where no loss is
    finite. Reads the file once. [ours]

    The windows are `WINDOW` of the run long and lie `GAP` of it away from the boundary, because a
    smooth transition mixes both stages beside it; neither is more than a quarter of its stage.
    Before the first stage stands the very first step.
    """
    steps, windows = run.record.steps, list[tuple[int, int]]()
    before = 0, 1
    for stage in run.stages:
        length, gap = max(stage.span(WINDOW, steps), 1), stage.span(GAP, steps)
        start, stop = stage.start + gap, stage.stop - gap
        windows += [before, (start, start + length)]
        before = stop - length, stop
    rows = ", ".join(f"({number}, {start}, {stop})" for number, (start, stop) in enumerate(windows))
    asked = f"(VALUES {rows}) asked(number, start, stop)"
    sql = f"SELECT avg(loss) FILTER (isfinite(loss)) FROM {asked} LEFT JOIN metrics "
    sql += "ON step >= start AND step < stop GROUP BY number ORDER BY number"
    means = iter(run.query(lambda mean: mean, sql))
    return list(zip(means, means, strict=True))


@dataclass(frozen=True)
class TrainingSpeed:
    """How much was trained how fast.

    Attributes:
        steps: Optimizer steps.
        tokens: Training tokens.
        seconds: Spent in steps.
        tokens_per_second: Of the median step.
        mfu: Of the median step; None where the device's peak is unknown.
        goodput: Share of the time of all attempts that was spent in steps; an attempt begins with
            a step that is not timed.
        final_loss: Mean over the last twentieth of the steps, nats per token.
    """

    steps: int
    tokens: int
    seconds: float | None
    tokens_per_second: float | None
    mfu: float | None
    goodput: float | None
    final_loss: float | None


def training_speed(run: TrainingRun) -> TrainingSpeed:
    """Sums up the speed of a run."""
    return run.query(
        TrainingSpeed,
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
        run.record.steps,
    )[0]
