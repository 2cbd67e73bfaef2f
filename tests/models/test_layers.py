"""Products and rotations against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frame_jax.models import layers
from frame_jax.models.layers import apply_rotary, matmul, rotary_frequencies, rotary_tables
from tests.optimized import compile_optimized

B, T, H, WIDTH = 2, 5, 3, 8


def random(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


# What is summed is narrower, wider, and as wide as what is kept.
@pytest.mark.parametrize(
    ("axes", "kept"), [(1, (7,)), (1, (H, WIDTH)), (2, (7,)), (2, (H, WIDTH)), (1, (2, 3))]
)
def test_a_product_and_its_derivatives(axes: int, kept: tuple[int, ...]) -> None:
    summed = (H, WIDTH)[-axes:]
    x, w = random(0, B, T, *summed), random(1, *summed, *kept)
    cotangent = random(2, B, T, *kept)
    wide = [a.astype(np.float32) for a in (x, w, cotangent)]
    product, pull_back = jax.vjp(lambda x, w: matmul(x, w, axes), *wide[:2])
    grad_x, grad_w = pull_back(wide[2])
    many = range(2, 2 + len(kept))
    np.testing.assert_allclose(product, np.tensordot(x, w, axes), rtol=1e-4, atol=1e-5)
    expected = np.tensordot(cotangent, w, (many, range(axes, w.ndim)))
    np.testing.assert_allclose(grad_x, expected, rtol=1e-4, atol=1e-5)
    expected = np.tensordot(x, cotangent, ((0, 1), (0, 1)))
    np.testing.assert_allclose(grad_w, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("wide", "narrow"), [(192, 64), (64, 192)])
def test_a_cpu_lays_out_the_narrower_operand_anew(wide: int, narrow: int) -> None:
    """For the derivative of the weights; the other of the two would cost several times as much."""
    tokens = 4096
    x, w = jnp.ones((1, tokens, wide)), jnp.ones((wide, narrow))
    grad = jnp.ones((1, tokens, narrow))
    of_weights = jax.jit(lambda x, w, grad: jax.vjp(lambda w: matmul(x, w), w)[1](grad))
    program = compile_optimized(of_weights.lower(x, w, grad)).as_text()
    assert f"f32[{min(wide, narrow)},{tokens}]" in program
    assert f"f32[{max(wide, narrow)},{tokens}]" not in program


def test_a_product_sums_in_float32_and_keeps_dtypes() -> None:
    x = jnp.ones((1, 4096), jnp.bfloat16)
    w = jnp.ones((4096, 2), jnp.float32)
    product, pull_back = jax.vjp(matmul, x, w)
    assert product.dtype == jnp.bfloat16
    assert product.tolist() == [[4096.0, 4096.0]]  # bfloat16 sums would stop at 256
    grad_x, grad_w = pull_back(product)
    assert grad_x.dtype == jnp.bfloat16
    assert grad_w.dtype == jnp.float32


@pytest.mark.parametrize("backend", ["cpu", "tpu"])
def test_pairs_turn_by_their_angle(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "platform", lambda: backend)
    positions = np.array([[0, 1, 2, 3, 400], [0, 0, 7, 8, 9]])
    frequencies = rotary_frequencies(WIDTH, 10000.0)
    tables = rotary_tables(jnp.asarray(positions), frequencies)
    x, cotangent = random(3, B, T, H, WIDTH), random(4, B, T, H, WIDTH)

    def turned(x: np.ndarray, sign: int) -> np.ndarray:
        pairs = x[..., : WIDTH // 2] + 1j * x[..., WIDTH // 2 :]
        angles = positions[:, :, None, None] * frequencies.astype(np.float64)
        pairs = pairs * np.exp(sign * 1j * angles)
        return np.concatenate([pairs.real, pairs.imag], axis=-1)

    rotated, pull_back = jax.vjp(lambda x: apply_rotary(x, tables), x.astype(np.float32))
    np.testing.assert_allclose(rotated, turned(x, 1), rtol=1e-4, atol=1e-4)
    (grad,) = pull_back(cotangent.astype(np.float32))
    np.testing.assert_allclose(grad, turned(cotangent, -1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_matrix_unit_exchanges_halves_exactly(
    dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = jnp.asarray(random(5, B, T, H, WIDTH), dtype)
    expected = np.roll(np.asarray(x, np.float32), WIDTH // 2, axis=-1)
    for backend in ("cpu", "tpu"):
        monkeypatch.setattr(layers, "platform", lambda backend=backend: backend)
        np.testing.assert_array_equal(layers._partners(x), expected)
