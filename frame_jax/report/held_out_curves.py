"""Losses of arms as points of curves: held-out ones at kept checkpoints, those on training rows."""

import bisect
import dataclasses
from collections.abc import Sequence

from frame_jax.evaluation.results import TrialResult, WeightsResult


@dataclasses.dataclass(frozen=True)
class LossPoint:
    """The loss of an arm on a slice of the held-out split at a checkpoint.

    Attributes:
        arm: The arm.
        step: The checkpoint.
        tokens: Training tokens seen at it.
        slice: See `evaluation.results.WeightsResult.slices`.
        nll: Nats per token.
        bits_per_byte: The same in bits, by byte.
        difference: `nll` minus the baseline's, where that was asked for.
    """

    arm: str
    step: int
    tokens: int
    slice: str
    nll: float
    bits_per_byte: float
    difference: float | None = None


@dataclasses.dataclass(frozen=True)
class TrainingRowPoint:
    """An arm against the baseline on the training rows of a span of its run, in whose middle it had
    seen `tokens` training tokens: nats per token, mean over seeds."""

    arm: str
    tokens: int
    difference: float


def loss_curves(results: dict[str, TrialResult], from_start: bool = False) -> list[LossPoint]:
    """The losses of every arm at every kept checkpoint.

    Initial weights are left out unless asked for: next to the loss of random ones, all later ones
    look alike.
    """
    return [
        LossPoint(arm, point.step, point.tokens, name, loss.nll_per_token, loss.bits_per_byte)
        for arm, result in results.items()
        for point in result.checkpoints
        if point.step > 0 or from_start
        for name, loss in point.slices.items()
    ]


def difference_curves(curves: Sequence[LossPoint], baseline: str) -> list[LossPoint]:
    """The points of the other arms with their difference to the baseline's.

    Checkpoints that the baseline has not at the same number of tokens are left out.
    """
    base = {(p.tokens, p.slice): p.nll for p in curves if p.arm == baseline}
    return [
        dataclasses.replace(point, difference=point.nll - base[point.tokens, point.slice])
        for point in curves
        if point.arm != baseline and (point.tokens, point.slice) in base
    ]


def checkpoints_around(
    result: TrialResult, step: int
) -> tuple[WeightsResult | None, WeightsResult | None]:
    """The last checkpoint at or before `step`, and the first one after it."""
    points = result.checkpoints
    index = bisect.bisect_right([point.step for point in points], step)
    return points[index - 1] if index else None, points[index] if index < len(points) else None
