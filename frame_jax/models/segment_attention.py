"""Attention over packed rows for CPUs, forward only: scores of other segments are never made.

A packed row holds several documents, and a query sees only keys of its own. Block by block of
queries, this reads the keys from the earliest document of the block to the block itself. How many
that are is known only at run time, so the program holds one branch for each number of key blocks.
Beside the work it saves, one block's scores stay in the cache, where those of a whole batch would
be written to memory and read again at every step of the softmax.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

QUERY_BLOCK = 128
KEY_BLOCK = 128  # the smallest granularity of skipping
BRANCHES = 16  # longer rows skip in coarser steps, so that compile time stays the same

_dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def segment_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array
) -> jax.Array:
    """`models.attention.attention`, without a derivative; T is a multiple of QUERY_BLOCK.

    Segments must be contiguous: equal ids stand side by side.
    """
    B, T, H, head_dim = q.shape
    K = k.shape[2]
    blocks = T // QUERY_BLOCK
    # The queries of one key head side by side: [B * blocks, K, H / K * QUERY_BLOCK, head_dim].
    queries = q.reshape(B, blocks, QUERY_BLOCK, K, H // K, head_dim).transpose(0, 1, 3, 4, 2, 5)
    queries = queries.reshape(B * blocks, K, -1, head_dim)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)  # [B, K, T, head_dim]
    step = KEY_BLOCK * math.ceil(T / (KEY_BLOCK * BRANCHES))
    widths = [min(width, T) for width in range(step, T + step, step)]
    first = first_keys(segment_ids)  # [B, blocks]
    stop = QUERY_BLOCK * (1 + jnp.arange(blocks))
    branch = (stop - first + step - 1) // step - 1  # the narrowest width that reaches `first`

    def block(inputs: tuple[jax.Array, ...]) -> jax.Array:
        queries, index, branch = inputs
        row, stop = index // blocks, QUERY_BLOCK * (1 + index % blocks)
        branches = [functools.partial(attend, k, v, segment_ids, width) for width in widths]
        return jax.lax.switch(branch, branches, queries, row, stop)

    mixed = jax.lax.map(block, (queries, jnp.arange(B * blocks), branch.reshape(-1)))
    mixed = mixed.reshape(B, blocks, K, H // K, QUERY_BLOCK, head_dim)
    return mixed.transpose(0, 1, 4, 2, 3, 5).reshape(B, T, H, head_dim)


def first_keys(segment_ids: jax.Array) -> jax.Array:
    """[B, T / QUERY_BLOCK] int32: where the segment of each block's first query begins."""
    T = segment_ids.shape[1]
    begins = segment_ids[:, 1:] != segment_ids[:, :-1]
    place = jnp.where(begins, jnp.arange(1, T), 0)
    place = jnp.pad(jax.lax.cummax(place, axis=1), ((0, 0), (1, 0)))
    return place[:, ::QUERY_BLOCK]


def attend(
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array,
    width: int,
    queries: jax.Array,
    row: jax.Array,
    stop: jax.Array,
) -> jax.Array:
    """One block of queries, which ends before `stop`, over the `width` keys before `stop`.

    Where fewer than `width` keys are before `stop`, later ones take part and are masked.

    Args:
        k: [B, K, T, head_dim].
        v: [B, K, T, head_dim].
        segment_ids: [B, T].
        width: Number of keys.
        queries: [K, G * QUERY_BLOCK, head_dim], the heads of a group side by side.
        row: Which of B.
        stop: Place after the block's last query.

    Returns:
        The shape of `queries`.
    """
    _, K, _, head_dim = k.shape
    start = jnp.maximum(stop - width, 0)
    size = (1, K, width, head_dim)
    keys = jax.lax.dynamic_slice(k, (row, 0, start, 0), size)[0]
    values = jax.lax.dynamic_slice(v, (row, 0, start, 0), size)[0]
    key_ids = jax.lax.dynamic_slice(segment_ids, (row, start), (1, width))[0]
    query_start = stop - QUERY_BLOCK
    query_ids = jax.lax.dynamic_slice(segment_ids, (row, query_start), (1, QUERY_BLOCK))[0]
    visible = query_ids[:, None] == key_ids
    visible &= (query_start + jnp.arange(QUERY_BLOCK))[:, None] >= start + jnp.arange(width)
    bias = jnp.where(visible, 0.0, -1e30).astype(jnp.float32)
    bias = jnp.tile(bias, (queries.shape[1] // QUERY_BLOCK, 1))
    scores = _dot("kqd,ksd->kqs", queries, keys) * head_dim**-0.5 + bias
    weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return (_dot("kqs,ksd->kqd", weights.astype(v.dtype), values) / total).astype(queries.dtype)
