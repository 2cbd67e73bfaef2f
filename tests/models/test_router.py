"""The router against NumPy in float64, one token after another."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frame_jax.config.models import ExpertsConfig
from frame_jax.models.feed_forward_experts import (
    RouterStatistics,
    choose_experts,
    router_logits,
    router_statistics,
    updated_router_bias,
)

B, T, E, K = 5, 11, 6, 2


def random(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def settings(k: int, scores: str, norm_topk_prob: bool, scaling: float = 1.0) -> ExpertsConfig:
    return ExpertsConfig(
        E, k, scores=scores, norm_topk_prob=norm_topk_prob, routed_scaling_factor=scaling
    )


def choose_one(
    logits: np.ndarray, bias: np.ndarray, k: int, scores: str, norm_topk_prob: bool, scaling: float
) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Experts, weights and probabilities of one token."""
    score = np.exp(logits) / np.exp(logits).sum()
    if scores == "sigmoid":
        score = 1 / (1 + np.exp(-logits))
    experts = sorted(range(len(logits)), key=lambda e: (-(score + bias)[e], e))[:k]
    weights = score[experts]
    if norm_topk_prob:
        weights = weights / weights.sum()
    return experts, weights * scaling, score / score.sum()


@pytest.mark.parametrize("k", [1, 3, E])
@pytest.mark.parametrize("norm_topk_prob", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
def test_choices_of_each_token(scores: str, biased: bool, norm_topk_prob: bool, k: int) -> None:
    logits, bias = random(0, 40, E), random(1, E) * 0.3
    experts, weights, probabilities = choose_experts(
        settings(k, scores, norm_topk_prob, 2.5),
        jnp.float32(logits),
        jnp.float32(bias) if biased else None,
    )
    assert (experts.dtype, weights.dtype, probabilities.dtype) == (jnp.int32, *[jnp.float32] * 2)
    for m, row in enumerate(logits):
        expected = choose_one(row, bias * biased, k, scores, norm_topk_prob, 2.5)
        assert experts[m].tolist() == expected[0]
        np.testing.assert_allclose(weights[m], expected[1], rtol=1e-5)
        np.testing.assert_allclose(probabilities[m], expected[2], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("norm_topk_prob", [False, True])
@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
def test_derivatives_of_the_weights(scores: str, norm_topk_prob: bool) -> None:
    """Against differences in float64. The bias gets none, and no scatter is needed."""
    logits, bias, cotangent = random(0, 7, E), random(1, E) * 0.1, random(2, 7, 3)

    def weights(logits: jax.Array, bias: jax.Array) -> jax.Array:
        return choose_experts(settings(3, scores, norm_topk_prob, 1.5), logits, bias)[1]

    _, pull_back = jax.vjp(weights, jnp.float32(logits), jnp.float32(bias))
    grad, grad_bias = pull_back(jnp.float32(cotangent))
    assert not np.any(np.asarray(grad_bias))
    assert "scatter" not in str(jax.make_jaxpr(pull_back)(jnp.float32(cotangent)))
    for m, row in enumerate(logits):
        for e in range(E):
            ends = [
                choose_one(row + step * np.eye(E)[e], bias, 3, scores, norm_topk_prob, 1.5)[1]
                for step in (1e-6, -1e-6)
            ]
            slope = cotangent[m] @ (ends[0] - ends[1]) / 2e-6
            np.testing.assert_allclose(grad[m, e], slope, rtol=1e-3, atol=1e-5)


def test_the_first_of_equals_is_chosen() -> None:
    experts, _, _ = choose_experts(settings(4, "softmax", True), jnp.zeros((3, E)), None)
    assert experts.tolist() == [[0, 1, 2, 3]] * 3


def test_a_bias_far_from_the_scores_leaves_finite_weights() -> None:
    """Sigmoids that underflow, chosen for their bias."""
    logits, bias = jnp.full((1, E), -200.0), jnp.arange(E, dtype=jnp.float32)
    experts, weights, probabilities = choose_experts(settings(2, "sigmoid", True), logits, bias)
    assert experts.tolist() == [[5, 4]]
    assert np.all(np.isfinite(weights))
    assert np.all(np.isfinite(probabilities))


def test_logits_are_exact_in_float32_and_differentiable() -> None:
    x, weight, cotangent = random(0, 9, 64), random(1, 64, E), random(2, 9, E)
    x = np.float64(jnp.asarray(x, jnp.bfloat16))
    logits, pull_back = jax.vjp(router_logits, jnp.asarray(x, jnp.bfloat16), jnp.float32(weight))
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, x @ weight, rtol=1e-4, atol=1e-5)
    grad_x, grad_weight = pull_back(jnp.float32(cotangent))
    assert grad_x.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(grad_x), cotangent @ weight.T, rtol=1e-2, atol=1e-2)
    np.testing.assert_allclose(grad_weight, x.T @ cotangent, rtol=1e-4, atol=1e-4)
    program = str(jax.make_jaxpr(pull_back)(jnp.float32(cotangent)))
    assert program.count("dot_general") == 2  # the product itself is not repeated
    assert program.count("precision=(Precision.HIGHEST") == 2


