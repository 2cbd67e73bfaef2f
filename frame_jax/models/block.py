"""One layer of the decoder: a mixer and a feed-forward around the residual stream.

Each mixer and each feed-forward is a module of its own with two functions: `init_params`, which
makes its parameters, and `apply`, which computes it.
"""

from __future__ import annotations

from jax import Array

from frame_jax.config.models import LayerSpec, ModelConfig
from frame_jax.models import attention, feed_forward_dense, feed_forward_experts, mixer_mamba2
from frame_jax.models.feed_forward_experts import RouterStatistics
from frame_jax.models.layers import (
    LayerContext,
    Param,
    ParamInitializer,
    layer_norm,
    rms_norm,
    save_activation,
)
from frame_jax.parallel.sharding import constrain_sharding

MIXERS = {"attention": attention, "mamba2": mixer_mamba2}
FEED_FORWARDS = {"dense": feed_forward_dense, "experts": feed_forward_experts}


def init_params(c: ModelConfig, spec: LayerSpec, init: ParamInitializer) -> dict[str, Param]:
    """Makes the parameters of equal layers, by name."""
    mixer = MIXERS[spec.mixer]
    params = init.norm(mixer.NORM, c.hidden_size, c.norm) | mixer.init_params(c, init)
    if spec.feed_forward != "none":
        params |= init.norm("mlp_norm", c.hidden_size, c.norm)
        params |= FEED_FORWARDS[spec.feed_forward].init_params(c, init)
    return params


def apply_layer(
    c: ModelConfig, spec: LayerSpec, p: dict[str, Array], x: Array, context: LayerContext
) -> tuple[Array, RouterStatistics | None]:
    """Applies one layer.

    Args:
        c: The model.
        spec: The layer's mixer and feed-forward.
        p: The layer's parameters.
        x: [B, T, D], compute dtype.
        context: What all layers read.

    Returns:
        [B, T, D], and its router's statistics; None without experts, or without a loss mask.
    """
    mixer = MIXERS[spec.mixer]
    x = constrain_sharding(x, "batch", None, None)
    mixed = mixer.apply(c, p, sublayer_input(c, p, mixer.NORM, x), context)
    after = x + sublayer_output(c, p, mixer.NORM, mixed)
    if not c.parallel_residual:
        x = after = save_activation(constrain_sharding(after, "batch", None, None))
    if spec.feed_forward == "none":
        return after, None
    feed_forward = FEED_FORWARDS[spec.feed_forward]
    out, statistics = feed_forward.apply(c, p, sublayer_input(c, p, "mlp_norm", x), context)
    return after + sublayer_output(c, p, "mlp_norm", out), statistics


def sublayer_input(c: ModelConfig, p: dict[str, Array], norm: str, x: Array) -> Array:
    """What a mixer or a feed-forward reads of the residual stream `x`."""
    return x if c.norm_position == "after" else apply_norm(c, p, norm, x)


def sublayer_output(c: ModelConfig, p: dict[str, Array], norm: str, x: Array) -> Array:
    """What a mixer or a feed-forward that computed `x` adds to the residual stream."""
    if c.norm_position == "after":
        x = apply_norm(c, p, norm, x)
    return x if c.residual_multiplier == 1 else x * x.dtype.type(c.residual_multiplier)


def apply_norm(c: ModelConfig, p: dict[str, Array], name: str, x: Array) -> Array:
    """`x` after the norm of that name."""
    if c.norm == "layer":
        return layer_norm(x, p[name], p[f"{name}_bias"], c.norm_eps)
    return rms_norm(x, p[name], c.norm_eps)
