"""The learning rate: a pure function of the global step and the number of steps."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from frame_jax.config import ScheduleConfig


def learning_rate(config: ScheduleConfig, step: ArrayLike, steps: int) -> jax.Array:
    """The learning rate of an update.

    A linear warm-up reaches the peak at its last step; `wsd` then stays at the peak and falls
    linearly over the last steps; `cosine` falls from the end of the warm-up. Both are at
    `final_fraction` of the peak at the last step.

    Args:
        config: Which schedule.
        step: Index of the update, from 0 to steps - 1; any shape.
        steps: Updates of the whole run.

    Returns:
        float32, the shape of `step`.
    """
    step = jnp.asarray(step, jnp.float32)
    warmup = max(1, round(config.warmup_fraction * steps))
    rising = jnp.minimum(1.0, (step + 1) / warmup)
    if config.kind == "constant":
        return config.peak * rising
    last = steps - 1
    if config.kind == "cosine":
        progress = jnp.clip((step - (warmup - 1)) / max(1, last - (warmup - 1)), 0, 1)
        falling = 0.5 * (1 + jnp.cos(jnp.pi * progress))
    else:
        decay = max(1, round(config.decay_fraction * steps))
        falling = 1 - jnp.clip((step - (last - decay)) / decay, 0, 1)
        if config.decay_fraction == 0:
            falling = jnp.ones_like(step)
    return config.peak * rising * (config.final_fraction + (1 - config.final_fraction) * falling)
