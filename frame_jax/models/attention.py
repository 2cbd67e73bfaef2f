"""Causal grouped-query attention inside segments: queries, keys, values in, mixed values out."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

QUERY_BLOCK = 256  # queries whose scores exist at one time; keys after a block are never touched


def attention(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array) -> jax.Array:
    """Each query attends to the keys at or before it in the same segment.

    Args:
        q: [B, T, H, head_dim].
        k: [B, T, K, head_dim]; query head h reads key head h // (H / K).
        v: [B, T, K, head_dim].
        segment_ids: [B, T] int32; tokens see only tokens with an equal id.

    Returns:
        [B, T, H, head_dim] in the dtype of `q`.
    """
    B, T, H, head_dim = q.shape
    groups = H // k.shape[2]
    # Heads in front, and the queries of one key head side by side: plain batched matrix products.
    q = q.reshape(B, T, -1, groups, head_dim).transpose(0, 2, 3, 1, 4)  # [B, K, G, T, head_dim]
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)  # [B, K, T, head_dim]
    blocks = []
    for start in range(0, T, QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, T)
        mask = segment_ids[:, start:stop, None] == segment_ids[:, None, :stop]
        mask &= jnp.arange(start, stop)[:, None] >= jnp.arange(stop)
        blocks.append(
            _attend(q[:, :, :, start:stop], k[:, :, :stop], v[:, :, :stop], mask[:, None])
        )
    mixed = jnp.concatenate(blocks, axis=3)
    return mixed.transpose(0, 3, 1, 2, 4).reshape(B, T, H, head_dim)


_dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def _scores(q: jax.Array, k: jax.Array, mask: jax.Array) -> jax.Array:
    """[B, K, G, Q, head_dim] x [B, K, S, head_dim] -> masked scores [B, K, G, Q, S], float32."""
    scores = _dot("bkgqd,bksd->bkgqs", q, k) * q.shape[-1] ** -0.5
    return jnp.where(mask[:, :, None], scores, -1e30)


@jax.custom_vjp
def _attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """One block of queries against all keys it may see; mask [B, 1, Q, S]."""
    return _attend_forward(q, k, v, mask)[0]


def _attend_forward(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    scores = _scores(q, k, mask)
    top = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.exp(scores - top)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    mixed = (_dot("bkgqs,bksd->bkgqd", weights.astype(v.dtype), v) / total).astype(q.dtype)
    return mixed, (q, k, v, mask, mixed, top + jnp.log(total))


def _attend_backward(
    saved: tuple[jax.Array, ...], grad: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    """Recomputes the probabilities instead of saving them: memory linear in the keys."""
    q, k, v, mask, mixed, log_total = saved
    grad = grad.astype(q.dtype)
    weights = jnp.exp(_scores(q, k, mask) - log_total)  # [B, K, G, Q, S]
    inner = jnp.sum(grad.astype(jnp.float32) * mixed.astype(jnp.float32), axis=-1, keepdims=True)
    grad_v = _dot("bkgqs,bkgqd->bksd", weights.astype(q.dtype), grad)
    grad_weights = _dot("bkgqd,bksd->bkgqs", grad, v)
    grad_scores = (weights * (grad_weights - inner) * q.shape[-1] ** -0.5).astype(q.dtype)
    grad_q = _dot("bkgqs,bksd->bkgqd", grad_scores, k)
    grad_k = _dot("bkgqs,bkgqd->bksd", grad_scores, q)
    return grad_q.astype(q.dtype), grad_k.astype(k.dtype), grad_v.astype(v.dtype), None


_attend.defvjp(_attend_forward, _attend_backward)
