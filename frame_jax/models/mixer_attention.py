"""Attention as a layer's mixer: projections, norms of queries and keys, rotary positions."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jax import Array

from frame_jax.config.models import ModelConfig
from frame_jax.models.attention import attention
from frame_jax.models.layers import LayerContext, apply_rotary, matmul, rms_norm, save_activation
from frame_jax.models.parameters import ParamInitializer

NORM = "attention_norm"


def init_params(c: ModelConfig, init: ParamInitializer) -> dict[str, nnx.Param]:
    """Makes the projections, their biases, and the norms of queries and keys."""
    hidden = c.hidden_size
    heads, kv_heads = c.num_heads * c.resolved_head_dim, c.num_kv_heads * c.resolved_head_dim
    params = {
        "query": init.matrix((hidden, heads), ("embed", "heads")),
        "key": init.matrix((hidden, kv_heads), ("embed", "heads")),
        "value": init.matrix((hidden, kv_heads), ("embed", "heads")),
        "attention_out": init.matrix((heads, hidden), ("heads", "embed"), init.residual),
    }
    if c.qkv_bias:
        widths = {"query_bias": heads, "key_bias": kv_heads, "value_bias": kv_heads}
        params |= {name: init.vector(width, 0.0) for name, width in widths.items()}
    if c.bias:
        params["attention_out_bias"] = init.vector(hidden, 0.0)
    if c.qk_norm:
        whole = c.qk_norm_over == "projection"
        params["query_norm"] = init.vector(heads if whole else c.resolved_head_dim, 1.0)
        params["key_norm"] = init.vector(kv_heads if whole else c.resolved_head_dim, 1.0)
    return params


def apply(c: ModelConfig, p: dict[str, Array], x: Array, context: LayerContext) -> Array:
    """Applies the mixer: [B, T, D] -> [B, T, D]."""

    def heads(w: Array) -> Array:
        """[..., H * head_dim] -> [..., H, head_dim]. Products with weights of this shape spare
        a TPU a new layout of queries, keys, values and of what attention makes of them."""
        return w.reshape(*w.shape[:-1], -1, c.resolved_head_dim)

    q, k, v = (matmul(x, heads(p[name])) for name in ("query", "key", "value"))
    if c.qkv_bias:
        q += heads(p["query_bias"]).astype(q.dtype)
        k += heads(p["key_bias"]).astype(k.dtype)
        v += heads(p["value_bias"]).astype(v.dtype)
    if c.qk_norm:
        q = norm_heads(c, q, p["query_norm"])
        k = norm_heads(c, k, p["key_norm"])
    q, k = apply_partial_rotary(c, q, context), apply_partial_rotary(c, k, context)
    if c.attention_multiplier is not None:  # the kernels divide by sqrt(head_dim)
        q *= q.dtype.type(c.attention_multiplier * c.resolved_head_dim**0.5)
    q, k, v = save_activation(q), save_activation(k), save_activation(v)
    mixed = attention(q, k, v, context.segment_ids)
    out = matmul(mixed, p["attention_out"].reshape(-1, c.resolved_head_dim, x.shape[-1]), axes=2)
    return out + p["attention_out_bias"].astype(out.dtype) if c.bias else out


def norm_heads(c: ModelConfig, x: Array, scale: Array) -> Array:
    """[B, T, H, head_dim], normed by head or over all heads together."""
    if c.qk_norm_over == "head":
        return rms_norm(x, scale, c.norm_eps)
    return rms_norm(x.reshape(*x.shape[:2], -1), scale, c.norm_eps).reshape(x.shape)


def apply_partial_rotary(c: ModelConfig, x: Array, context: LayerContext) -> Array:
    """[B, T, H, head_dim] with the first `rotary_dim` numbers of each head rotated."""
    width = c.rotary_dim
    if width == 0:
        return x
    if width == c.resolved_head_dim:
        return apply_rotary(x, context.rotary)
    rotated = apply_rotary(x[..., :width], context.rotary)
    return jnp.concatenate([rotated, x[..., width:]], axis=-1)
