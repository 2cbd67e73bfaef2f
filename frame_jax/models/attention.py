"""Attention as a layer's mixer: causal, grouped-query, inside segments.

Projections, norms of queries and keys and rotary positions come before the fastest kernel of each
backend: Pallas splash attention on TPU, cuDNN by the documents' offsets on GPU
(`packed_attention`), before Hopper Pallas through Triton (`triton_attention`), blocks that skip
other documents on CPU (`segment_attention`); for shapes that a kernel does not take, plain XLA that
never holds all scores.
"""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import PartitionSpec

from frame_jax.config.models import ModelConfig
from frame_jax.models import packed_attention, segment_attention, triton_attention
from frame_jax.models.layers import (
    SAVED_NAME,
    LayerContext,
    ParamInitializer,
    apply_rotary,
    einsum_f32,
    matmul,
    rms_norm,
    save_activation,
)
from frame_jax.parallel.sharding import context_mesh, partition_spec, platform

NORM = "attention_norm"
QUERY_BLOCK = 256  # queries whose scores exist at one time; keys after a block are never touched
SPLASH_BLOCK_NAMES = [f"block_{x}{of}" for of in ("", "_dkv", "_dq") for x in ("q", "kv")]
SPLASH_BLOCKS = (1024, 512, 256, 128)  # queries and keys of one tile, the largest that divides T


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


def attention(q: Array, k: Array, v: Array, segment_ids: Array) -> Array:
    """Lets each query attend to the keys at or before it in the same segment.

    Args:
        q: [B, T, H, head_dim].
        k: [B, T, K, head_dim]; query head h reads key head h // (H / K).
        v: [B, T, K, head_dim].
        segment_ids: [B, T] int32; tokens see only tokens with an equal id.

    Returns:
        [B, T, H, head_dim] in the dtype of `q`.
    """
    mesh = context_mesh()
    if mesh is None or mesh.are_all_axes_manual:
        return _kernel_for(q, k)(q, k, v, segment_ids)
    # The partitioner cannot split a kernel; each device calls it on its own rows and heads.
    rows, heads = partition_spec(("batch", "heads"), (q.shape[0], k.shape[2]), mesh)
    split = PartitionSpec(rows, None, heads)
    return jax.shard_map(
        lambda q, k, v, ids: _kernel_for(q, k)(q, k, v, ids),
        in_specs=(split, split, split, PartitionSpec(rows)),
        out_specs=split,
        check_vma=False,
    )(q, k, v, segment_ids)


def _kernel_for(q: Array, k: Array) -> Callable[..., Array]:
    """The function that computes `attention` for the queries and keys of one device."""
    backend = platform()
    if backend == "tpu" and q.shape[1] % SPLASH_BLOCKS[-1] == 0:
        return splash_attention
    if backend == "cpu" and q.shape[1] % segment_attention.QUERY_BLOCK == 0:
        if q.shape[1] <= QUERY_BLOCK:
            return lean_attention  # of short rows there is little to skip
        return segment_attention.segment_attention
    if backend == "gpu":
        reason = packed_attention.unsupported_reason(q, k)
        if reason is None:
            return packed_attention.packed_attention
        missing = triton_attention.unsupported_reason(q)
        instead = "plain XLA" if missing else "kernels through Triton"
        warnings.warn(f"attention runs in {instead}: {missing or reason}", stacklevel=2)
        if missing is None:
            return triton_attention.triton_attention
    return lean_attention


