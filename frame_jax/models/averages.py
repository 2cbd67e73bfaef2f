"""Averages of a model's weights: one kept while training, and means of several checkpoints."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import numpy as np


class EmaState(NamedTuple):
    """A moving average of the weights as the last part of an optimizer's state.

    Attributes:
        ema: The averaged parameters, float32.
    """

    ema: Any


def mean_of_checkpoints(checkpoints: Iterable[Any], decay: float | None = None) -> Any:
    """Averages trees of float32 arrays, which are read one after the other, oldest first.

    Args:
        checkpoints: Trees of the same shape; one is held beside the running mean at a time.
        decay: The weight of each by the weight of the one after it; None weighs all the same.
    """
    mean, total = None, 0.0
    for params in checkpoints:
        total = (1.0 if decay is None else decay) * total + 1.0
        if mean is None:
            mean = jax.tree.map(lambda leaf: np.array(leaf, np.float32), params)
            continue
        for kept, leaf in zip(jax.tree.leaves(mean), jax.tree.leaves(params), strict=True):
            kept += (np.asarray(leaf) - kept) * np.float32(1 / total)
    return mean
