"""One layer of the decoder: a mixer and a feed-forward around the residual stream.

Each mixer and each feed-forward is two functions: one makes its parameters, one computes it. Those
of the dense feed-forward are here, of the others in a module of their own.
"""

from collections.abc import Callable

from flax import nnx
from jax import Array

from frame_jax.config.models import LayerSpec, ModelConfig
from frame_jax.models import attention, feed_forward_experts, mixer_mamba2
from frame_jax.models.feed_forward_experts import RouterStatistics
from frame_jax.models.layers import (
    LayerContext,
    ParamInitializer,
    gelu,
    layer_norm,
    matmul,
    recompute_in_backward,
    rms_norm,
    save_activation,
    swiglu,
)
from frame_jax.parallel.sharding import constrain_sharding, platform

MIXERS = {"attention": attention, "mamba2": mixer_mamba2}


def init_dense_params(c: ModelConfig, init: ParamInitializer) -> dict[str, nnx.Param]:
    """Makes the matrices of a dense feed-forward, and biases where the model has them."""
    params = init.feed_forward(c.hidden_size, c.intermediate_size, gated=c.activation == "swiglu")
    if c.bias:
        widths = {name: params[name].get_value().shape[-1] for name in params}
        params |= {f"{name}_bias": init.vector(width, 0.0) for name, width in widths.items()}
    return params


def apply_dense(
    c: ModelConfig, p: dict[str, Array], x: Array, context: LayerContext
) -> tuple[Array, None]:
    """Applies SwiGLU, or GELU without a gate: [B, T, D] -> [B, T, D], and no statistics."""

    def linear(x: Array, name: str) -> Array:
        y = matmul(x, p[name])
        return y + p[f"{name}_bias"].astype(y.dtype) if c.bias else y

    def down(*wide: Array) -> Array:
        return linear(gelu(*wide) if c.activation == "gelu" else swiglu(*wide), "down")

    names = ("up",) if c.activation == "gelu" else ("gate", "up")
    wide = [save_activation(linear(x, name)) for name in names]
    # A CPU makes the last product's operand again sooner than it keeps it; a TPU does not.
    return (recompute_in_backward(down) if platform() == "cpu" else down)(*wide), None


FEED_FORWARDS = {
    "dense": (init_dense_params, apply_dense),
    "experts": (feed_forward_experts.init_params, feed_forward_experts.apply),
}


def init_params(c: ModelConfig, spec: LayerSpec, init: ParamInitializer) -> dict[str, nnx.Param]:
    """Makes the parameters of equal layers, by name."""
    mixer = MIXERS[spec.mixer]
    params = init.norm(mixer.NORM, c.hidden_size, c.norm) | mixer.init_params(c, init)
    if spec.feed_forward != "none":
        params |= init.norm("mlp_norm", c.hidden_size, c.norm)
        params |= FEED_FORWARDS[spec.feed_forward][0](c, init)
    return params


def apply_layer(
    c: ModelConfig,
    spec: LayerSpec,
    gather: Callable[[dict[str, Array]], dict[str, Array]] | None,
    x: Array,
    p: dict[str, Array],
    context: LayerContext,
) -> tuple[Array, RouterStatistics | None]:
    """Applies one layer to `x`, [B, T, D] in the compute dtype.

    `gather` makes the parameters whole, where `p` holds shards of them.

    Returns:
        [B, T, D], and its router's statistics; None without experts, or without a loss mask.
    """
    p = p if gather is None else gather(p)
    mixer = MIXERS[spec.mixer]
    x = constrain_sharding(x, "batch", None, None)
    mixed = mixer.apply(c, p, sublayer_input(c, p, mixer.NORM, x), context)
    after = x + sublayer_output(c, p, mixer.NORM, mixed)
    if not c.parallel_residual:
        x = after = save_activation(constrain_sharding(after, "batch", None, None))
    if spec.feed_forward == "none":
        return after, None
    apply = FEED_FORWARDS[spec.feed_forward][1]
    out, statistics = apply(c, p, sublayer_input(c, p, "mlp_norm", x), context)
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
