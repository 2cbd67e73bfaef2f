"""Averages of a model's weights: what training and checkpoints both know of them."""

from __future__ import annotations

from typing import Any, NamedTuple


class WeightAverage(NamedTuple):
    """A moving average of the weights as the last part of an optimizer's state.

    Attributes:
        average: The averaged parameters, float32.
    """

    average: Any
