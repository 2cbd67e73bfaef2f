"""The loss and its derivatives against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frame_jax.models.cross_entropy import cross_entropy, token_nll
from tests.optimized import compile_optimized

B, T, D, V = 2, 32, 16, 96


@pytest.mark.parametrize("chunks", [1, 4])
@pytest.mark.parametrize("z_loss_weight", [0.0, 0.1])
def test_values_and_derivatives_are_those_of_float64(chunks: int, z_loss_weight: float) -> None:
    random = np.random.default_rng(0)
    hidden, w = random.normal(size=(B, T, D)), random.normal(size=(V, D))
    targets = random.integers(0, V, (B, T))
    weights = random.integers(0, 2, (B, T)).astype(np.float64)

    logits = hidden @ w.T
    log_total = np.log(np.exp(logits).sum(-1))
    hot = np.eye(V)[targets]
    nll = log_total - (logits * hot).sum(-1)
    by_logit = (
        np.exp(logits - log_total[..., None]) * (1 + 2 * z_loss_weight * log_total)[..., None] - hot
    )
    by_logit *= weights[..., None]

    def objective(hidden: jax.Array, w: jax.Array) -> tuple[jax.Array, jax.Array]:
        ids, counted = jnp.asarray(targets, jnp.int32), jnp.asarray(weights, jnp.float32)
        return cross_entropy(hidden, w, ids, counted, chunks, z_loss_weight)

    inputs = jnp.asarray(hidden, jnp.float32), jnp.asarray(w, jnp.float32)
    (value, found_nll), grads = jax.value_and_grad(objective, (0, 1), has_aux=True)(*inputs)
    np.testing.assert_allclose(found_nll, (nll * weights).sum(), rtol=1e-5)
    np.testing.assert_allclose(
        value, ((nll + z_loss_weight * log_total**2) * weights).sum(), rtol=1e-5
    )
    np.testing.assert_allclose(grads[0], by_logit @ w, rtol=1e-4, atol=1e-4)
    expected = np.einsum("btv,btd->vd", by_logit, hidden)
    np.testing.assert_allclose(grads[1], expected, rtol=1e-4, atol=1e-4)


def test_bfloat16_rounds_operands_and_no_logits() -> None:
    random = np.random.default_rng(1)
    hidden = jnp.asarray(4 * random.normal(size=(B, T, D)), jnp.bfloat16)
    w = jnp.asarray(random.normal(size=(V, D)), jnp.bfloat16).astype(jnp.float32)
    targets = random.integers(0, V, (B, T))
    logits = np.asarray(hidden, np.float64) @ np.asarray(w, np.float64).T
    nll = (
        np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    )
    ids = jnp.asarray(targets, jnp.int32)
    found = token_nll(hidden, w, ids, 2)
    np.testing.assert_allclose(found, nll, rtol=1e-5, atol=1e-4)
    summed = cross_entropy(hidden, w, ids, jnp.ones((B, T)), 2)[1]
    np.testing.assert_allclose(summed, nll.sum(), rtol=1e-5)


def test_the_derivative_by_logits_is_not_laid_out_anew() -> None:
    """On a CPU, element by element: a tenth of the quickstart's step."""
    tokens, vocabulary = 1024, 2048
    hidden, w = jnp.ones((4, tokens // 4, 64)), jnp.ones((vocabulary, 64))
    ids, counted = jnp.zeros((4, tokens // 4), jnp.int32), jnp.ones((4, tokens // 4))
    gradient = jax.jit(jax.grad(lambda *x: cross_entropy(*x, ids, counted, 1)[0], (0, 1)))
    program = compile_optimized(gradient.lower(hidden, w)).as_text()
    assert f"f32[{tokens},{vocabulary}]" in program
    assert f"f32[{vocabulary},{tokens}]" not in program
