"""Mamba-2 as a layer's mixer: projections, a short convolution, the state-space layer, a gate.

Source: Dao and Gu 2024, "Transformers are SSMs" (arXiv 2405.21060). State, convolution and decay
start anew where a document does.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx

from frame_jax.config.models import ModelConfig
from frame_jax.models.context import Context
from frame_jax.models.layers import matmul, saved
from frame_jax.models.parameters import Maker, inverse_softplus
from frame_jax.models.ssd import document_convolution, gated_rms_norm, ssd

NORM = "mamba_norm"


def parameters(c: ModelConfig, make: Maker) -> dict[str, nnx.Param]:
    """Projections of gate, input, B, C and step size, each by itself so that a mesh axis cuts heads
    and not across parts; and what the recurrence has of its own, initialised as by its authors."""
    m, hidden = c.mamba2, c.hidden_size
    state = m.groups * m.state_size
    made = {
        "in_z": make.matrix((hidden, m.width), ("embed", "heads")),
        "in_x": make.matrix((hidden, m.width), ("embed", "heads")),
        "in_b": make.matrix((hidden, state), ("embed", "state")),
        "in_c": make.matrix((hidden, state), ("embed", "state")),
        "in_dt": make.matrix((hidden, m.num_heads), ("embed", "heads")),
        "conv_x": make.taps(m.conv_width, m.width),
        "conv_b": make.taps(m.conv_width, state),
        "conv_c": make.taps(m.conv_width, state),
    }
    if m.conv_bias:
        made["conv_x_bias"] = make.vector(m.width, 0.0)
        made["conv_b_bias"] = make.vector(state, 0.0)
        made["conv_c_bias"] = make.vector(state, 0.0)
    steps = jnp.exp(make.uniform(m.num_heads, math.log(1e-3), math.log(1e-1)))
    return made | {
        "dt_bias": make.vector(m.num_heads, inverse_softplus(steps)),
        "a_log": make.vector(m.num_heads, jnp.log(make.uniform(m.num_heads, 1.0, 16.0))),
        "skip": make.vector(m.num_heads, 1.0),
        "gate_norm": make.vector(m.width, 1.0),
        "mamba_out": make.matrix((m.width, hidden), ("heads", "embed"), make.residual),
    }


def apply(c: ModelConfig, p: dict[str, jax.Array], x: jax.Array, context: Context) -> jax.Array:
    """[B, T, D] -> [B, T, D]."""
    m = c.mamba2
    z = saved(matmul(x, p["in_z"]))

    def convolved(part: str) -> jax.Array:
        projected = saved(matmul(x, p[f"in_{part}"]))
        return document_convolution(
            projected, p[f"conv_{part}"], p.get(f"conv_{part}_bias"), context.positions
        )

    def cut(array: jax.Array, parts: int) -> jax.Array:
        return array.reshape(*array.shape[:2], parts, -1)

    steps = jax.nn.softplus(matmul(x, p["in_dt"]).astype(jnp.float32) + p["dt_bias"])
    mixed = ssd(
        cut(convolved("x"), m.num_heads),
        jnp.clip(steps, m.min_step, m.max_step),
        -jnp.exp(p["a_log"]),
        cut(convolved("b"), m.groups),
        cut(convolved("c"), m.groups),
        p["skip"],
        context.positions,
        m.chunk,
    )
    mixed = saved(mixed.reshape(z.shape))
    return matmul(gated_rms_norm(mixed, z, p["gate_norm"], c.norm_eps, m.groups), p["mamba_out"])
