"""Every attention path that runs here against NumPy in float64, on ragged segments."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frame_jax.models import attention as module
from frame_jax.models.attention import attention, lean_attention, splash_attention

pytestmark = pytest.mark.slow
B, T, H, K, HEAD = 2, 384, 4, 2, 128
PATHS = {
    "lean": lean_attention,
    "splash": functools.partial(splash_attention, interpret=True),
}


def reference(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, ids: np.ndarray, grad: np.ndarray
) -> tuple[np.ndarray, ...]:
    """The mixed values, and the derivatives of their inner product with `grad`."""
    B, T, K, head_dim = k.shape
    groups = q.shape[2] // K
    k, v = (np.repeat(x, groups, axis=2) for x in (k, v))
    scores = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(head_dim)
    seen = (ids[:, :, None] == ids[:, None]) & np.tri(T, dtype=bool)
    scores = np.where(seen[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    mixed = np.einsum("bhqk,bkhd->bqhd", weights, v)
    by_weight = np.einsum("bqhd,bkhd->bhqk", grad, v)
    by_score = weights * (by_weight - (by_weight * weights).sum(-1, keepdims=True))
    by_score /= np.sqrt(head_dim)
    by_k = np.einsum("bhqk,bqhd->bkhd", by_score, q)
    by_v = np.einsum("bhqk,bqhd->bkhd", weights, grad)
    by_k, by_v = (x.reshape(B, T, K, groups, head_dim).sum(3) for x in (by_k, by_v))
    return mixed, np.einsum("bhqk,bkhd->bqhd", by_score, k), by_k, by_v


@pytest.mark.parametrize("path", PATHS)
def test_agrees_with_float64_on_ragged_segments(path: str) -> None:
    random = np.random.default_rng(0)
    q, grad = random.normal(size=(2, B, T, H, HEAD))
    k, v = random.normal(size=(2, B, T, K, HEAD))
    # Documents of one token, of uneven lengths, and one that fills a row.
    ids = np.zeros((B, T), np.int32)
    ids[0] = np.cumsum(random.random(T) < 0.02)
    ids[0, :3] = [-2, -1, 0]
    expected = reference(q, k, v, ids, grad)
    attend: Callable[..., jax.Array] = functools.partial(PATHS[path], segment_ids=jnp.asarray(ids))

    @jax.jit
    def value_and_derivatives(grad: jax.Array, *inputs: jax.Array) -> tuple[jax.Array, ...]:
        mixed, pull = jax.vjp(attend, *inputs)
        return mixed, *pull(grad)

    actual = value_and_derivatives(*(jnp.asarray(x, jnp.float32) for x in (grad, q, k, v)))
    for ours, theirs in zip(actual, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize(
    ("length", "taken"),
    [
        (128, "lean_attention"),
        (256, "lean_attention"),
        (384, "segment_attention"),
        (200, "lean_attention"),
    ],
)
def test_a_cpu_skips_other_documents_in_long_rows(
    length: int, taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []
    for owner, name in (
        (module, "lean_attention"),
        (module.segment_attention, "segment_attention"),
    ):
        monkeypatch.setattr(owner, name, lambda q, *_, name=name: called.append(name) or q)
    q = jnp.zeros((1, length, 2, 8))
    attention(q, q, q, jnp.zeros((1, length), jnp.int32))
    assert called == [taken]
