"""The fused state-space kernels, interpreted on a CPU: against the recurrence in NumPy float64 and
against the plain form; and what the GPU compiler makes of them, where it is installed."""

import functools
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from frame_jax.models import ssd, triton_ssd
from tests.gpu_compiler import compiled_for, needs_gpu_compiler
from tests.models.test_ssd import assert_close, positions_of, starts_of

P, N = 16, 32
Arrays = Sequence[np.ndarray]


def make(
    positions: np.ndarray, heads: int, groups: int, dt: tuple[float, float] = (1e-3, 1.0)
) -> Arrays:
    """Random x, dt, a, b, c, d and a derivative of the outputs, float64; dt log-uniform."""
    random, tokens = np.random.default_rng(0), positions.shape
    x, grad = random.normal(size=(2, *tokens, heads, P))
    b, c = random.normal(size=(2, *tokens, groups, N))
    steps = np.exp(random.uniform(*np.log(dt), size=(*tokens, heads)))
    return x, steps, -random.uniform(1, 16, heads), b, c, random.normal(size=heads), grad


def recurrence(inputs: Arrays, positions: np.ndarray) -> tuple[np.ndarray, ...]:
    """Outputs, and the derivatives of their inner product with the last input, token by token."""
    x, dt, a, b, c, d, grad = inputs
    per_group = x.shape[2] // b.shape[2]
    b, c = (np.repeat(v, per_group, axis=2) for v in (b, c))
    y, by_x, by_b, by_c = d[:, None] * x, d[:, None] * grad, np.zeros_like(b), np.zeros_like(c)
    by_dt, kept = np.zeros_like(dt), np.exp(dt * a)
    by_decay = np.zeros_like(dt)
    for row, tokens in starts_of(positions):
        places = range(tokens.start, tokens.stop)
        state, before = np.zeros((x.shape[2], N, P)), {}
        for t in places:
            before[t] = state
            added = b[row, t, :, :, None] * x[row, t, :, None]
            state = kept[row, t, :, None, None] * state + dt[row, t, :, None, None] * added
            y[row, t] += np.einsum("hn,hnp->hp", c[row, t], state)
            by_c[row, t] = np.einsum("hnp,hp->hn", state, grad[row, t])
        after = np.zeros_like(state)
        for t in reversed(places):
            after = after + c[row, t, :, :, None] * grad[row, t, :, None]
            from_b = np.einsum("hn,hnp->hp", b[row, t], after)
            by_x[row, t] += dt[row, t, :, None] * from_b
            by_b[row, t] = dt[row, t, :, None] * np.einsum("hnp,hp->hn", after, x[row, t])
            by_decay[row, t] = np.sum(after * before[t], axis=(1, 2)) * kept[row, t]
            by_dt[row, t] = np.sum(from_b * x[row, t], axis=1)
            after = kept[row, t, :, None, None] * after
    by_dt += by_decay * a
    by_b, by_c = (v.reshape(*v.shape[:2], -1, per_group, N).sum(3) for v in (by_b, by_c))
    by_a, by_d = np.sum(by_decay * dt, axis=(0, 1)), np.sum(grad * x, axis=(0, 1, 3))
    return y, by_x, by_dt, by_a, by_b, by_c, by_d


