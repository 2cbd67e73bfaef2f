"""Attention on CPUs against NumPy in float64, and the work it does not do."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frame_jax.models import segment_attention as module
from frame_jax.models.segment_attention import BRANCHES, KEY_BLOCK, QUERY_BLOCK, segment_attention

pytestmark = pytest.mark.slow
HEAD = 16


def make(segments: list[list[int]], heads: int, key_heads: int) -> tuple[np.ndarray, ...]:
    """Random q, k, v in float64, and ids of segments of these lengths, which fill each row."""
    random = np.random.default_rng(0)
    B, T = len(segments), sum(segments[0])
    q = random.normal(size=(B, T, heads, HEAD))
    k, v = random.normal(size=(2, B, T, key_heads, HEAD))
    ids = [np.repeat(random.permutation(len(row)), row) for row in segments]
    return q, k, v, np.array(ids, np.int32)


def one_by_one(q: np.ndarray, k: np.ndarray, v: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Every segment by itself, every head by itself."""
    mixed = np.empty_like(q)
    groups = q.shape[2] // k.shape[2]
    for row in range(len(q)):
        for segment in np.unique(ids[row]):
            places = np.flatnonzero(ids[row] == segment)
            for head in range(q.shape[2]):
                scores = q[row, places, head] @ k[row, places, head // groups].T / np.sqrt(HEAD)
                scores[np.triu_indices(len(places), 1)] = -np.inf
                weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
                weights /= weights.sum(axis=-1, keepdims=True)
                mixed[row, places, head] = weights @ v[row, places, head // groups]
    return mixed


def derivatives_one_by_one(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, ids: np.ndarray, grad: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Derivatives of the inner product of `one_by_one` with `grad`."""
    by_q, by_k, by_v = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    groups, scale = q.shape[2] // k.shape[2], HEAD**-0.5
    for row in range(len(q)):
        for segment in np.unique(ids[row]):
            places = np.flatnonzero(ids[row] == segment)
            for head in range(q.shape[2]):
                here, there = (row, places, head), (row, places, head // groups)
                scores = q[here] @ k[there].T * scale
                scores[np.triu_indices(len(places), 1)] = -np.inf
                weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
                weights /= weights.sum(axis=-1, keepdims=True)
                by_weight = grad[here] @ v[there].T
                by_score = weights * (by_weight - (by_weight * weights).sum(-1, keepdims=True))
                by_q[here] = by_score @ k[there] * scale
                by_k[there] += by_score.T @ q[here] * scale
                by_v[there] += weights.T @ grad[here]
    return by_q, by_k, by_v


LONGER = KEY_BLOCK * (BRANCHES + 1)  # skips in steps of two key blocks, which do not divide it
CASES = {
    "ragged": [[1, 1, 3, 200, 1, 130, 176], [100, 29, 255, 127, 1]],
    "tokens alone": [[1] * 256] * 2,
    "a segment a row": [[512], [512]],
    "blocks": [[128, 128, 256], [256, 128, 128]],
    "around the edges of blocks": [[127, 2, 126, 1], [129, 126, 1, 0]],
    "longer than the branches": [[1, LONGER - 130, 129], [300, LONGER - 300, 0]],
    "one segment, longer than the branches": [[LONGER]] * 2,
}


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (3, 1)], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_agrees_with_float64_segment_by_segment(case: str, heads: tuple[int, int]) -> None:
    q, k, v, ids = make(CASES[case], *heads)
    actual = jax.jit(segment_attention)(*(jnp.asarray(x, jnp.float32) for x in (q, k, v)), ids)
    np.testing.assert_allclose(actual, one_by_one(q, k, v, ids), atol=2e-6, rtol=1e-5)


@jax.jit
def derivatives(
    q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array, grad: jax.Array
) -> tuple[jax.Array, ...]:
    return jax.vjp(lambda *x: segment_attention(*x, ids), q, k, v)[1](grad)


@pytest.mark.parametrize("heads", [(4, 2), (3, 3)], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_derivatives_agree_with_float64_segment_by_segment(
    case: str, heads: tuple[int, int]
) -> None:
    q, k, v, ids = make(CASES[case], *heads)
    grad = np.random.default_rng(1).normal(size=q.shape)
    *inputs, cotangent = (jnp.asarray(x, jnp.float32) for x in (q, k, v, grad))
    actual = derivatives(*inputs, ids, cotangent)
    for ours, theirs in zip(actual, derivatives_one_by_one(q, k, v, ids, grad), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-4)


def test_derivatives_in_bfloat16_are_float64s_rounded() -> None:
    q, k, v, ids = make(CASES["ragged"], 4, 2)
    grad = np.random.default_rng(1).normal(size=q.shape)
    rounded = [jnp.asarray(x, jnp.bfloat16) for x in (q, k, v, grad)]
    actual = derivatives(*rounded[:3], ids, rounded[3])
    exact = [np.asarray(x, np.float64) for x in rounded]
    for ours, theirs in zip(actual, derivatives_one_by_one(*exact[:3], ids, exact[3]), strict=True):
        assert ours.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(ours, np.float64), theirs, atol=0.05, rtol=0.03)


def test_bfloat16_rounds_operands_and_nothing_more() -> None:
    q, k, v, ids = make(CASES["ragged"], 4, 2)
    rounded = [jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)]
    actual = jax.jit(segment_attention)(*rounded, ids)
    assert actual.dtype == jnp.bfloat16
    expected = one_by_one(*(np.asarray(x, np.float64) for x in rounded), ids)
    np.testing.assert_allclose(np.asarray(actual, np.float64), expected, atol=0.02, rtol=0.02)


@pytest.fixture
def widths_executed(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[int]], list[int]]:
    """Keys that each block of queries is multiplied with, while the program runs on segments."""
    executed: list[int] = []
    attend = module.attend

    def noted(k, v, segment_ids, width, *rest):
        jax.debug.callback(lambda: executed.append(width))
        return attend(k, v, segment_ids, width, *rest)

    monkeypatch.setattr(module, "attend", noted)
    attention = jax.jit(lambda *args: module.segment_attention(*args))

    def run(segments: list[int]) -> list[int]:
        executed.clear()
        jax.block_until_ready(attention(*make([segments], 2, 1)))
        jax.effects_barrier()
        return sorted(executed)

    return run


@pytest.mark.parametrize("length", [1024, LONGER])
def test_keys_before_the_segment_are_not_multiplied(
    length: int, widths_executed: Callable[[list[int]], list[int]]
) -> None:
    blocks, step = length // QUERY_BLOCK, KEY_BLOCK * -(-length // (KEY_BLOCK * BRANCHES))
    whole = widths_executed([length])
    expected = [min(-(-stop // step) * step, length) for stop in range(128, length + 1, 128)]
    assert whole == sorted(expected)
    assert widths_executed([QUERY_BLOCK] * blocks) == [step] * blocks
    # Short documents: a block reads itself and at most the one before.
    short = widths_executed([100] * (length // 100) + [length % 100])
    assert max(short) <= 2 * KEY_BLOCK and len(short) == blocks
    assert sum(short) < sum(whole) / 2
