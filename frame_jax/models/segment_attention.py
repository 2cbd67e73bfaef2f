"""Attention over packed rows for CPUs, which skips blocks of keys of other segments.

A packed row holds several documents, and a query sees only keys of its own. Block by block of
queries, this reads the keys from the earliest document of the block to the block itself. How many
that are is known only at run time, so the program holds one branch for each number of key blocks.
Beside the work it saves, one block's scores stay in the cache, where those of a whole batch would
be written to memory and read again at every step of the softmax.

The backward pass makes the probabilities again, keys before queries: then every product sums over
the last axis of its left operand, and XLA for CPUs has bfloat16 kernels for no others.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from frame_jax.models.layers import document_bounds, einsum_f32, from_bits, save_activation, to_bits

QUERY_BLOCK = 128
KEY_BLOCK = 128  # the smallest granularity of skipping
BRANCHES = 16  # longer rows skip in coarser steps, so that compile time stays the same


class QueryBlock(NamedTuple):
    """The position of one block of queries, or of each of N; int32.

    Attributes:
        stop: The position after the block's last query.
        end: The position after the last key that is read: `stop`, or later where fewer keys than
            are read are before it.
    """

    row: Array
    stop: Array
    end: Array


def find_blocks(segment_ids: Array) -> tuple[list[int], Array, QueryBlock]:
    """Finds the N = B * T / QUERY_BLOCK blocks of a batch, row by row.

    Returns:
        Numbers of keys that a block may read, rising; [N] int32, the narrowest of them that reaches
        all keys of the block's segments; and the blocks.
    """
    B, T = segment_ids.shape
    count = T // QUERY_BLOCK
    step = KEY_BLOCK * math.ceil(T / (KEY_BLOCK * BRANCHES))
    widths = [min(width, T) for width in range(step, T + step, step)]
    row, block = jnp.divmod(jnp.arange(B * count), count)
    stop = QUERY_BLOCK * (1 + block)
    reach = stop - document_bounds(segment_ids)[0][:, ::QUERY_BLOCK].reshape(-1)
    branch = (reach + step - 1) // step - 1
    return widths, branch, QueryBlock(row, stop, jnp.maximum(stop, jnp.array(widths)[branch]))


def gather_query_block(x: Array, at: QueryBlock, key_heads: int) -> Array:
    """A block of queries: [B, T, H, D] -> [K, G * QUERY_BLOCK, D], the G = H / K heads of a group
    side by side."""
    start, size = (at.row, at.stop - QUERY_BLOCK, 0, 0), (1, QUERY_BLOCK, *x.shape[2:])
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
    widths, branch, blocks = find_blocks(segment_ids)

    def block(inputs: tuple[Array, QueryBlock]) -> tuple[Array, Array]:
        branch, at = inputs
        queries = gather_query_block(q, at, k.shape[2])
        branches = [functools.partial(attend, keys, values, segment_ids, w) for w in widths]
        mixed, log_total = jax.lax.switch(branch, branches, queries, at)
        return ungather_query_block(mixed), log_total

    mixed, log_total = jax.lax.map(block, (branch, blocks))
    mixed = save_activation(from_bits(mixed).reshape(q.shape))
    log_total = save_activation(log_total)
    return mixed, (q, k, v, segment_ids, mixed, log_total)


def attend(
    k: Array, v: Array, segment_ids: Array, width: int, queries: Array, at: QueryBlock
) -> tuple[Array, Array]:
    """Attends from a block of queries to the `width` keys before `at.end`.

    Keys and values are [B, K, T, head_dim], segment ids [B, T], queries
    [K, G * QUERY_BLOCK, head_dim], the heads of a group side by side.

    Returns:
        Mixed values, the shape of `queries`, and the logarithm of each query's softmax
        denominator, [K, G * QUERY_BLOCK] float32.
    """
    keys, values, visible = read_keys(k, v, segment_ids, width, at)
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


def read_keys(
    k: Array, v: Array, segment_ids: Array, width: int, at: QueryBlock
) -> tuple[Array, Array, Array]:
    """The `width` keys and values before `at.end`, [K, width, head_dim] each, and which of them the
    queries of the block see, [QUERY_BLOCK, width] bool."""
    first_query, first_key = at.stop - QUERY_BLOCK, at.end - width
    size = (1, k.shape[1], width, k.shape[3])
    keys, values = (jax.lax.dynamic_slice(x, (at.row, 0, first_key, 0), size)[0] for x in (k, v))
    ids = jax.lax.dynamic_slice(segment_ids, (at.row, first_key), (1, width))[0]
    query_ids = jax.lax.dynamic_slice(segment_ids, (at.row, first_query), (1, QUERY_BLOCK))[0]
    before = (first_query + jnp.arange(QUERY_BLOCK))[:, None] >= first_key + jnp.arange(width)
    return keys, values, (query_ids[:, None] == ids) & before


def _backward(residuals: tuple[Array, ...], grad: Array) -> tuple[Array, Array, Array, None]:
    q, k, v, segment_ids, mixed, log_total = residuals
    B, T, K, head_dim = k.shape
    keys, values = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)  # [B, K, T, head_dim]
    widths, branch, blocks = find_blocks(segment_ids)
    grad = grad.astype(q.dtype)
    inner = jnp.sum(grad.astype(jnp.float32) * mixed.astype(jnp.float32), axis=-1, keepdims=True)

    # A block adds to the T positions before its end, the first of which are before the row.
    def block(sums: Array, inputs: tuple[Array, Array, QueryBlock]) -> tuple[Array, Array]:
        log_total, branch, at = inputs
        queries, grads, inners = (gather_query_block(x, at, K) for x in (q, grad, inner))
        branches = [
            functools.partial(attend_backward, keys, values, segment_ids, w) for w in widths
        ]
        grad_queries, parts = jax.lax.switch(
            branch, branches, queries, grads, inners[..., 0], log_total, at
        )
        start, size = (0, at.row, 0, at.end, 0), (2, 1, K, T, head_dim)
        parts += jax.lax.dynamic_slice(sums, start, size)
        return jax.lax.dynamic_update_slice(sums, parts, start), ungather_query_block(grad_queries)

    zero = jnp.zeros((2, B, K, 2 * T, head_dim), jnp.float32)  # for the keys, and for the values
    sums, grad_q = jax.lax.scan(block, zero, (log_total, branch, blocks))
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
    at: QueryBlock,
) -> tuple[Array, Array]:
    """The derivatives of `attend`, whose other arguments these are.

    Beside them come `grad`, the derivative with respect to the mixed values, in the shape of
    `queries`; `inner`, its inner products with the mixed values, [K, G * QUERY_BLOCK] float32; and
    `log_total`, as `attend` gives it.

    Returns:
        Derivatives of the queries, in their shape and dtype, and of the T keys and the T values
        before `at.end`, [2, 1, K, T, head_dim] float32.
    """
    keys, values, visible = read_keys(k, v, segment_ids, width, at)
    T, scale = k.shape[2], queries.shape[-1] ** -0.5
    bias = jnp.where(visible.T, 0.0, -1e30).astype(jnp.float32)
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
