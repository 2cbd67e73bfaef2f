"""The dense feed-forward layer: SwiGLU, or GELU without a gate."""

from __future__ import annotations

from jax import Array

from frame_jax.config.models import ModelConfig
from frame_jax.models.layers import (
    LayerContext,
    Param,
    ParamInitializer,
    gelu,
    matmul,
    recompute_in_backward,
    save_activation,
    swiglu,
)
from frame_jax.parallel.sharding import platform


def init_params(c: ModelConfig, init: ParamInitializer) -> dict[str, Param]:
    """Makes the matrices, and biases where the model has them."""
    params = init.feed_forward(c.hidden_size, c.intermediate_size, gated=c.activation == "swiglu")
    if c.bias:
        widths = {name: params[name].shape[-1] for name in params}
        params |= {f"{name}_bias": init.vector(width, 0.0) for name, width in widths.items()}
    return params


def apply(
    c: ModelConfig, p: dict[str, Array], x: Array, context: LayerContext
) -> tuple[Array, None]:
    """Applies the layer: [B, T, D] -> [B, T, D], and no statistics."""

    def linear(x: Array, name: str) -> Array:
        y = matmul(x, p[name])
        return y + p[f"{name}_bias"].astype(y.dtype) if c.bias else y

    def down(*wide: Array) -> Array:
        return linear(gelu(*wide) if c.activation == "gelu" else swiglu(*wide), "down")

    names = ("up",) if c.activation == "gelu" else ("gate", "up")
    wide = [save_activation(linear(x, name)) for name in names]
    # A CPU makes the last product's operand again sooner than it keeps it; a TPU does not.
    return (recompute_in_backward(down) if platform() == "cpu" else down)(*wide), None
