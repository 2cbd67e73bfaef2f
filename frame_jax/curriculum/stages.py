"""Resolves a curriculum over existing rows to a `DataSchedule`: stages with exact row counts.

Every row is used exactly once an epoch. The schedule says how many rows of every quadrant are asked
for up to any row of an epoch, in closed form; `selection.py` turns that into whole rows.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

from frame_jax.config.curriculum import CurriculumConfig, StageConfig
from frame_jax.curriculum.allotment import allot_rows, split_proportionally
from frame_jax.errors import UserError


@dataclass(frozen=True)
class Stage:
    """Rows [start, stop) of an epoch, of which `quadrant_rows[c]` belong to quadrant c.

    Around a sigmoid boundary neighbouring stages mix; their totals stay as stated here.
    """

    name: str
    start: int
    stop: int
    quadrant_rows: tuple[int, ...]


@dataclass(frozen=True)
class DataSchedule:
    """The order of a whole run.

    Attributes:
        available: Rows of each quadrant on disk.
        stages: The stages of one epoch, in order; stop of one is start of the next.
        steepness: k of the sigmoid in 1/epoch; infinite for hard transitions.
        epochs: Times the stages are gone through.
    """

    quadrants: tuple[str, ...]
    available: tuple[int, ...]
    stages: tuple[Stage, ...]
    steepness: float
    epochs: int

    @property
    def epoch_rows(self) -> int:
        return self.stages[-1].stop

    @property
    def rows(self) -> int:
        return self.epoch_rows * self.epochs

    def steps(self, batch_size: int) -> int:
        """Optimizer steps; the last batch may be filled up with padding rows."""
        return -(-self.rows // batch_size)

    def stage_at(self, row: int) -> int:
        """Index of the stage within which a row of the run lies."""
        stops = [stage.stop for stage in self.stages]
        return int(np.searchsorted(stops, row % self.epoch_rows, side="right"))

    @property
    def boundaries(self) -> np.ndarray:
        """int64 [epochs * stages]: rows of the run at which its stages end."""
        stops = np.array([stage.stop for stage in self.stages], np.int64)
        return (np.arange(self.epochs)[:, None] * self.epoch_rows + stops).ravel()

    @property
    def run_stages(self) -> list[tuple[str, int, int]]:
        """Name, first row and end of each stage of the run, those of every epoch."""
        names, stops = [stage.name for stage in self.stages], self.boundaries.tolist()
        return list(zip(names * self.epochs, [0, *stops[:-1]], stops, strict=True))

    def stage_starts(self, batch_size: int) -> list[int]:
        """The first step of each stage of the run, rising; a stage inside a step begins with it."""
        return sorted({0, *(self.boundaries[:-1] // batch_size).tolist()})

    @property
    def fingerprint(self) -> str:
        """Changes whenever any row could come at another position under the same seed."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:16]

    def cumulative(self, rows: np.ndarray) -> np.ndarray:
        """Scheduled rows of each quadrant before rows of an epoch: float64 [len(rows), quadrants].

        Stage j has weight w_j(p) = s(k(p - b_{j-1})) - s(k(p - b_j)) at progress p, with s the
        logistic, the first and last stage open-ended [ours: method, decision 4]. Its integral is a
        difference of softplus terms. The centres b_j are placed so that every stage integrates to
        its own rows over the epoch, which is what makes the counts exact under any width; away
        from the ends of the run they are the stage boundaries themselves.
        """
        total = self.epoch_rows
        progress = np.asarray(rows, np.float64) / total
        asked = np.zeros((len(progress), len(self.quadrants)))
        left = progress  # integral of s(k(p - b_{j-1})) from 0 to p; b_0 is minus infinity
        for stage in self.stages:
            right = handover_integral(progress, stage.stop / total, self.steepness)
            if stage.stop > stage.start:
                mixture = np.array(stage.quadrant_rows) / (stage.stop - stage.start)
                asked += ((left - right) * total)[:, None] * mixture
            left = right
        return asked

    def mixture(self, start: int, stop: int) -> np.ndarray:
        """Scheduled shares among rows [start, stop) of an epoch: float64 [quadrants]."""
        first, last = self.cumulative(np.array([start, stop]))
        return (last - first) / (stop - start)


def handover_integral(progress: np.ndarray, share: float, steepness: float) -> np.ndarray:
    """Integral from 0 to `progress` of s(k(q - b)), with b such that it is 1 - `share` at 1.

    Solving softplus(k(1 - b)) - softplus(-kb) = k(1 - share) for b gives
    b = share + (log(1 - e^(-k share)) - log(1 - e^(-k(1 - share)))) / k.
    """
    if share >= 1:
        return np.zeros_like(progress)
    if math.isinf(steepness):
        return np.maximum(progress - share, 0.0)
    k, share = steepness, max(share, 1e-12)
    centre = share + (math.log(-math.expm1(-k * share)) - math.log(-math.expm1(k * share - k))) / k
    return (np.logaddexp(0.0, k * (progress - centre)) - np.logaddexp(0.0, -k * centre)) / k