def batch(rows: int = B) -> tuple[np.ndarray, np.ndarray]:
    """Logits [rows, T, E], uneven, and counted [rows, T], where one row is padding."""
    logits = random(3, rows, T, E) + np.linspace(0, 2, E)
    counted = (np.arange(T) < np.random.default_rng(4).integers(1, T + 1, (rows, 1))) * 1.0
    counted[rows // 2] = 0
    return logits, counted


@functools.partial(jax.jit, static_argnames="scores")
def measured(logits: jax.Array, counted: jax.Array, scores: str = "softmax") -> RouterStatistics:
    experts, _, probabilities = choose_experts(
        settings(K, scores, False), logits.reshape(-1, E), None
    )
    shape = logits.shape[:2]
    return router_statistics(
        logits, probabilities.reshape(*shape, E), experts.reshape(*shape, K), counted
    )


def measured_one_by_one(logits: np.ndarray, counted: np.ndarray, scores: str) -> RouterStatistics:
    counts, balance, z, entropy = np.zeros(E), 0.0, 0.0, 0.0
    for row, counts_here in zip(logits, counted, strict=True):
        chosen, mass, n = np.zeros(E), np.zeros(E), 0
        for token, counts_token in zip(row, counts_here, strict=True):
            if not counts_token:
                continue
            experts, _, p = choose_one(token, np.zeros(E), K, scores, False, 1.0)
            chosen[experts] += 1
            mass += p
            n += 1
            z += np.log(np.exp(token).sum()) ** 2
            entropy -= (p * np.log(p)).sum()
        counts += chosen
        if n:
            balance += n * E * ((chosen / (K * n)) * (mass / n)).sum()
    return RouterStatistics(counts, *map(np.asarray, (balance, z, entropy, counted.sum())))


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
def test_statistics_are_sums_over_tokens_that_count(scores: str) -> None:
    logits, counted = batch()
    ours = measured(jnp.float32(logits), jnp.float32(counted), scores)
    expected = measured_one_by_one(logits, counted, scores)
    for name, value, reference in zip(RouterStatistics._fields, ours, expected, strict=True):
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, reference, rtol=1e-5, err_msg=name)


def test_even_routing_has_balance_one() -> None:
    logits = np.tile(3 * (np.arange(T + 1)[:, None] % (E // K) == np.arange(E) // K), (B, 1, 1))
    ours = measured(jnp.float32(logits), jnp.ones((B, T + 1)))
    np.testing.assert_allclose(ours.balance / ours.tokens, 1, rtol=1e-6)


def loss(logits: jax.Array, counted: jax.Array, tokens: jax.Array) -> jax.Array:
    """The trainer's, of one piece of a batch with so many tokens."""
    sums = measured(logits, counted)
    return (0.01 * sums.balance + 0.001 * sums.z) / tokens


@pytest.mark.slow
def test_pieces_and_padding_change_neither_statistics_nor_derivatives() -> None:
    logits, counted = (jnp.float32(a) for a in batch())
    whole, tokens = measured(logits, counted), jnp.sum(counted)
    grad = jax.grad(loss)(logits, counted, tokens)
    padded = jnp.concatenate([logits, 9 * jnp.ones((2, T, E))])
    counted = jnp.concatenate([counted, jnp.zeros((2, T))])
    pieces = [(padded[i : i + 1], counted[i : i + 1]) for i in range(B + 2)]
    sums = jax.tree.map(lambda *parts: sum(parts), *[measured(*piece) for piece in pieces])
    for name, value, reference in zip(RouterStatistics._fields, sums, whole, strict=True):
        np.testing.assert_allclose(value, reference, rtol=1e-6, err_msg=name)
    grads = jnp.concatenate([jax.grad(loss)(*piece, tokens) for piece in pieces])
    np.testing.assert_allclose(grads[:B], grad, rtol=1e-5, atol=1e-9)
    assert not np.any(np.asarray(grads[B:]))
    assert not np.any(np.asarray(grad)[np.asarray(counted[:B]) == 0])


def test_derivatives_of_the_loss() -> None:
    """Against differences in float64 with the choices held."""
    logits, counted = batch(rows=2)
    counted[:] = np.arange(T) < 7
    tokens = counted.sum()
    grad = jax.grad(loss)(jnp.float32(logits), jnp.float32(counted), tokens)

    def reference(logits: np.ndarray) -> float:
        sums = measured_one_by_one(logits, counted, "softmax")
        return float((0.01 * sums.balance + 0.001 * sums.z) / tokens)

    for place in [(0, 0, 1), (1, 6, 5), (0, 3, 2)]:
        step = np.zeros_like(logits)
        step[place] = 1e-6
        slope = (reference(logits + step) - reference(logits - step)) / 2e-6
        np.testing.assert_allclose(grad[place], slope, rtol=1e-3)


def test_a_probability_of_zero_leaves_derivatives_finite() -> None:
    logits = jnp.zeros((1, 2, E)).at[:, :, 0].set(200.0)
    grad = jax.grad(lambda logits: sum(map(jnp.sum, measured(logits, jnp.ones((1, 2))))))(logits)
    assert np.all(np.isfinite(grad))


def test_the_bias_moves_against_the_load() -> None:
    bias = jnp.float32([[0.5, 0.0, -1.0], [0.0, 0.0, 0.0]])
    counts = jnp.float32([[9, 3, 6], [4, 4, 4]])
    moved = updated_router_bias(bias, counts, 0.25)
    assert moved.tolist() == [[0.25, 0.25, -1.0], [0.0, 0.0, 0.0]]
