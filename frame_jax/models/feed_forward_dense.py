"""The dense feed-forward layer: SwiGLU, or GELU without a gate."""

from __future__ import annotations

import jax
from flax import nnx

from frame_jax.config.models import ModelConfig
from frame_jax.models.context import Context
from frame_jax.models.layers import gelu, matmul, recomputed, saved, swiglu
from frame_jax.models.parameters import Maker
from frame_jax.parallel.sharding import platform


def parameters(c: ModelConfig, make: Maker) -> dict[str, nnx.Param]:
    """The matrices, and biases where the model has them."""
    hidden, inner = c.hidden_size, c.intermediate_size
    made = {}
    if c.activation == "swiglu":
        made["gate"] = make.matrix((hidden, inner), ("embed", "mlp"))
    made["up"] = make.matrix((hidden, inner), ("embed", "mlp"))
    made["down"] = make.matrix((inner, hidden), ("mlp", "embed"), make.residual)
    if c.bias:
        widths = {name: made[name].shape[-1] for name in made}
        made |= {f"{name}_bias": make.vector(width, 0.0) for name, width in widths.items()}
    return made


def apply(
    c: ModelConfig, p: dict[str, jax.Array], x: jax.Array, context: Context
) -> tuple[jax.Array, None]:
    """[B, T, D] -> [B, T, D]."""

    def linear(x: jax.Array, name: str) -> jax.Array:
        y = matmul(x, p[name])
        return y + p[f"{name}_bias"].astype(y.dtype) if c.bias else y

    def down(*wide: jax.Array) -> jax.Array:
        return linear(gelu(*wide) if c.activation == "gelu" else swiglu(*wide), "down")

    names = ("up",) if c.activation == "gelu" else ("gate", "up")
    wide = [saved(linear(x, name)) for name in names]
    # A CPU makes the last product's operand again sooner than it keeps it; a TPU does not.
    return (recomputed(down) if platform() == "cpu" else down)(*wide), None
