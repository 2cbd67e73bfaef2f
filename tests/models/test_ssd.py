"""The arithmetic of a Mamba-2 mixer against its recurrence, document by document, in NumPy float64,
and against the mixer of transformers."""

import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from frame_jax.models.ssd import document_convolution, gated_rms_norm, ssd
from tests.optimized import compile_optimized

H, P, N = 4, 3, 5
Arrays = Sequence[np.ndarray]


def positions_of(rows: list[list[int]]) -> np.ndarray:
    """[B, T] int32 for documents of these lengths, which fill each row."""
    return np.array([np.concatenate([np.arange(n) for n in row]) for row in rows], np.int32)


def make(
    length: int,
    groups: int,
    seed: int = 0,
    dt: tuple[float, float] = (1e-3, 1.0),
    rows: int = 2,
) -> Arrays:
    """Random x, dt, a, b, c, d in float64; dt log-uniform."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, length, H, P))
    b, c = random.normal(size=(2, rows, length, groups, N))
    steps = np.exp(random.uniform(*np.log(dt), size=(rows, length, H)))
    return x, steps, -random.uniform(1, 16, H), b, c, random.normal(size=H)


def starts_of(positions: np.ndarray) -> list[tuple[int, slice]]:
    """Row and tokens of each document."""
    found = []
    for row, line in enumerate(positions):
        first = [*np.flatnonzero(line == 0), len(line)]
        found += [(row, slice(*ends)) for ends in itertools.pairwise(first)]
    return found


def recurrence(inputs: Arrays, positions: np.ndarray, grad: np.ndarray) -> tuple[np.ndarray, ...]:
    """Outputs, and the derivatives of their inner product with `grad`, token after token."""
    x, dt, a, b, c, d = inputs
    heads = H // b.shape[2]
    y, by_x, by_dt, by_a, by_b, by_c, by_d = (np.zeros_like(v) for v in (x, *inputs))
    for row, tokens in starts_of(positions):
        places = range(tokens.start, tokens.stop)
        for h in range(H):
            g, state, before = h // heads, np.zeros((N, P)), {}
            for t in places:
                here = (row, t, h)
                before[t] = state
                state = np.exp(dt[here] * a[h]) * state + dt[here] * np.outer(b[row, t, g], x[here])
                y[here] = c[row, t, g] @ state + d[h] * x[here]
                by_c[row, t, g] += state @ grad[here]
            by_state = np.zeros((N, P))
            for t in reversed(places):
                here, kept = (row, t, h), np.exp(dt[row, t, h] * a[h])
                by_state = by_state + np.outer(c[row, t, g], grad[here])
                by_x[here] = dt[here] * b[row, t, g] @ by_state + d[h] * grad[here]
                by_b[row, t, g] += dt[here] * by_state @ x[here]
                by_kept = np.sum(by_state * before[t]) * kept
                by_dt[here] = b[row, t, g] @ by_state @ x[here] + a[h] * by_kept
                by_a[h] += dt[here] * by_kept
                by_d[h] += grad[here] @ x[here]
                by_state = kept * by_state
    return y, by_x, by_dt, by_a, by_b, by_c, by_d


@functools.partial(jax.jit, static_argnames="chunk")
def value_and_derivatives(
    inputs: tuple[jax.Array, ...], positions: jax.Array, grad: jax.Array, chunk: int
) -> tuple[jax.Array, ...]:
    y, pull = jax.vjp(lambda *inputs: ssd(*inputs, positions, chunk), *inputs)
    return (y, *pull(grad))


def float32(arrays: Arrays) -> tuple[jax.Array, ...]:
    return tuple(jnp.asarray(x, jnp.float32) for x in arrays)


def assert_close(actual: jax.Array, expected: np.ndarray, tolerance: float) -> None:
    """Equal up to a fraction of the largest number."""
    scale = max(np.max(np.abs(expected)), 1e-30)
    np.testing.assert_allclose(np.asarray(actual, np.float64), expected, 0, tolerance * scale)


def check(inputs: Arrays, positions: np.ndarray, chunk: int, tolerance: float = 2e-6) -> None:
    grad = np.random.default_rng(1).normal(size=inputs[0].shape)
    actual = value_and_derivatives(float32(inputs), positions, *float32((grad,)), chunk)
    expected = recurrence(
        tuple(np.asarray(x, np.float64) for x in float32(inputs)), positions, grad
    )
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.dtype == jnp.float32
        assert_close(ours, theirs, tolerance)


ROWS = [
    [1, 1, 9, 3, 17, 6],
    [20, 1, 2, 14],
    [1] * 37,
    [37],
    [21, *[1] * 16],  # padding after a document
]


@pytest.mark.parametrize(("chunk", "groups"), [(8, 1), (8, 4), (16, 2), (64, 2)])
def test_agrees_with_the_recurrence(chunk: int, groups: int) -> None:
    check(make(37, groups, rows=len(ROWS)), positions_of(ROWS), chunk)


@pytest.mark.parametrize("offset", range(9))
def test_at_every_offset_of_a_document_to_a_chunk(offset: int) -> None:
    rows = [[8 + offset, 24 - offset], [24 - offset, 8 + offset]]
    check(make(32, 2), positions_of(rows), 8)


@pytest.mark.slow
@pytest.mark.parametrize("before", range(9))
def test_a_packed_document_is_what_it_is_alone(before: int) -> None:
    """Whatever is before it, here a state a thousand times its own, which must not cost digits."""
    x, dt, a, b, c, d = float32(make(24, 2))
    front = float32(make(before, 2, seed=7, dt=(50.0, 100.0)))
    after = float32(make(8 - before, 2, seed=8))
    grad = float32((np.random.default_rng(1).normal(size=x.shape),))[0]
    alone = value_and_derivatives((x, dt, a, b, c, d), positions_of([[24]] * 2), grad, 8)

    def packed(i: int, scale: float = 1) -> jax.Array:
        return jnp.concatenate([front[i] * scale, (x, dt, a, b, c)[i], after[i]], axis=1)

    row = (packed(0, 1000), packed(1), a, packed(3), packed(4), d)
    positions = positions_of([[before, 24, 8 - before]] * 2)
    grads = jnp.pad(grad, ((0, 0), (before, 8 - before), (0, 0), (0, 0)))
    together = value_and_derivatives(row, positions, grads, 8)
    for i, (ours, theirs) in enumerate(zip(together, alone, strict=True)):
        whole = ours if i in (3, 6) else ours[:, before : before + 24]  # of a and d: one for all
        assert_close(whole, np.asarray(theirs, np.float64), 1e-6)
        if i not in (0, 3, 6):
            outside = np.delete(ours, np.s_[before : before + 24], axis=1)
            np.testing.assert_array_equal(outside, 0)


def test_the_future_changes_nothing() -> None:
    inputs, positions = make(29, 2), positions_of([[29], [5, 24]])
    run = jax.jit(lambda *inputs: ssd(*inputs, positions, 8))
    y = run(*float32(inputs))
    for cut in (1, 7, 8, 20):
        changed = [x.copy() for x in inputs]
        for x in (changed[i] for i in (0, 1, 3, 4)):
            x[:, cut:] = x[:, cut:] * 3 + 1
        changed = run(*float32(changed))
        np.testing.assert_array_equal(changed[:, :cut], y[:, :cut])
        assert np.all(changed[:, cut] != y[:, cut])


@pytest.mark.parametrize("dt", [(90.0, 110.0), (1e-8, 1e-6), (1e-6, 100.0)], ids=str)
def test_strong_and_weak_decay(dt: tuple[float, float]) -> None:
    """The third mixes them: what follows a token that forgets all must keep its digits."""
    check(make(60, 2, dt=dt), positions_of([[60], [13, 47]]), 16, 5e-6)


def test_tokens_without_a_step_neither_forget_nor_add() -> None:
    """Equal sums on both sides of a difference have derivatives too."""
    x, dt, *rest = make(60, 2)
    dt[:, 3:11] = 0
    check((x, dt, *rest), positions_of([[60], [6, 54]]), 16)


@pytest.mark.slow
def test_bfloat16_rounds_operands_and_nothing_more() -> None:
    exact, positions = make(60, 2), positions_of([[60], [13, 47]])
    rounded = [jnp.asarray(x, jnp.bfloat16 if x.ndim == 4 else jnp.float32) for x in exact]
    grad = jnp.asarray(np.random.default_rng(1).normal(size=exact[0].shape), jnp.bfloat16)
    actual = value_and_derivatives(tuple(rounded), positions, grad, 16)
    widened = tuple(np.asarray(x, np.float64) for x in (*rounded, grad))
    expected = recurrence(widened[:-1], positions, widened[-1])
    for ours, theirs, like in zip(actual, expected, [rounded[0], *rounded], strict=True):
        assert ours.dtype == like.dtype
        assert_close(ours, theirs, 1e-2)


@pytest.mark.slow
def test_backward_pass_holds_the_decays_of_one_chunk() -> None:
    """Memory beside the inputs grows by states, not by decays: 64 chunks, each with 1 MB."""
    heads, chunk, count = 16, 128, 64
    shapes = [(1, chunk * count, heads, 8), (1, chunk * count, heads), (heads,)]
    shapes += [(1, chunk * count, 1, 8)] * 2 + [(heads,)]
    inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    positions = jax.ShapeDtypeStruct((1, chunk * count), jnp.int32)

    def total(*inputs: jax.Array, positions: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(ssd(*inputs, positions, chunk)))

    step = jax.jit(jax.grad(total, argnums=tuple(range(6))))
    used = compile_optimized(step.lower(*inputs, positions=positions)).memory_analysis()
    assert used.temp_size_in_bytes < count * heads * chunk**2 * 4 / 3


def test_heads_cut_over_devices_change_nothing(use_devices) -> None:
    use_devices(2)
    inputs, positions = float32(make(21, 2)), jnp.asarray(positions_of([[21], [4, 17]]))
    expected = jax.jit(ssd, static_argnums=7)(*inputs, positions, 8)
    heads, last = PartitionSpec(None, None, "tensor"), PartitionSpec("tensor")
    mesh = jax.make_mesh((2,), ("tensor",), axis_types=(jax.sharding.AxisType.Auto,))
    specs = (heads, heads, last, heads, heads, last, PartitionSpec())
    by_hand = jax.shard_map(
        lambda *args: ssd(*args, 8), mesh=mesh, in_specs=specs, out_specs=heads, check_vma=False
    )
    np.testing.assert_allclose(jax.jit(by_hand)(*inputs, positions), expected, atol=1e-6)
    places = [jax.sharding.NamedSharding(mesh, spec) for spec in specs]
    automatic = jax.jit(lambda *args: ssd(*args, 8), in_shardings=places)
    lines = automatic.lower(*inputs, positions).compile().as_text()
    assert "all-gather" not in lines and "all-reduce" not in lines
    np.testing.assert_allclose(automatic(*inputs, positions), expected, atol=1e-6)


def convolution(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, positions: np.ndarray
) -> np.ndarray:
    """Each document by itself, each channel by itself, then SiLU."""
    y = np.empty_like(x)
    for row, tokens in starts_of(positions):
        for channel in range(x.shape[2]):
            whole = np.convolve(x[row, tokens, channel], weight[:, channel])
            y[row, tokens, channel] = whole[: tokens.stop - tokens.start] + bias[channel]
    return y / (1 + np.exp(-y))


@pytest.mark.parametrize("width", [1, 4, 9])
def test_convolution_agrees_with_numpy_document_by_document(width: int) -> None:
    random, positions = np.random.default_rng(0), positions_of(ROWS)
    x = random.normal(size=(*positions.shape, 6))
    args = [x, random.normal(size=(width, 6)), random.normal(size=6)]
    grad = random.normal(size=x.shape)
    y, pull = jax.vjp(lambda *args: document_convolution(*args, positions), *float32(args))
    assert_close(y, convolution(*args, positions), 1e-6)
    for place, ours in enumerate(jax.jit(pull)(*float32((grad,)))):
        way = random.normal(size=args[place].shape)
        sides = []
        for step in (1e-5, -1e-5):
            there = [v + step * way if i == place else v for i, v in enumerate(args)]
            sides.append(np.sum(convolution(*there, positions) * grad))
        slope = (sides[0] - sides[1]) / 2e-5
        np.testing.assert_allclose(np.sum(np.asarray(ours, np.float64) * way), slope, 1e-5, 1e-5)


def test_convolution_in_bfloat16_sums_in_float32() -> None:
    random, positions = np.random.default_rng(0), positions_of(ROWS)
    x = jnp.asarray(random.normal(size=(len(ROWS), 37, 6)), jnp.bfloat16)
    weight = random.normal(size=(4, 6))
    y = document_convolution(x, jnp.asarray(weight, jnp.float32), None, positions)
    assert y.dtype == jnp.bfloat16
    expected = convolution(np.asarray(x, np.float64), weight, np.zeros(6), positions)
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, rtol=2**-8)


@pytest.mark.parametrize("groups", [1, 3])
def test_gated_norm_of_each_group(groups: int) -> None:
    random = np.random.default_rng(0)
    y, z = random.normal(size=(2, 2, 7, 12))
    scale = random.normal(size=12)
    gated = (y * z / (1 + np.exp(-z))).reshape(2, 7, groups, -1)
    normed = gated / np.sqrt(np.mean(gated**2, axis=-1, keepdims=True) + 1e-3)
    actual = gated_rms_norm(*float32((y, z, scale)), 1e-3, groups)
    np.testing.assert_allclose(actual, normed.reshape(y.shape) * scale, rtol=1e-5, atol=1e-6)
    half = gated_rms_norm(
        *(x.astype(jnp.bfloat16) for x in float32((y, z))), *float32((scale,)), 1e-3, groups
    )
    assert half.dtype == jnp.bfloat16


def mixer(
    weights: dict[str, jax.Array],
    hidden: jax.Array,
    positions: jax.Array,
    shape: tuple[int, int, int, int],
    limits: tuple[float, float],
    eps: float,
) -> jax.Array:
    """A whole mixer, with the tensors of a checkpoint."""
    heads, width, groups, state = shape
    inner, rest = heads * width, groups * state
    z, xbc, dt = jnp.split(
        hidden @ weights["in_proj.weight"].T, [inner, 2 * inner + 2 * rest], axis=-1
    )
    taps = weights["conv1d.weight"][:, 0, ::-1].T
    xbc = document_convolution(xbc, taps, weights["conv1d.bias"], positions)
    x, b, c = jnp.split(xbc, [inner, inner + rest], axis=-1)
    dt = jnp.clip(jax.nn.softplus(dt + weights["dt_bias"]), *limits)
    rows = hidden.shape[:2]
    b, c = (v.reshape(*rows, groups, state) for v in (b, c))
    a = -jnp.exp(weights["A_log"])
    y = ssd(x.reshape(*rows, heads, width), dt, a, b, c, weights["D"], positions, 16)
    y = gated_rms_norm(y.reshape(z.shape), z, weights["norm.weight"], eps, groups)
    return y @ weights["out_proj.weight"].T


@pytest.mark.torch
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("limits", [(0.0, float("inf")), (0.01, 0.05)], ids=str)
def test_a_mixer_is_that_of_transformers(groups: int, limits: tuple[float, float]) -> None:
    """Of each document of a packed row by itself, above two chunks long and no multiple of one."""
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    pytest.importorskip("transformers", reason="transformers is not installed")
    from transformers.models.mamba2.configuration_mamba2 import Mamba2Config
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    config = Mamba2Config(
        hidden_size=16,
        expand=2,
        num_heads=4,
        head_dim=8,
        n_groups=groups,
        state_size=6,
        chunk_size=8,
        num_hidden_layers=1,
        time_step_limit=limits,
    )
    torch.manual_seed(0)
    theirs = Mamba2Mixer(config, layer_idx=0).eval()
    with torch.no_grad():
        for name in ("conv1d.bias", "D", "norm.weight"):
            tensor = theirs.get_parameter(name)
            tensor.add_(torch.randn_like(tensor) * 0.3)
        hidden = torch.randn(1, 45, 16)
        lengths = [21, 24]
        expected = [theirs(part).numpy() for part in torch.split(hidden, lengths, dim=1)]
    weights = {name: jnp.asarray(value.numpy()) for name, value in theirs.state_dict().items()}
    ours = jax.jit(mixer, static_argnums=(3, 4, 5))(
        weights,
        jnp.asarray(hidden.numpy()),
        jnp.asarray(positions_of([lengths])),
        (4, 8, groups, 6),
        limits,
        config.layer_norm_epsilon,
    )
    np.testing.assert_allclose(ours, np.concatenate(expected, axis=1), rtol=1e-5, atol=2e-6)
