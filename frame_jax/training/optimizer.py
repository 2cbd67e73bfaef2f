"""The update rule as an optax chain, and how its state is spread over the mesh."""

from __future__ import annotations

from typing import Any

import jax
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from frame_jax.config import TrainingConfig
from frame_jax.models.functional import Decoder
from frame_jax.training.schedules import learning_rate


def decay_mask(axes: Any) -> Any:
    """True for parameters that weight decay shrinks: all but norms and embeddings.

    Args:
        axes: Tree of tuples of logical axis names, as `Decoder.axes()` gives it.
    """
    return jax.tree.map(
        lambda names: "norm" not in names and "vocab" not in names,
        axes,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def make_optimizer(
    config: TrainingConfig, decoder: Decoder, steps: int
) -> optax.GradientTransformation:
    """Clipping by the global norm, then AdamW with decoupled decay."""
    o = config.optimizer
    return optax.chain(
        optax.clip_by_global_norm(o.clip_norm),
        optax.adamw(
            lambda step: learning_rate(config.schedule, step, steps),
            b1=o.b1,
            b2=o.b2,
            eps=o.eps,
            weight_decay=o.weight_decay,
            mask=decay_mask(decoder.axes()),
        ),
    )


def optimizer_shardings(
    optimizer: optax.GradientTransformation, params: Any, shardings: Any, mesh: Mesh
) -> Any:
    """Shardings of the optimizer's state: moments like their parameters, counters replicated.

    Args:
        optimizer: The update rule.
        params: Tree of parameter shapes.
        shardings: The same tree with `NamedSharding` leaves.
        mesh: The mesh.
    """
    replicated = NamedSharding(mesh, PartitionSpec())
    return optax.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        jax.eval_shape(optimizer.init, params),
        shardings,
        transform_non_params=lambda _: replicated,
    )