def values(inputs: Arrays, positions: np.ndarray, dtype: jnp.dtype) -> tuple[jax.Array, ...]:
    """Outputs and derivatives, of inputs rounded to `dtype` where the model has them in it."""
    *inputs, grad = (jnp.asarray(v, dtype if v.ndim == 4 else jnp.float32) for v in inputs)

    @jax.jit
    def run(*inputs: jax.Array) -> tuple[jax.Array, ...]:
        y, pull = jax.vjp(lambda *inputs: ssd.ssd(*inputs, positions, 64), *inputs)
        return (y, *pull(grad))

    return run(*inputs)


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of a GPU with its kernels interpreted, in float32 too: tolerances can be tight."""
    interpreted = functools.partial(triton_ssd.recurrence, interpret=True)
    monkeypatch.setattr(ssd, "platform", lambda: "gpu")
    monkeypatch.setattr(triton_ssd, "recurrence", interpreted)
    monkeypatch.setattr(triton_ssd, "unsupported_reason", lambda inputs: None)


CHUNK = triton_ssd.CHUNK
# Documents begin inside chunks, at their borders, at every token, and never; padding is the last.
ROWS = [
    [CHUNK, CHUNK, 22],
    [CHUNK - 1, 1, CHUNK + 1, 21],
    [2 * CHUNK + 22],
    [30, 3, CHUNK, *[1] * 53],
]


@pytest.mark.parametrize(
    ("heads", "groups", "dt"),
    [
        (6, 2, (1e-3, 1.0)),
        (16, 1, (1e-6, 100.0)),  # two blocks of heads
        (2, 2, (90.0, 110.0)),
        (2, 1, (1e-8, 1e-6)),
    ],
)
@pytest.mark.usefixtures("fused")
def test_agrees_with_the_recurrence(heads: int, groups: int, dt: tuple[float, float]) -> None:
    positions = positions_of(ROWS)
    inputs = make(positions, heads, groups, dt)
    rounded = tuple(np.asarray(v, np.float32).astype(np.float64) for v in inputs)
    expected = recurrence(rounded, positions)
    for ours, theirs in zip(values(inputs, positions, jnp.float32), expected, strict=True):
        assert ours.dtype == jnp.float32
        assert_close(ours, theirs, 5e-6)


def test_bfloat16_is_as_near_as_the_plain_form(request: pytest.FixtureRequest) -> None:
    positions = positions_of(ROWS)
    inputs = make(positions, 4, 2)
    rounded = tuple(
        np.asarray(jnp.asarray(v, jnp.bfloat16 if v.ndim == 4 else jnp.float32), np.float64)
        for v in inputs
    )
    expected = recurrence(rounded, positions)
    plain = values(inputs, positions, jnp.bfloat16)
    request.getfixturevalue("fused")
    for ours, theirs, exact in zip(
        values(inputs, positions, jnp.bfloat16), plain, expected, strict=True
    ):
        assert ours.dtype == theirs.dtype
        scale = np.max(np.abs(exact))
        error, usual = (np.std(np.asarray(v, np.float64) - exact) for v in (ours, theirs))
        assert error < 1.3 * usual + 1e-6 * scale
        assert_close(ours, exact, 1e-2)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.usefixtures("fused")
def test_rows_and_heads_cut_over_devices_change_nothing(groups: int, use_devices) -> None:
    """Groups with their heads; of one group its heads, whose derivatives of B and C are summed."""
    use_devices(4)
    positions = positions_of(ROWS[:2])
    inputs = make(positions, 4, groups)
    expected = values(inputs, positions, jnp.float32)
    auto = (jax.sharding.AxisType.Auto,) * 5
    names = ("slice", "data", "fsdp", "expert", "tensor")
    mesh = jax.make_mesh((1, 1, 2, 1, 2), names, axis_types=auto)
    with jax.sharding.set_mesh(mesh):
        split = values(inputs, positions, jnp.float32)
    for ours, whole in zip(split, expected, strict=True):
        assert_close(ours, np.asarray(whole, np.float64), 1e-6)
    cut = PartitionSpec(("slice", "data", "fsdp", "expert"), None, "tensor")
    assert split[0].sharding.is_equivalent_to(jax.sharding.NamedSharding(mesh, cut), 4)


def test_what_the_kernels_do_not_take_goes_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    positions = positions_of([[20, 12]])
    inputs = make(positions, 2, 1)
    plain = values(inputs, positions, jnp.float32)
    monkeypatch.setattr(ssd, "platform", lambda: "gpu")
    with pytest.warns(UserWarning, match="plain XLA: the kernels compute in bfloat16, not float32"):
        instead = values(inputs, positions, jnp.float32)
    jax.tree.map(np.testing.assert_array_equal, instead, plain)
    monkeypatch.setitem(sys.modules, "frame_jax.models.triton_ssd", None)
    monkeypatch.delattr("frame_jax.models.triton_ssd")
    with pytest.warns(UserWarning, match="plain XLA: this version of JAX has no Pallas"):
        instead = values(inputs, positions, jnp.bfloat16)
    assert instead[0].dtype == jnp.bfloat16


@needs_gpu_compiler
@pytest.mark.parametrize("chip", ["a100", "h100", "b200"])
def test_compiles_for(chip: str) -> None:
    """Without a device; of no array is there one a pair of tokens."""
    B, T, H = 2, 512, 6

    def step(*arrays: jax.Array) -> ssd.TokenInputs:
        inputs = ssd.TokenInputs(*arrays[:5])
        assert triton_ssd.unsupported_reason(inputs) is None
        y, pull = jax.vjp(triton_ssd.recurrence, inputs, arrays[5])
        return pull(y)[0]

    x, by_head = ((B, T, 1, H, 64), "bfloat16"), ((B, T, 1, H), "float32")
    b, d = ((B, T, 1, 128), "bfloat16"), ((B, 1, H), "float32")
    text = compiled_for(chip, step, x, by_head, by_head, b, b, d).as_text()
    forward, states, gradients = 57344, 16384, 64 * 192 + 4 * 8192 + 3 * 64 * 128 // 6
    for flops in (forward, states, 2 * gradients):
        assert rf"{{\22flops\22: \22{flops * B * T * H}\22}}" in text
    for name in ("ssd_forward", "ssd_states", "ssd_state_gradients", "ssd_gradients"):
        assert name in text
