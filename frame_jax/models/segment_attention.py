"""Attention over packed rows for CPUs, which skips blocks of keys of other segments.

A packed row holds several documents, and a query sees only keys of its own. Block by block of
queries, this reads the keys from the earliest document of the block to the block itself. How many
that are is known only at run time, so the program holds one branch for each number of key blocks.
Beside the work it saves, one block's scores stay in the cache, where those of a whole batch would
be written to memory and read again at every step of the softmax.

The backward pass makes the probabilities again, keys before queries: then every product sums over
the last axis of its left operand, and XLA for CPUs has bfloat16 kernels for no others.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from frame_jax.models.layers import einsum_f32, from_bits, save_activation, to_bits

QUERY_BLOCK = 128
KEY_BLOCK = 128  # the smallest granularity of skipping
BRANCHES = 16  # longer rows skip in coarser steps, so that compile time stays the same


class QueryBlocks(NamedTuple):
    """The position of each block of queries, and how far back it attends.

    Attributes:
        widths: Numbers of keys that a branch may read, rising.
        branch: [N] int32, the narrowest of `widths` that reaches all keys of the block's segments.
        row: [N] int32, which row of the batch.
        stop: [N] int32, the position after the block's last query.
        end: [N] int32, the position after the last key that is read: `stop`, or later where fewer
            keys than the width are before it.
    """

    widths: list[int]
    branch: Array
    row: Array
    stop: Array
    end: Array


def find_blocks(segment_ids: Array) -> QueryBlocks:
    """Finds the N = B * T / QUERY_BLOCK blocks of a batch, row by row."""
    B, T = segment_ids.shape
    count = T // QUERY_BLOCK
    step = KEY_BLOCK * math.ceil(T / (KEY_BLOCK * BRANCHES))
    widths = [min(width, T) for width in range(step, T + step, step)]
    row, block = jnp.divmod(jnp.arange(B * count), count)
    stop = QUERY_BLOCK * (1 + block)
    reach = stop - first_keys(segment_ids).reshape(-1)
    branch = (reach + step - 1) // step - 1
    return QueryBlocks(widths, branch, row, stop, jnp.maximum(stop, jnp.array(widths)[branch]))


def first_keys(segment_ids: Array) -> Array:
    """[B, T / QUERY_BLOCK] int32: where the segment of each block's first query begins."""
    T = segment_ids.shape[1]
    begins = segment_ids[:, 1:] != segment_ids[:, :-1]
    start = jnp.where(begins, jnp.arange(1, T), 0)
    start = jnp.pad(jax.lax.cummax(start, axis=1), ((0, 0), (1, 0)))
    return start[:, ::QUERY_BLOCK]


def gather_query_block(x: Array, row: Array, stop: Array, key_heads: int) -> Array:
    """The block of queries before `stop`: [B, T, H, D] -> [K, G * QUERY_BLOCK, D], the G = H / K
    heads of a group side by side."""
    start, size = (row, stop - QUERY_BLOCK, 0, 0), (1, QUERY_BLOCK, *x.shape[2:])
    block = jax.lax.dynamic_slice(x, start, size).reshape(QUERY_BLOCK, key_heads, -1, x.shape[3])
    return block.transpose(1, 2, 0, 3).reshape(key_heads, -1, x.shape[3])


def ungather_query_block(x: Array) -> Array:
    """The inverse of `gather_query_block` for one block, as bits: [QUERY_BLOCK, H, D]."""
    block = x.reshape(x.shape[0], -1, QUERY_BLOCK, x.shape[2]).transpose(2, 0, 1, 3)
    return to_bits(block.reshape(QUERY_BLOCK, -1, x.shape[2]))


@jax.custom_vjp
def segment_attention(q: Array, k: Array, v: Array, segment_ids: Array) -> Array:
    """`models.attention.attention`; T is a multiple of QUERY_BLOCK.

    Segments must be contiguous: equal ids stand side by side.
    """
    return _forward(q, k, v, segment_ids)[0]


def _forward(q: Array, k: Array, v: Array, segment_ids: Array) -> tuple[Array, tuple[Array, ...]]:
    keys, values = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)  # [B, K, T, head_dim]
    blocks = find_blocks(segment_ids)

    def block(inputs: tuple[Array, ...]) -> tuple[Array, Array]:
        branch, row, stop, end = inputs
        queries = gather_query_block(q, row, stop, k.shape[2])
        branches = [functools.partial(attend, keys, values, segment_ids, w) for w in blocks.widths]
        mixed, log_total = jax.lax.switch(branch, branches, queries, row, stop, end)
        return ungather_query_block(mixed), log_total

    mixed, log_total = jax.lax.map(block, blocks[1:])
    mixed = save_activation(from_bits(mixed).reshape(q.shape))
    log_total = save_activation(log_total)
    return mixed, (q, k, v, segment_ids, mixed, log_total)


