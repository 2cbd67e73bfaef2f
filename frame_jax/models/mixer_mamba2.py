"""Mamba-2 as a layer's mixer: projections, a short convolution, the state-space layer, a gate.

Source: Dao and Gu 2024, "Transformers are SSMs" (arXiv 2405.21060). State, convolution and decay
start anew where a document does.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from frame_jax.config.models import ModelConfig
from frame_jax.models.layers import LayerContext, ParamInitializer, matmul, save_activation
from frame_jax.models.ssd import document_convolution, gated_rms_norm, ssd

NORM = "mamba_norm"


def init_params(c: ModelConfig, init: ParamInitializer) -> dict[str, nnx.Param]:
    """Makes the projections, convolutions and the parameters of the recurrence.

    Gate, input, B, C and step size are projected each by itself, so that a mesh axis splits heads
    and not across parts. The recurrence is initialised as by its authors.
    """
    m, hidden = c.mamba2, c.hidden_size
    inner, state = (m.inner_dim, "heads"), (m.groups * m.state_size, "state")
    projected = {"z": inner, "x": inner, "b": state, "c": state, "dt": (m.num_heads, "heads")}
    params = {
        f"in_{part}": init.matrix((hidden, width), ("embed", axis))
        for part, (width, axis) in projected.items()
    }
    convolved = {part: projected[part][0] for part in ("x", "b", "c")}
    for part, width in convolved.items():
        params[f"conv_{part}"] = init.conv_kernel(m.conv_kernel, width)
        if m.conv_bias:
            params[f"conv_{part}_bias"] = init.vector(width, 0.0)
    steps = jnp.exp(init.uniform((m.num_heads,), math.log(1e-3), math.log(1e-1)))
    inverse = steps + jnp.log(-jnp.expm1(-steps))  # of softplus
    return params | {
        "dt_bias": init.vector(m.num_heads, inverse),
        "a_log": init.vector(m.num_heads, jnp.log(init.uniform((m.num_heads,), 1.0, 16.0))),
        "skip": init.vector(m.num_heads, 1.0),
        "gate_norm": init.vector(m.inner_dim, 1.0),
        "mamba_out": init.matrix((m.inner_dim, hidden), ("heads", "embed"), init.residual),
    }


def apply(c: ModelConfig, p: dict[str, Array], x: Array, context: LayerContext) -> Array:
    """Applies the mixer: [B, T, D] -> [B, T, D]."""
    m = c.mamba2
    z = save_activation(matmul(x, p["in_z"]))

    def convolved(part: str) -> Array:
        projected = save_activation(matmul(x, p[f"in_{part}"]))
        return document_convolution(
            projected, p[f"conv_{part}"], p.get(f"conv_{part}_bias"), context.positions
        )

    def split(array: Array, parts: int) -> Array:
        return array.reshape(*array.shape[:2], parts, -1)

    steps = jax.nn.softplus(matmul(x, p["in_dt"]).astype(jnp.float32) + p["dt_bias"])
    mixed = ssd(
        split(convolved("x"), m.num_heads),
        jnp.clip(steps, m.min_time_step, m.max_time_step),
        -jnp.exp(p["a_log"]),
        split(convolved("b"), m.groups),
        split(convolved("c"), m.groups),
        p["skip"],
        context.positions,
        m.chunk_size,
    )
    mixed = save_activation(mixed.reshape(z.shape))
    return matmul(gated_rms_norm(mixed, z, p["gate_norm"], c.norm_eps, m.groups), p["mamba_out"])
