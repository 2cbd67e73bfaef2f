"""Next-token losses from hidden states, piece by piece of the sequence: logits never exist whole.

`token_nll` gives the NLL of every token (scoring, evaluation). `cross_entropy` gives the weighted
sum with a derivative that is made in the forward pass (training).
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp


def _pieces(x: jax.Array, chunks: int) -> jax.Array:
    """[B, T, ...] -> [chunks, B, T / chunks, ...]: along the sequence, so that a batch axis split
    over devices stays split."""
    B, T = x.shape[:2]
    return jnp.moveaxis(x.reshape(B, chunks, T // chunks, *x.shape[2:]), 1, 0)


def _whole(pieces: jax.Array) -> jax.Array:
    """[chunks, B, t, ...] -> [B, chunks * t, ...], the inverse of `_pieces`."""
    chunks, B, t = pieces.shape[:3]
    return jnp.moveaxis(pieces, 0, 1).reshape(B, chunks * t, *pieces.shape[3:])


def chunk_count(rows: int, length: int, chunk_tokens: int) -> int:
    """The smallest number of equal pieces of `length` with at most `chunk_tokens` tokens in each.

    >>> chunk_count(rows=8, length=512, chunk_tokens=1024)
    4
    """
    wanted = min(length, math.ceil(rows * length / chunk_tokens))
    return next(n for n in range(wanted, length + 1) if length % n == 0)


def _logits(hidden: jax.Array, unembedding: jax.Array) -> jax.Array:
    """[B, t, D] x [V, D] -> [B, t, V], float32."""
    return jnp.einsum("btd,vd->btv", hidden, unembedding, preferred_element_type=jnp.float32)


def token_nll(
    hidden: jax.Array, unembedding: jax.Array, targets: jax.Array, chunks: int
) -> jax.Array:
    """Negative log-likelihood of each target, in nats.

    Args:
        hidden: [B, T, D], compute dtype.
        unembedding: [V, D], rounded to the dtype of `hidden`.
        targets: [B, T] int32.
        chunks: Pieces the sequence is cut into; divides T.

    Returns:
        [B, T] float32.
    """
    w = unembedding.astype(hidden.dtype)

    def piece(carry: None, inputs: tuple[jax.Array, jax.Array]) -> tuple[None, jax.Array]:
        hidden, targets = inputs
        logits = _logits(hidden, w)
        log_total = jax.nn.logsumexp(logits, axis=-1)
        return carry, log_total - jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]

    _, nll = jax.lax.scan(piece, None, (_pieces(hidden, chunks), _pieces(targets, chunks)))
    return _whole(nll)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def cross_entropy(
    hidden: jax.Array, unembedding: jax.Array, targets: jax.Array, weights: jax.Array, chunks: int
) -> jax.Array:
    """Sum of `weights * NLL` over all tokens, in nats.

    Args:
        hidden: [B, T, D], compute dtype.
        unembedding: [V, D] float32.
        targets: [B, T] int32.
        weights: [B, T] float32; no derivative with respect to them is made.
        chunks: Pieces the sequence is cut into; divides T.

    Returns:
        A float32 scalar.
    """
    nll = token_nll(hidden, unembedding, targets, chunks)
    return jnp.sum(nll * weights)


def _cross_entropy_forward(
    hidden: jax.Array, unembedding: jax.Array, targets: jax.Array, weights: jax.Array, chunks: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """The sum, and its derivatives while the logits of a piece are at hand."""
    w = unembedding.astype(hidden.dtype)

    def piece(
        carry: tuple[jax.Array, jax.Array], inputs: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        total, grad_w = carry
        hidden, targets, weights = inputs
        logits = _logits(hidden, w)
        log_total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
        nll = log_total[..., 0] - jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
        is_target = targets[..., None] == jnp.arange(w.shape[0])
        grad = (jnp.exp(logits - log_total) - is_target) * weights[..., None]
        grad = grad.astype(hidden.dtype)
        grad_hidden = jnp.einsum("btv,vd->btd", grad, w, preferred_element_type=jnp.float32)
        grad_w += jnp.einsum("btv,btd->vd", grad, hidden, preferred_element_type=jnp.float32)
        return (total + jnp.sum(nll * weights), grad_w), grad_hidden.astype(hidden.dtype)

    start = (jnp.zeros((), jnp.float32), jnp.zeros(unembedding.shape, jnp.float32))
    inputs = (_pieces(hidden, chunks), _pieces(targets, chunks), _pieces(weights, chunks))
    (total, grad_w), grad_hidden = jax.lax.scan(piece, start, inputs)
    return total, (_whole(grad_hidden), grad_w.astype(unembedding.dtype))


def _cross_entropy_backward(
    chunks: int, saved: tuple[jax.Array, jax.Array], grad: jax.Array
) -> tuple[jax.Array, jax.Array, None, None]:
    grad_hidden, grad_w = saved
    return (grad_hidden * grad).astype(grad_hidden.dtype), grad_w * grad, None, None


cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)
