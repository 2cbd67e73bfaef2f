"""Attention as a layer's mixer: projections, norms of queries and keys, rotary positions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from frame_jax.config.models import ModelConfig
from frame_jax.models.attention import attention
from frame_jax.models.context import Context
from frame_jax.models.layers import matmul, rms_norm, rotate, saved
from frame_jax.models.parameters import Maker

NORM = "attention_norm"


def parameters(c: ModelConfig, make: Maker) -> dict[str, nnx.Param]:
    """Projections and what goes with them."""
    hidden = c.hidden_size
    heads, kv_heads = c.num_heads * c.head_width, c.num_kv_heads * c.head_width
    made = {
        "query": make.matrix((hidden, heads), ("embed", "heads")),
        "key": make.matrix((hidden, kv_heads), ("embed", "heads")),
        "value": make.matrix((hidden, kv_heads), ("embed", "heads")),
        "attention_out": make.matrix((heads, hidden), ("heads", "embed"), make.residual),
    }
    if c.qkv_bias:
        widths = {"query_bias": heads, "key_bias": kv_heads, "value_bias": kv_heads}
        made |= {name: make.vector(width, 0.0) for name, width in widths.items()}
    if c.bias:
        made["attention_out_bias"] = make.vector(hidden, 0.0)
    if c.qk_norm:
        whole = c.qk_norm_over == "projection"
        made["query_norm"] = make.vector(heads if whole else c.head_width, 1.0)
        made["key_norm"] = make.vector(kv_heads if whole else c.head_width, 1.0)
    return made


def apply(c: ModelConfig, p: dict[str, jax.Array], x: jax.Array, context: Context) -> jax.Array:
    """[B, T, D] -> [B, T, D]."""

    def heads(w: jax.Array) -> jax.Array:
        """[..., H * head_dim] -> [..., H, head_dim]. Products with weights of this shape spare
        a TPU a new layout of queries, keys, values and of what attention makes of them."""
        return w.reshape(*w.shape[:-1], -1, c.head_width)

    q, k, v = (matmul(x, heads(p[name])) for name in ("query", "key", "value"))
    if c.qkv_bias:
        q += heads(p["query_bias"]).astype(q.dtype)
        k += heads(p["key_bias"]).astype(k.dtype)
        v += heads(p["value_bias"]).astype(v.dtype)
    if c.qk_norm:
        q = norm_heads(c, q, p["query_norm"])
        k = norm_heads(c, k, p["key_norm"])
    q, k = rotate_part(c, q, context), rotate_part(c, k, context)
    if c.attention_multiplier is not None:  # the kernels divide by sqrt(head_dim)
        q *= q.dtype.type(c.attention_multiplier * c.head_width**0.5)
    q, k, v = saved(q), saved(k), saved(v)
    mixed = attention(q, k, v, context.segment_ids)
    out = matmul(mixed, p["attention_out"].reshape(-1, c.head_width, x.shape[-1]), axes=2)
    return out + p["attention_out_bias"].astype(out.dtype) if c.bias else out


def norm_heads(c: ModelConfig, x: jax.Array, scale: jax.Array) -> jax.Array:
    """[B, T, H, head_dim], normed by head or over all heads together."""
    if c.qk_norm_over == "head":
        return rms_norm(x, scale, c.norm_eps)
    return rms_norm(x.reshape(*x.shape[:2], -1), scale, c.norm_eps).reshape(x.shape)


def rotate_part(c: ModelConfig, x: jax.Array, context: Context) -> jax.Array:
    """[B, T, H, head_dim] with the first `rotary_width` numbers of each head rotated."""
    width = c.rotary_width
    if width == 0:
        return x
    if width == c.head_width:
        return rotate(x, context.rotary)
    turned = rotate(x[..., :width], context.rotary)
    return jnp.concatenate([turned, x[..., width:]], axis=-1)
