"""Next-token losses from hidden states, chunk by chunk: the logits of a batch never exist whole.

`token_nll` gives the NLL of every token, `likeliest_tokens` the tokens with the largest logits
(scoring, evaluation). `cross_entropy` gives the weighted sum with a derivative that is made in the
forward pass (training).
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import Array

from frame_jax.models.layers import einsum_f32
from frame_jax.parallel.sharding import (
    constrain_sharding,
    context_mesh,
    data_parallel_size,
    platform,
)


def split_sequence(x: Array, chunks: int) -> Array:
    """[B, T, ...] -> [chunks, B, T / chunks, ...]: along the sequence, so that a batch axis split
    over devices stays split."""
    B, T = x.shape[:2]
    return jnp.moveaxis(x.reshape(B, chunks, T // chunks, *x.shape[2:]), 1, 0)


def join_sequence(split: Array) -> Array:
    """[chunks, B, t, ...] -> [B, chunks * t, ...], the inverse of `split_sequence`."""
    chunks, B, t = split.shape[:3]
    return jnp.moveaxis(split, 0, 1).reshape(B, chunks * t, *split.shape[3:])


def chunk_count(rows: int, length: int, chunk_tokens: int) -> int:
    """The smallest number of equal chunks of `length` with at most `chunk_tokens` tokens in each.

    >>> chunk_count(rows=8, length=512, chunk_tokens=1024)
    4
    """
    wanted = min(length, math.ceil(rows * length / chunk_tokens))
    return next(n for n in range(wanted, length + 1) if length % n == 0)


def token_nll(hidden: Array, unembedding: Array, targets: Array, chunks: int) -> Array:
    """Negative log-likelihood of each target, in nats: [B, T] float32.

    Hidden states are [B, T, D] in the compute dtype, to which the unembedding, [V, D], is rounded;
    targets are [B, T] int32. The sequence is split into so many chunks, which divide T.
    """
    w = unembedding.astype(hidden.dtype)

    def chunk_nll(carry: None, inputs: tuple[Array, Array]) -> tuple[None, Array]:
        hidden, targets = inputs
        logits = einsum_f32("btd,vd->btv", hidden, w)
        log_total = jax.nn.logsumexp(logits, axis=-1)
        return carry, log_total - jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]

    _, nll = jax.lax.scan(
        chunk_nll, None, (split_sequence(hidden, chunks), split_sequence(targets, chunks))
    )
    return join_sequence(nll)


def likeliest_tokens(hidden: Array, unembedding: Array, chunks: int) -> Array:
    """The token with the largest logit: [B, T] int32. Arguments are those of `token_nll`."""
    w = unembedding.astype(hidden.dtype)

    def chunk_argmax(hidden: Array) -> Array:
        return jnp.argmax(einsum_f32("btd,vd->btv", hidden, w), axis=-1).astype(jnp.int32)

    return join_sequence(jax.lax.map(chunk_argmax, split_sequence(hidden, chunks)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def cross_entropy(
    hidden: Array,
    unembedding: Array,
    targets: Array,
    loss_mask: Array,
    chunks: int,
    z_loss_weight: float = 0.0,
) -> tuple[Array, Array]:
    """Sums over all tokens of the objective and of the NLL, in nats.

    The objective is `loss_mask * (NLL + z_loss_weight * log(Z)**2)` with Z the sum of the
    exponentiated logits, whose drift the second term holds back (PaLM, section 5). Derivatives are
    the objective's; the NLL has none, and none is made with respect to `loss_mask`.

    Arguments are those of `token_nll`, the unembedding in float32, and the mask [B, T] float32. The
    sums are float32 scalars.
    """
    return _cross_entropy_forward(hidden, unembedding, targets, loss_mask, chunks, z_loss_weight)[0]


def _cross_entropy_forward(
    hidden: Array,
    unembedding: Array,
    targets: Array,
    loss_mask: Array,
    chunks: int,
    z_loss_weight: float,
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """The sums, and the derivatives while the logits of a chunk are at hand.

    Rows are grouped by the devices that hold them, and each group adds up its own derivative of
    the unembedding: summed over devices once at the end, instead of after every chunk.
    """
    mesh = context_mesh()
    groups = 1 if mesh is None or mesh.are_all_axes_manual else data_parallel_size(mesh)
    groups = groups if hidden.shape[0] % groups == 0 else 1
    w = constrain_sharding(unembedding.astype(hidden.dtype), "vocab", None)
    # A CPU lays out the left operand anew for a sum over tokens: let it be the narrower one. A TPU
    # would rather have the derivative as it is stored.
    transposed = platform() == "cpu"
    product = "gbtd,gbtv->gdv" if transposed else "gbtd,gbtv->gvd"
    order = (None, "vocab") if transposed else ("vocab", None)

    def grouped(x: Array) -> Array:
        """[B, T, ...] -> [chunks, groups, B / groups, T / chunks, ...]."""
        split = split_sequence(x, chunks)
        split = split.reshape(chunks, groups, -1, *split.shape[2:])
        return constrain_sharding(split, None, "batch", *[None] * (split.ndim - 2))

    def add_chunk(
        carry: tuple[Array, Array, Array], inputs: tuple[Array, Array, Array]
    ) -> tuple[tuple[Array, Array, Array], Array]:
        objective, nll_sum, grad_w = carry
        hidden, targets, loss_mask = inputs  # [groups, b, t, D], [groups, b, t] twice
        logits = einsum_f32("gbtd,vd->gbtv", hidden, w)
        is_target = targets[..., None] == jnp.arange(w.shape[0])
        log_total = jax.nn.logsumexp(logits, axis=-1)
        nll = log_total - jnp.sum(jnp.where(is_target, logits, 0), axis=-1)
        probabilities = jnp.exp(logits - log_total[..., None])
        logit_grad_scale = loss_mask * (1 + 2 * z_loss_weight * log_total)
        grad = probabilities * logit_grad_scale[..., None] - is_target * loss_mask[..., None]
        grad = grad.astype(hidden.dtype)
        grad_hidden = einsum_f32("gbtv,vd->gbtd", grad, w).astype(hidden.dtype)
        grad_w = constrain_sharding(grad_w + einsum_f32(product, hidden, grad), "batch", *order)
        nll_sum += jnp.sum(nll * loss_mask)
        objective += jnp.sum((nll + z_loss_weight * jnp.square(log_total)) * loss_mask)
        return (objective, nll_sum, grad_w), grad_hidden

    zero = jnp.zeros((), jnp.float32)
    shape = unembedding.shape[::-1] if transposed else unembedding.shape
    grad_w = jnp.zeros((groups, *shape), jnp.float32)
    (objective, nll_sum, grad_w), grad_hidden = jax.lax.scan(
        add_chunk, (zero, zero, grad_w), (grouped(hidden), grouped(targets), grouped(loss_mask))
    )
    grad_hidden = join_sequence(grad_hidden.reshape(chunks, hidden.shape[0], -1, hidden.shape[2]))
    grad_w = jnp.sum(grad_w, axis=0)
    grad_w = constrain_sharding(grad_w.T if transposed else grad_w, "vocab", "embed")
    return (objective, nll_sum), (grad_hidden, grad_w.astype(unembedding.dtype))


def _cross_entropy_backward(
    chunks: int, z_loss_weight: float, residuals: tuple[Array, Array], grads: tuple[Array, Array]
) -> tuple[Array, Array, None, None]:
    grad_hidden, grad_w = residuals
    return (grad_hidden * grads[0]).astype(grad_hidden.dtype), grad_w * grads[0], None, None


cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)