def resolve_curriculum(
    curriculum: CurriculumConfig,
    quadrant_rows: Mapping[str, int],
    *,
    batch_size: int,
    sequence_length: int,
    steps: int | None = None,
) -> DataSchedule:
    """Makes the schedule of an expanded curriculum (see `presets.expand_curriculum`).

    The order of `quadrant_rows`, which are the rows of every quadrant on disk, is part of it. Rows
    of a step and tokens that a row predicts are for stage lengths in steps and in tokens. Without
    `steps` it goes through all rows; fewer steps use the same share of every quadrant, the same
    rows under every curriculum.

    Raises:
        UserError: for quadrants that do not exist or are never used, and for lengths that the rows
            of the quadrants cannot fill.
    """
    quadrants = tuple(quadrant_rows)
    available = np.array([quadrant_rows[quadrant] for quadrant in quadrants], np.int64)
    epoch_rows = rows_per_epoch(int(available.sum()), curriculum.epochs, batch_size, steps)
    columns = split_proportionally(epoch_rows, available)

    names = [stage.name or "+".join(stage.weights) for stage in curriculum.stages]
    weights = weight_matrix(curriculum.stages, names, quadrants, columns)
    lengths = stage_lengths(curriculum.stages, names, epoch_rows, batch_size, sequence_length)
    rows = allot_rows(weights, columns, lengths, names, quadrants)

    folds = curriculum.folds or 1
    passes = np.diff(np.arange(folds + 1)[:, None, None] * rows // folds, axis=0)
    stages, start = [], 0
    for fold in range(folds):
        for name, counts in zip(names, passes[fold], strict=True):
            label = f"{name} {fold + 1}/{folds}" if folds > 1 else name
            stop = start + int(counts.sum())
            stages.append(Stage(label, start, stop, tuple(int(n) for n in counts)))
            start = stop
    steepness = math.inf
    if curriculum.transition == "sigmoid":
        assert curriculum.width is not None  # set by presets.expand
        steepness = 2 * math.log(0.88 / 0.12) / curriculum.width
    return DataSchedule(
        quadrants, tuple(int(n) for n in available), tuple(stages), steepness, curriculum.epochs
    )


def shuffled_schedule(
    quadrant_rows: Mapping[str, int], batch_size: int, steps: int | None = None
) -> DataSchedule:
    """All rows in one random order, for as many epochs as `steps` need; trains reference models."""
    rows = max(sum(quadrant_rows.values()), 1)
    curriculum = CurriculumConfig(
        stages=[StageConfig({quadrant: 1.0 for quadrant in quadrant_rows})],
        transition="hard",
        epochs=-(-(steps or 0) * batch_size // rows) or 1,
    )
    return resolve_curriculum(
        curriculum, quadrant_rows, batch_size=batch_size, sequence_length=1, steps=steps
    )


def rows_per_epoch(available: int, epochs: int, batch_size: int, steps: int | None) -> int:
    """Number of rows that an epoch uses, of those available."""
    if available == 0:
        raise UserError("there are no training rows: the partition phase found no documents")
    longest = -(-available * epochs // batch_size)
    if steps is not None and steps > longest:
        raise UserError(
            f"training.steps asks for {steps:,} steps of {batch_size:,} rows, but the quadrants "
            f"hold {available:,} rows, {longest:,} steps in {epochs} epoch(s): lower the steps, or "
            f"set the curriculum's epochs to {-(-steps * batch_size // available)}"
        )
    rows = available * epochs if steps is None else min(steps * batch_size, available * epochs)
    if rows < epochs:
        raise UserError(f"{rows:,} training rows are too few for {epochs} epochs")
    return rows // epochs


def weight_matrix(
    stages: list[StageConfig], names: list[str], quadrants: tuple[str, ...], columns: np.ndarray
) -> np.ndarray:
    """Relative sampling rates: float64 [stages, quadrants]."""
    for name, stage in zip(names, stages, strict=True):
        if unknown := [quadrant for quadrant in stage.weights if quadrant not in quadrants]:
            raise UserError(
                f"stage {name}: there is no quadrant {unknown[0]!r}; there are "
                f"{', '.join(quadrants)}"
            )
    weights = np.array([[stage.weights.get(q, 0.0) for q in quadrants] for stage in stages])
    if unused := np.array(quadrants)[(columns > 0) & ~weights.any(0)].tolist():
        raise UserError(
            f"no stage uses {', '.join(unused)}, and every row is used exactly once an epoch: give "
            "each quadrant a positive weight in some stage"
        )
    return weights


def stage_lengths(
    stages: list[StageConfig],
    names: list[str],
    epoch_rows: int,
    batch_size: int,
    sequence_length: int,
) -> np.ndarray | None:
    """Rows of each stage, int64 [stages] with sum `epoch_rows`; None where no stage gives any."""
    asked = np.full(len(stages), np.nan)
    for j, stage in enumerate(stages):
        if stage.fraction is not None:
            asked[j] = stage.fraction * epoch_rows
        elif stage.tokens is not None:
            asked[j] = stage.tokens / sequence_length
        elif stage.steps is not None:
            asked[j] = stage.steps * batch_size
    blank = np.isnan(asked)
    if blank.all():
        return None
    rest = epoch_rows - asked[~blank].sum()
    listing = ", ".join(f"{n} {r:,.0f}" for n, r in zip(names, asked, strict=True) if r == r)
    if blank.any():
        if rest < 1:
            raise UserError(
                f"stage {names[int(blank.argmax())]} takes the rest, but the other stages "
                f"({listing} rows) leave nothing of the {epoch_rows:,} rows of an epoch"
            )
        asked[blank] = rest
    elif abs(rest) > batch_size:
        raise UserError(
            f"the stages ask for {asked.sum():,.0f} rows ({listing}), but an epoch has "
            f"{epoch_rows:,}, each used exactly once: change a length, or leave one stage without "
            "a length to take the rest"
        )
    ends = np.minimum(np.rint(np.cumsum(asked)).astype(np.int64), epoch_rows)
    ends[-1] = epoch_rows
    return np.diff(ends, prepend=0)
