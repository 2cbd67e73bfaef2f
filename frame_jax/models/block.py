"""One layer of the decoder: a mixer and a feed-forward around the residual stream.

Each mixer and each feed-forward is a module of its own with two functions: `init_params`, what it
has, and `apply_layer`, what it computes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from frame_jax.config.models import LayerSpec, ModelConfig
from frame_jax.models import (
    feed_forward_dense,
    feed_forward_experts,
    mixer_attention,
    mixer_mamba2,
)
from frame_jax.models.context import LayerContext
from frame_jax.models.layers import layer_norm, rms_norm, save_activation
from frame_jax.models.parameters import ParamInitializer
from frame_jax.models.router import RouterStatistics
from frame_jax.parallel.sharding import constrain_sharding

MIXERS = {"attention": mixer_attention, "mamba2": mixer_mamba2}
FEED_FORWARDS = {"dense": feed_forward_dense, "experts": feed_forward_experts}


def init_params(c: ModelConfig, spec: LayerSpec, init: ParamInitializer) -> dict[str, nnx.Param]:
    """The parameters of layers of one kind, by name."""
    mixer = MIXERS[spec.mixer]
    params = init.norm(mixer.NORM, c.hidden_size, c.norm) | mixer.init_params(c, init)
    if spec.feed_forward != "none":
        params |= init.norm("mlp_norm", c.hidden_size, c.norm)
        params |= FEED_FORWARDS[spec.feed_forward].init_params(c, init)
    return params


def apply_norm(c: ModelConfig, p: dict[str, jax.Array], name: str, x: jax.Array) -> jax.Array:
    """`x` after the norm of that name."""
    if c.norm == "layer":
        return layer_norm(x, p[name], p[f"{name}_bias"], c.norm_eps)
    return rms_norm(x, p[name], c.norm_eps)


def apply_layer(
    c: ModelConfig, spec: LayerSpec, p: dict[str, jax.Array], x: jax.Array, context: LayerContext
) -> tuple[jax.Array, RouterStatistics | None]:
    """One layer.

    Args:
        c: The model.
        spec: What the layer is.
        p: Its parameters.
        x: [B, T, D], compute dtype.
        context: What it needs to know about the tokens.

    Returns:
        [B, T, D], and what its router did, if it has one and somebody counts.
    """

    def sublayer(name: str, compute: Callable[[jax.Array], Any]) -> tuple[jax.Array, Any]:
        norm = functools.partial(apply_norm, c, p, name)
        if c.norm_position == "after":
            out, statistics = compute(x)
            out = norm(out)
        else:
            out, statistics = compute(norm(x))
        if c.residual_multiplier != 1:
            out *= out.dtype.type(c.residual_multiplier)
        return out, statistics

    mixer = MIXERS[spec.mixer]
    x = constrain_sharding(x, "batch", None, None)
    mixed, _ = sublayer(mixer.NORM, lambda x: (mixer.apply(c, p, x, context), None))
    if spec.feed_forward == "none":
        return save_activation(constrain_sharding(x + mixed, "batch", None, None)), None
    feed_forward = FEED_FORWARDS[spec.feed_forward]
    if c.parallel_residual:
        out, statistics = sublayer("mlp_norm", lambda x: feed_forward.apply(c, p, x, context))
        return x + mixed + out, statistics
    x = save_activation(constrain_sharding(x + mixed, "batch", None, None))
    out, statistics = sublayer("mlp_norm", lambda x: feed_forward.apply(c, p, x, context))
    return x + out, statistics
