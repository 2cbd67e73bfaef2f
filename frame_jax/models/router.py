"""The router of a mixture of experts: logits, choices, and their statistics.

Everything is float32, products at full precision: rounding flips choices near ties.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from frame_jax.models.layers import recompute_in_backward, save_activation


class RouterStatistics(NamedTuple):
    """Statistics of one layer's router: sums over tokens or rows, float32.

    They add, exactly, over rows, microbatches and devices; a row of padding adds nothing. A loss is
    then `(balance_weight * balance + z_weight * z) / tokens` of the summed statistics.

    Attributes:
        counts: [E] choices of each expert.
        balance: [] the sum over rows of n * E * sum_e f_e * P_e: n the row's tokens, f_e the share
            of expert e in their choices, P_e its mean probability (Switch Transformer, by row). n
            where choices are even.
        z: [] the sum over tokens of the squared log-sum-exp of the logits (ST-MoE).
        entropy: [] the sum over tokens of the entropy of the probabilities, nats.
        tokens: [] tokens counted.
    """

    counts: Array
    balance: Array
    z: Array
    entropy: Array
    tokens: Array


def router_logits(x: Array, weight: Array) -> Array:
    """The router's logits: [..., D] in the compute dtype times [D, E] float32, [..., E] float32.

    The backward pass chooses from the saved logits, so it cannot choose otherwise.
    """
    return save_activation(_logits(x, weight))


@recompute_in_backward
def _logits(x: Array, weight: Array) -> Array:
    return jnp.dot(x.astype(jnp.float32), weight, precision="highest")


def choose_experts(
    logits: Array,
    bias: Array | None,
    num_experts_per_token: int,
    score_function: Literal["softmax", "sigmoid"],
    norm_topk_prob: bool,
    routed_scaling_factor: float,
) -> tuple[Array, Array, Array]:
    """Chooses the experts of each token: those with the highest score, the first of equals.

    Args:
        logits: [..., E] float32.
        bias: [E] float32, added to the scores for the choice only; or None.
        num_experts_per_token: k, experts of a token.
        score_function: `softmax` over all experts, or `sigmoid` of each expert by itself.
        norm_topk_prob: Whether a token's weights are divided by their sum.
        routed_scaling_factor: What the weights are multiplied by, last.

    Returns:
        experts: [..., k] int32, all different.
        weights: [..., k] float32, the chosen scores.
        probabilities: [..., E] float32, the scores, which sum to 1 over experts.
    """
    probabilities = score = jax.nn.softmax(logits)
    if score_function == "sigmoid":
        score = jax.nn.sigmoid(logits)
        probabilities = score / _total(score)
    biased = score if bias is None else score + bias
    _, experts = jax.lax.top_k(jax.lax.stop_gradient(biased), num_experts_per_token)
    weights = _chosen(score, experts)
    if norm_topk_prob:
        weights /= _total(weights)
    return experts, weights * routed_scaling_factor, probabilities


def _total(scores: Array) -> Array:
    """The sum over the last axis, above zero where all sigmoids underflow."""
    return jnp.sum(scores, axis=-1, keepdims=True) + 1e-20


@recompute_in_backward
def _chosen(score: Array, experts: Array) -> Array:
    """`score` [..., E] at `experts` [..., k]. Comparing instead of indexing keeps a scatter out of
    the backward pass."""
    chosen = _is_chosen(experts, score.shape[-1])
    return jnp.sum(jnp.where(chosen, score[..., None, :], 0.0), axis=-1)


def _is_chosen(experts: Array, num_experts: int) -> Array:
    """[..., k] to [..., k, E]."""
    return experts[..., None] == jnp.arange(num_experts)


def router_statistics(
    logits: Array, probabilities: Array, experts: Array, loss_mask: Array
) -> RouterStatistics:
    """Sums the statistics of one layer's router; see `RouterStatistics`.

    Gradients flow to `probabilities`, by way of `balance`, and to `logits`, by way of `z`.

    Args:
        logits: [B, T, E] float32.
        probabilities: [B, T, E] float32.
        experts: [B, T, k] int32.
        loss_mask: [B, T] float32, 1 where a token counts, 0 for padding.
    """
    E, k = logits.shape[-1], experts.shape[-1]
    tokens = jnp.sum(loss_mask, axis=1)  # [B]
    chosen = jnp.sum(_is_chosen(experts, E), axis=2) * loss_mask[:, :, None]
    counts = jnp.sum(chosen, axis=1)  # [B, E]
    mass = jnp.sum(probabilities * loss_mask[:, :, None], axis=1)  # [B, E]
    balance = E / (k * jnp.maximum(tokens, 1)) * jnp.sum(counts * mass, axis=1)  # [B]
    z = jnp.square(jax.nn.logsumexp(logits, axis=-1))
    # The derivative of the entropy is infinite where a probability is 0.
    entropy = jnp.sum(jax.scipy.special.entr(jax.lax.stop_gradient(probabilities)), axis=-1)
    return RouterStatistics(
        counts=jnp.sum(counts, axis=0),
        balance=jnp.sum(balance),
        z=jnp.sum(z * loss_mask),
        entropy=jnp.sum(entropy * loss_mask),
        tokens=jnp.sum(tokens),
    )


def updated_router_bias(bias: Array, counts: Array, rate: float) -> Array:
    """The balancing bias of the next step: up for experts chosen less than the mean, else down.

    Source: loss-free balancing, arXiv:2408.15664.

    Args:
        bias: [..., E] float32.
        counts: [..., E] float32, choices in the whole batch.
        rate: How far it moves.
    """
    return bias + rate * jnp.sign(jnp.mean(counts, axis=-1, keepdims=True) - counts)
