"""The update rule as an optax chain, its learning rate, and the shardings of its state."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from frame_jax.config.training import LRScheduleConfig, TrainingConfig
from frame_jax.models.transformer import Decoder


def decay_mask(axes: Any) -> Any:
    """True for parameters that weight decay shrinks: all but norms, embeddings and convolutions.

    `axes` is a tree of tuples of logical axis names, as `Decoder.axes()` gives it.
    """
    return jax.tree.map(
        lambda names: not {"norm", "vocab"} & set(names),
        axes,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def make_optimizer(
    config: TrainingConfig, decoder: Decoder, steps: int, stage_starts: Sequence[int] = (0,)
) -> optax.GradientTransformation:
    """Chains clipping by the global norm and the update rule."""
    o = config.optimizer
    settings: dict[str, Any] = {
        "learning_rate": lambda step: learning_rate(config.lr_schedule, step, steps, stage_starts),
        "eps": o.eps,
        "weight_decay": o.weight_decay,
        "mu_dtype": o.first_moment_dtype,
    }
    if o.kind == "adamw":
        settings |= {"b1": o.b1, "b2": o.b2, "mask": decay_mask(decoder.axes())}
        rule = optax.adamw(**settings)
    else:
        # The root mean square of an update is made that of AdamW's, so its learning rates carry
        # over (Liu et al. 2025, "Muon is scalable for LLM training", section 2.2).
        settings |= {"beta": o.b2, "adam_b1": o.b1, "adam_b2": o.b2, "consistent_rms": 0.2}
        matrix = optax.contrib.MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)
        settings["muon_weight_dimension_numbers"] = jax.tree.map(  # None: AdamW without decay
            lambda decays: matrix if decays else None, decay_mask(decoder.axes())
        )
        rule = optax.contrib.muon(**settings)
    return optax.chain(optax.clip_by_global_norm(o.max_grad_norm), rule)


def optimizer_shardings(
    optimizer: optax.GradientTransformation, params: Any, shardings: Any, mesh: Mesh
) -> Any:
    """Shardings of the optimizer's state: moments like their parameters, counters replicated.

    A moment is an array of a parameter's shape whose path in the state ends with the parameter's
    path in the model. (`optax.tree_map_params` finds none in a state that has been made from axes.)

    `params` is a tree of shapes, `shardings` the same tree with `NamedSharding` leaves.
    """
    replicated = NamedSharding(mesh, PartitionSpec())
    shapes = jax.tree_util.tree_flatten_with_path(params)[0]
    targets = {
        path: (leaf.shape, target)
        for (path, leaf), target in zip(shapes, jax.tree.leaves(shardings), strict=True)
    }

    def sharding_of(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        for start in range(len(path)):
            shape, target = targets.get(path[start:], (None, replicated))
            if shape == leaf.shape:
                return target
        return replicated

    state = jax.eval_shape(optimizer.init, params)
    return jax.tree_util.tree_map_with_path(sharding_of, state)


def learning_rate(
    config: LRScheduleConfig, step: ArrayLike, steps: int, stage_starts: Sequence[int] = (0,)
) -> jax.Array:
    """The learning rate of an update: float32, the shape of `step`.

    A linear warm-up goes from `initial` of the peak, before its first step, to the peak at its last
    one. `wsd` then stays at the peak, falls linearly over the steps before `decay_end`, and stays
    low; `cosine` and `linear` fall from the end of the warm-up. These end at `final_fraction` of
    the peak. `inverse_sqrt` falls as 1 / sqrt(step) does, to no less than that. With
    `restart_at_stages` all this happens in every stage, shares being shares of the stage:
    `constant` then warms up again at each stage start.

    `step` is the index of the update, from 0 to steps - 1, of any shape, `steps` are the updates of
    the whole run, `stage_starts` the first step of each stage, rising from 0.
    """
    starts = np.array(stage_starts if config.restart_at_stages else (0,))
    lengths = np.diff(np.append(starts, steps))
    stage = jnp.searchsorted(starts, jnp.asarray(step), side="right") - 1
    step = (jnp.asarray(step) - jnp.asarray(starts)[stage]).astype(jnp.float32)

    def share(fraction: float) -> jax.Array:
        """That share of the stage in steps, at least 1; the shape of `step`."""
        return jnp.asarray(np.maximum(1, np.round(fraction * lengths)), jnp.float32)[stage]

    warmup = share(config.warmup_fraction)
    rising = config.initial + (1 - config.initial) * jnp.minimum(1.0, (step + 1) / warmup)
    if config.kind == "constant":
        return config.peak * rising
    if config.kind == "inverse_sqrt":
        falling = jnp.sqrt(warmup / jnp.maximum(step + 1, warmup))
        return config.peak * rising * jnp.maximum(falling, config.final_fraction)
    if config.kind in ("cosine", "linear"):
        progress = jnp.clip((step - (warmup - 1)) / jnp.maximum(1, share(1) - warmup), 0, 1)
        falling = (
            1 - progress if config.kind == "linear" else 0.5 * (1 + jnp.cos(jnp.pi * progress))
        )
    elif config.decay_fraction == 0:
        falling = jnp.ones_like(step)
    else:
        decay, end = share(config.decay_fraction), share(config.decay_end)
        falling = 1 - jnp.clip((step - (end - 1 - decay)) / decay, 0, 1)
    return config.peak * rising * (config.final_fraction + (1 - config.final_fraction) * falling)
