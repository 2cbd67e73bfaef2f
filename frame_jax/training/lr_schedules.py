"""The learning rate: a pure function of the global step, the number of steps and the stages."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from frame_jax.config.training import LRScheduleConfig


def learning_rate(
    config: LRScheduleConfig, step: ArrayLike, steps: int, stage_starts: Sequence[int] = (0,)
) -> jax.Array:
    """The learning rate of an update.

    A linear warm-up reaches the peak at its last step; `wsd` then stays at the peak, falls linearly
    over the steps before `decay_end`, and stays low; `cosine` falls from the end of the warm-up.
    Both end at `final_fraction` of the peak. With `restart_at_stages` all this happens in every
    stage, shares being shares of the stage: `constant` then warms up again at each stage start.

    Args:
        config: Which schedule.
        step: Index of the update, from 0 to steps - 1; any shape.
        steps: Updates of the whole run.
        stage_starts: The first step of each stage, rising from 0.

    Returns:
        float32, the shape of `step`.
    """
    starts = np.array(stage_starts if config.restart_at_stages else (0,))
    lengths = np.diff(np.append(starts, steps))
    stage = jnp.searchsorted(starts, jnp.asarray(step), side="right") - 1
    step = (jnp.asarray(step) - jnp.asarray(starts)[stage]).astype(jnp.float32)

    def share(fraction: float) -> jax.Array:
        """That share of the stage in steps, at least 1; the shape of `step`."""
        return jnp.asarray(np.maximum(1, np.round(fraction * lengths)), jnp.float32)[stage]

    warmup = share(config.warmup_fraction)
    rising = jnp.minimum(1.0, (step + 1) / warmup)
    if config.kind == "constant":
        return config.peak * rising
    if config.kind == "cosine":
        progress = (step - (warmup - 1)) / jnp.maximum(1, share(1) - warmup)
        falling = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0, 1)))
    elif config.decay_fraction == 0:
        falling = jnp.ones_like(step)
    else:
        decay, end = share(config.decay_fraction), share(config.decay_end)
        falling = 1 - jnp.clip((step - (end - 1 - decay)) / decay, 0, 1)
    return config.peak * rising * (config.final_fraction + (1 - config.final_fraction) * falling)