def attend(
    k: Array,
    v: Array,
    segment_ids: Array,
    width: int,
    queries: Array,
    row: Array,
    stop: Array,
    end: Array,
) -> tuple[Array, Array]:
    """Attends from the block of queries that ends before `stop` to the `width` keys before `end`.

    Args:
        k: [B, K, T, head_dim].
        v: [B, K, T, head_dim].
        segment_ids: [B, T].
        width: Number of keys.
        queries: [K, G * QUERY_BLOCK, head_dim], the heads of a group side by side.
        row: Which of B.
        stop: Position after the block's last query.
        end: Position after the last key.

    Returns:
        Mixed values, the shape of `queries`, and the logarithm of each query's softmax
        denominator, [K, G * QUERY_BLOCK] float32.
    """
    keys, values = slice_keys(k, width, row, end), slice_keys(v, width, row, end)
    visible = visible_keys(segment_ids, width, row, stop, end)
    bias = jnp.where(visible, 0.0, -1e30).astype(jnp.float32)
    bias = jnp.tile(bias, (queries.shape[1] // QUERY_BLOCK, 1))
    scores = einsum_f32("kqd,ksd->kqs", queries, keys) * queries.shape[-1] ** -0.5 + bias
    top = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.exp(scores - top)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    mixed = (einsum_f32("kqs,ksd->kqd", weights.astype(v.dtype), values) / total).astype(
        queries.dtype
    )
    return mixed, (top + jnp.log(total))[..., 0]


def slice_keys(k: Array, width: int, row: Array, end: Array) -> Array:
    """[B, K, T, head_dim] -> [K, width, head_dim]: the keys before `end`."""
    size = (1, k.shape[1], width, k.shape[3])
    return jax.lax.dynamic_slice(k, (row, 0, end - width, 0), size)[0]


def visible_keys(segment_ids: Array, width: int, row: Array, stop: Array, end: Array) -> Array:
    """[QUERY_BLOCK, width] bool: which of the keys that `slice_keys` gives a query sees."""
    first_query, first_key = stop - QUERY_BLOCK, end - width
    keys = jax.lax.dynamic_slice(segment_ids, (row, first_key), (1, width))[0]
    queries = jax.lax.dynamic_slice(segment_ids, (row, first_query), (1, QUERY_BLOCK))[0]
    before = (first_query + jnp.arange(QUERY_BLOCK))[:, None] >= first_key + jnp.arange(width)
    return (queries[:, None] == keys) & before


def _backward(residuals: tuple[Array, ...], grad: Array) -> tuple[Array, Array, Array, None]:
    q, k, v, segment_ids, mixed, log_total = residuals
    B, T, K, head_dim = k.shape
    keys, values = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)  # [B, K, T, head_dim]
    blocks = find_blocks(segment_ids)
    grad = grad.astype(q.dtype)
    inner = jnp.sum(grad.astype(jnp.float32) * mixed.astype(jnp.float32), axis=-1, keepdims=True)

    # A block adds to the T positions before its end, the first of which are before the row.
    def block(sums: Array, inputs: tuple[Array, ...]) -> tuple[Array, Array]:
        log_total, branch, row, stop, end = inputs
        queries, grads, inners = (gather_query_block(x, row, stop, K) for x in (q, grad, inner))
        branches = [
            functools.partial(attend_backward, keys, values, segment_ids, w) for w in blocks.widths
        ]
        grad_queries, parts = jax.lax.switch(
            branch, branches, queries, grads, inners[..., 0], log_total, row, stop, end
        )
        start, size = (0, row, 0, end, 0), (2, 1, K, T, head_dim)
        parts += jax.lax.dynamic_slice(sums, start, size)
        return jax.lax.dynamic_update_slice(sums, parts, start), ungather_query_block(grad_queries)

    zero = jnp.zeros((2, B, K, 2 * T, head_dim), jnp.float32)  # for the keys, and for the values
    sums, grad_q = jax.lax.scan(block, zero, (log_total, *blocks[1:]))
    grad_k, grad_v = sums[:, :, :, T:].transpose(0, 1, 3, 2, 4).astype(k.dtype)
    return from_bits(grad_q).reshape(q.shape), grad_k, grad_v, None


def attend_backward(
    k: Array,
    v: Array,
    segment_ids: Array,
    width: int,
    queries: Array,
    grad: Array,
    inner: Array,
    log_total: Array,
    row: Array,
    stop: Array,
    end: Array,
) -> tuple[Array, Array]:
    """The derivatives of `attend`, whose other arguments these are.

    Beside them come `grad`, the derivative with respect to the mixed values, in the shape of
    `queries`; `inner`, its inner products with the mixed values, [K, G * QUERY_BLOCK] float32; and
    `log_total`, as `attend` gives it.

    Returns:
        Derivatives of the queries, in their shape and dtype, and of the T keys and the T values
        before `end`, [2, 1, K, T, head_dim] float32.
    """
    keys, values = slice_keys(k, width, row, end), slice_keys(v, width, row, end)
    T, scale = k.shape[2], queries.shape[-1] ** -0.5
    visible = visible_keys(segment_ids, width, row, stop, end).T
    bias = jnp.where(visible, 0.0, -1e30).astype(jnp.float32)
    bias = jnp.tile(bias, (1, queries.shape[1] // QUERY_BLOCK))
    scores = einsum_f32("ksd,kqd->ksq", keys, queries) * scale + bias
    weights = jnp.exp(scores - log_total[:, None])
    grad_v = einsum_f32("ksq,kqd->ksd", weights.astype(grad.dtype), grad)
    by_weight = einsum_f32("ksd,kqd->ksq", values, grad)
    by_score = (weights * (by_weight - inner[:, None]) * scale).astype(grad.dtype)
    grad_k = einsum_f32("ksq,kqd->ksd", by_score, queries)
    # Without the barriers XLA would undo the transpositions, and with them what they are for.
    transposed = jax.lax.optimization_barrier(keys.swapaxes(1, 2))
    grad_q = jax.lax.optimization_barrier(einsum_f32("kds,ksq->kdq", transposed, by_score))

    parts = jnp.stack([grad_k, grad_v])[:, None]
    parts = jnp.pad(parts, ((0, 0), (0, 0), (0, 0), (T - width, 0), (0, 0)))
    return grad_q.swapaxes(1, 2).astype(queries.dtype), parts


segment_attention.defvjp(_forward, _backward)