def splash_attention(
    q: Array, k: Array, v: Array, segment_ids: Array, interpret: bool = False
) -> Array:
    """`attention` in the Pallas kernel for TPU; T is a multiple of 128."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    T, H, head_dim = q.shape[1:]
    block = next(size for size in SPLASH_BLOCKS if T % size == 0)
    blocks: Any = dict.fromkeys(SPLASH_BLOCK_NAMES, block)
    kernel = splash.make_splash_mha_single_device(
        splash.MultiHeadMask([splash.CausalMask((T, T))] * H),
        block_sizes=splash.BlockSizes(**blocks),
        residual_checkpoint_name=SAVED_NAME,
        interpret=interpret,
    )
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q * q.dtype.type(head_dim**-0.5), k, v))
    mixed = jax.vmap(kernel)(q, k, v, splash.SegmentIds(segment_ids, segment_ids))
    return mixed.transpose(0, 2, 1, 3)


def lean_attention(q: Array, k: Array, v: Array, segment_ids: Array) -> Array:
    """`attention` in plain XLA, a block of queries at a time."""
    B, T, H, head_dim = q.shape
    groups = H // k.shape[2]
    # Heads in front, and the queries of one key head side by side: plain batched matrix products.
    q = q.reshape(B, T, -1, groups, head_dim).transpose(0, 2, 3, 1, 4)  # [B, K, G, T, head_dim]
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)  # [B, K, T, head_dim]
    blocks = []
    for stop in range(QUERY_BLOCK, T + QUERY_BLOCK, QUERY_BLOCK):  # the last may lie behind the end
        before = (k[:, :, :stop], v[:, :, :stop], segment_ids[:, :stop])
        blocks.append(_attend(q[:, :, :, stop - QUERY_BLOCK : stop], *before))
    mixed = jnp.concatenate(blocks, axis=3)
    return mixed.transpose(0, 3, 1, 2, 4).reshape(B, T, H, head_dim)


def _scores(q: Array, k: Array, segment_ids: Array) -> Array:
    """[B, K, G, Q, head_dim] x [B, K, S, head_dim] -> masked scores [B, K, G, Q, S], float32.

    The queries are at the last of the S positions.
    """
    Q, S = q.shape[3], k.shape[2]
    mask = segment_ids[:, S - Q :, None] == segment_ids[:, None]
    mask &= jnp.arange(S - Q, S)[:, None] >= jnp.arange(S)
    scores = einsum_f32("bkgqd,bksd->bkgqs", q, k) * q.shape[-1] ** -0.5
    return jnp.where(mask[:, None, None], scores, -1e30)


@jax.custom_vjp
def _attend(q: Array, k: Array, v: Array, segment_ids: Array) -> Array:
    """One block of queries against all keys up to its end; segment_ids [B, S] of the keys."""
    return _attend_forward(q, k, v, segment_ids)[0]


def _attend_forward(
    q: Array, k: Array, v: Array, segment_ids: Array
) -> tuple[Array, tuple[Array, ...]]:
    scores = _scores(q, k, segment_ids)
    top = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.exp(scores - top)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    mixed = (einsum_f32("bkgqs,bksd->bkgqd", weights.astype(v.dtype), v) / total).astype(q.dtype)
    mixed, log_total = save_activation(mixed), save_activation(top + jnp.log(total))
    return mixed, (q, k, v, segment_ids, mixed, log_total)


def _attend_backward(residuals: tuple[Array, ...], grad: Array) -> tuple[Array, Array, Array, None]:
    """Recomputes the probabilities instead of saving them: memory linear in the keys."""
    q, k, v, segment_ids, mixed, log_total = residuals
    grad = grad.astype(q.dtype)
    weights = jnp.exp(_scores(q, k, segment_ids) - log_total)  # [B, K, G, Q, S]
    inner = jnp.sum(grad.astype(jnp.float32) * mixed.astype(jnp.float32), axis=-1, keepdims=True)
    grad_v = einsum_f32("bkgqs,bkgqd->bksd", weights.astype(q.dtype), grad)
    grad_weights = einsum_f32("bkgqd,bksd->bkgqs", grad, v)
    grad_scores = (weights * (grad_weights - inner) * q.shape[-1] ** -0.5).astype(q.dtype)
    grad_q = einsum_f32("bkgqs,bksd->bkgqd", grad_scores, k)
    grad_k = einsum_f32("bkgqs,bkgqd->bksd", grad_scores, q)
    return grad_q.astype(q.dtype), grad_k.astype(k.dtype), grad_v.astype(v.dtype), None


_attend.defvjp(_attend_forward, _attend_backward)
