"""Experts against the dense sum over all experts in NumPy float64, on every body of the product."""

import functools
import re
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled_programs.chips import CHIPS
from compiled_programs.hlo_program import HloProgram
from compiled_programs.roofline import MachineLimits, estimate_step_time

from frame_jax import models
from frame_jax.models import grouped_product as module
from frame_jax.models import triton_grouped_product as triton
from frame_jax.models.grouped_product import (
    ExpertWeights,
    RoutedTokens,
    grouped_matmul,
    local_expert_sum,
    place_rows,
    rows_per_tile,
    rows_to_tokens,
    sort_choices,
    tokens_to_rows,
)
from frame_jax.models.transformer import REMAT_POLICIES
from tests.gpu_compiler import compiled_for, needs_gpu_compiler

pytestmark = pytest.mark.slow
M, D, F = 37, 16, 12
Arrays = list[np.ndarray]


def use(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend's product, the Pallas kernels interpreted; tiles small enough to matter."""
    monkeypatch.setattr(module, "platform", lambda: backend)
    monkeypatch.setattr(module, "TILES", dict.fromkeys(module.TILES, (8,)))
    monkeypatch.setattr(module, "TPU_BLOCK_BYTES", 32)  # several blocks, and a remainder
    monkeypatch.setattr(triton, "BLOCK", 8)
    monkeypatch.setattr(triton, "STEP_BYTES", 16)
    kernels = module.product_kernels()
    if backend != "cpu":
        kernels = tuple(functools.partial(kernel, interpret=True) for kernel in kernels)  # type: ignore[assignment]
    monkeypatch.setattr(module, "product_kernels", lambda: kernels)


@pytest.fixture(params=["cpu", "gpu", "tpu"])
def body(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every backend's product in turn."""
    use(request.param, monkeypatch)
    return str(request.param)


def random_choices(
    seed: int, k: int, num_experts: int, skew: float = 0.0, tokens: int = M
) -> np.ndarray:
    """[tokens, k] different experts each; those with low numbers more often if skewed."""
    noise = np.random.default_rng(seed).gumbel(size=(tokens, num_experts))
    noise -= skew * np.arange(num_experts)
    return np.argsort(-noise, axis=1)[:, :k].astype(np.int32)


def make(experts: np.ndarray, num_experts: int) -> Arrays:
    """Random x, weights, gate, up, down in float64."""
    random = np.random.default_rng(0)
    tokens = len(experts)
    E = num_experts
    shapes = [(tokens, D), experts.shape, (E, D, F), (E, D, F), (E, F, D)]
    return [random.normal(size=shape) * (0.3 if len(shape) == 3 else 1) for shape in shapes]


def weighted_sum(
    x: jax.Array,
    experts: jax.Array,
    weights: jax.Array,
    *matrices: jax.Array,
    first: int = 0,
    count: int | None = None,
) -> jax.Array:
    return local_expert_sum(
        RoutedTokens(x, experts, weights),
        ExpertWeights(*matrices),
        count=count or len(matrices[0]),
        first=first,
    )


def dense(experts: np.ndarray, arrays: Arrays, cotangent: np.ndarray) -> tuple[np.ndarray, Arrays]:
    """The sum over all experts, and its derivatives by hand; one expert after another."""
    x, weights, gate, up, down = arrays
    out, grads = np.zeros_like(x), [np.zeros_like(a) for a in arrays]
    for e in range(len(gate)):
        chosen = experts == e
        weight = (weights * chosen).sum(axis=1, keepdims=True)  # [M, 1]
        g, u = x @ gate[e], x @ up[e]
        sigmoid = 1 / (1 + np.exp(-g))
        hidden = g * sigmoid * u
        out += weight * (hidden @ down[e])
        grads[1] += chosen * (cotangent * (hidden @ down[e])).sum(axis=1, keepdims=True)
        grads[4][e] = (weight * hidden).T @ cotangent
        grad_hidden = weight * (cotangent @ down[e].T)
        grad_g = grad_hidden * u * sigmoid * (1 + g * (1 - sigmoid))
        grad_u = grad_hidden * g * sigmoid
        grads[2][e], grads[3][e] = x.T @ grad_g, x.T @ grad_u
        grads[0] += grad_g @ gate[e].T + grad_u @ up[e].T
    return out, grads


@functools.partial(jax.jit, static_argnames=("count", "body"))
def value_and_derivatives(
    experts: jax.Array,
    first: int,
    cotangent: jax.Array,
    *arrays: jax.Array,
    count: int | None,
    body: object,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """`body` keeps programs of different backends apart."""
    out, pull_back = jax.vjp(
        lambda x, weights, *matrices: weighted_sum(
            x, experts, weights, *matrices, first=first, count=count
        ),
        *arrays,
    )
    return out, pull_back(cotangent)


def with_derivatives(
    experts: np.ndarray,
    arrays: Arrays,
    cotangent: np.ndarray,
    dtype: str = "float32",
    first: int = 0,
    count: int | None = None,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    x, *others = (jnp.asarray(a, jnp.float32) for a in arrays)
    out = jnp.asarray(cotangent, dtype)
    body = module.platform(), module.ROOM
    return value_and_derivatives(
        experts, first, out, x.astype(dtype), *others, count=count, body=body
    )


CASES = {
    "skewed": (random_choices(2, 3, 7, skew=1.0), 7),
    "one choice": (random_choices(3, 1, 4), 4),
    "all experts": (random_choices(4, 4, 4), 4),
    "one expert takes all": (np.full((M, 1), 2, np.int32), 4),
    "first and last take all": (np.tile(np.int32([8, 0]), (M, 1)), 9),
    "nine": (random_choices(7, 4, 9, skew=0.3), 9),
    "more experts than choices": (random_choices(5, 2, 50, tokens=3), 50),
    "one token": (random_choices(6, 2, 3, tokens=1), 3),
}


BODIES = [("cpu", case) for case in CASES] + [
    (backend, case) for backend in ("gpu", "tpu") for case in ("skewed", "first and last take all")
]


@pytest.mark.parametrize(("backend", "case"), BODIES)
def test_the_sum_over_experts_and_its_derivatives(
    backend: str, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(backend, monkeypatch)
    experts, E = CASES[case]
    arrays = make(experts, E)
    cotangent = np.random.default_rng(9).normal(size=(len(experts), D))
    out, grads = with_derivatives(experts, arrays, cotangent)
    check(out, grads, *dense(experts, arrays, cotangent))


def check(out: Any, grads: Any, expected: np.ndarray, expected_grads: Arrays) -> None:
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)
    names = ("x", "weights", "gate", "up", "down")
    for name, grad, reference in zip(names, grads, expected_grads, strict=True):
        np.testing.assert_allclose(grad, reference, rtol=1e-4, atol=1e-5, err_msg=name)


def test_bfloat16_keeps_dtypes_and_comes_close(body: str) -> None:
    experts, E = CASES["skewed"]
    arrays = make(experts, E)
    cotangent = np.random.default_rng(9).normal(size=(M, D))
    out, grads = with_derivatives(experts, arrays, cotangent, "bfloat16")
    assert [a.dtype.name for a in (out, *grads)] == ["bfloat16"] * 2 + ["float32"] * 4
    expected = dense(experts, arrays, cotangent)
    for ours, reference in zip((out, *grads), (expected[0], *expected[1]), strict=True):
        error = np.linalg.norm(np.float32(ours) - reference) / np.linalg.norm(reference)
        assert error < 0.01


def test_products_sum_in_float32(body: str) -> None:
    x, w = jnp.ones((8, 512), jnp.bfloat16), jnp.ones((1, 512, 8), jnp.float32)
    tiles = jnp.zeros(8 // rows_per_tile(8, 1), jnp.int32)
    product = grouped_matmul(x, w, tiles)
    assert product.dtype == jnp.bfloat16
    assert np.all(np.float32(product) == 512)  # bfloat16 sums would stop at 256
    x, w = jnp.ones((512, 8), jnp.bfloat16), jnp.ones((1, 8, 8), jnp.float32)
    tiles = jnp.zeros(512 // rows_per_tile(512, 1), jnp.int32)
    product, pull_back = jax.vjp(lambda w: grouped_matmul(x, w, tiles), w)
    (grad,) = pull_back(jnp.ones_like(product))
    assert grad.dtype == jnp.float32
    assert np.all(np.asarray(grad) == 512)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_neighbours_change_no_bit_of_a_token(dtype: str) -> None:
    """The same tokens alone, in another order, and among others that crowd one of their experts."""
    experts, E = random_choices(1, 2, 5), 5
    x, weights, *matrices = (jnp.asarray(a, jnp.float32) for a in make(experts, E))
    run = jax.jit(weighted_sum)
    whole = run(x.astype(dtype), experts, weights, *matrices)
    some = np.random.default_rng(2).permutation(M)[:7]
    crowd = np.tile(experts[some[:1]], (50, 1))
    among = run(
        jnp.concatenate([100 * jnp.ones((50, D)), x[some]]).astype(dtype),
        jnp.concatenate([crowd, experts[some]]),
        jnp.concatenate([jnp.ones((50, 2)), weights[some]]),
        *matrices,
    )[50:]
    alone = jnp.concatenate(
        [
            run(x[i : i + 1].astype(dtype), experts[i : i + 1], weights[i : i + 1], *matrices)
            for i in some
        ]
    )
    np.testing.assert_array_equal(np.float32(among), np.float32(whole[some]))
    np.testing.assert_array_equal(np.float32(alone), np.float32(whole[some]))


@pytest.mark.parametrize("case", ["nine", "first and last take all"])
@pytest.mark.parametrize("room", [1.25, 0.25])
def test_shards_of_experts_and_of_columns_add_up(
    case: str, room: float, body: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With little room, what arrives at a shard is computed in several goes."""
    monkeypatch.setattr(module, "ROOM", room)
    experts, E = CASES[case]
    arrays = make(experts, E)
    x, weights, gate, up, down = arrays
    cotangent = np.random.default_rng(9).normal(size=(M, D))
    out, grads = np.zeros((M, D)), [np.zeros(a.shape) for a in arrays]
    for first in range(0, E, 3):
        for column in range(0, F, 6):
            here, columns = slice(first, first + 3), slice(column, column + 6)
            wide, narrow = (here, slice(None), columns), (here, columns)
            shard = [x, weights, gate[wide], up[wide], down[narrow]]
            part, pieces = with_derivatives(experts, shard, cotangent, first=first, count=E)
            out += np.asarray(part)
            for grad, piece, place in zip(grads, pieces, ((), (), wide, wide, narrow), strict=True):
                grad[place] += np.asarray(piece)
    check(out, grads, *dense(experts, arrays, cotangent))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("tile", "first"), [(8, 0), (8, 1), (1, 1)])
def test_every_choice_has_one_row_of_a_tile_of_its_expert(case: str, tile: int, first: int) -> None:
    experts, E = CASES[case]
    experts, E = experts - first, E - 2 * first  # the experts outside are absent
    rows, choices = tile * (experts.size + E), experts.size
    sorted_choices = sort_choices(jnp.asarray(experts), E, tile)
    placement = place_rows(sorted_choices, 0, rows, tile)
    for some in (tile, 3 * tile):  # the same, a piece at a time
        pieces = [place_rows(sorted_choices, i, some, tile) for i in range(0, rows, some)]
        for name in ("source", "tile_expert"):
            joined = np.concatenate([getattr(piece, name) for piece in pieces])
            np.testing.assert_array_equal(
                joined[: len(getattr(placement, name))], getattr(placement, name)
            )
        for i, piece in enumerate(pieces):
            here = (placement.row >= i * some) & (placement.row < min(rows, (i + 1) * some))
            np.testing.assert_array_equal(piece.row, np.where(here, placement.row - i * some, some))
    source, place, tile_expert = (np.asarray(a) for a in placement)
    here = (experts >= 0) & (experts < E)
    assert np.all(place[~here] == rows)
    filled = np.flatnonzero(source < choices)
    assert sorted(source[filled]) == list(np.flatnonzero(here))
    np.testing.assert_array_equal(source[place[here]], np.flatnonzero(here))
    np.testing.assert_array_equal(tile_expert[place[here] // tile], experts[here])
    assert np.all(np.diff(tile_expert) >= 0)
    used = sum(-(-np.sum(experts == e) // tile) for e in range(E))
    assert np.sum(tile_expert < E) == used  # no tile for an expert that nobody chose


def test_an_expert_nobody_chose_is_not_touched(body: str) -> None:
    experts = np.tile(np.int32([3, 1]), (M, 1))
    arrays = make(experts, 5)
    for w in arrays[2:]:
        w[[0, 2, 4]] = np.nan
    out, grads = with_derivatives(experts, arrays, np.ones((M, D)))
    assert np.all(np.isfinite(out))
    assert all(np.all(np.isfinite(grad)) for grad in grads)


def test_moving_rows_needs_no_scatter() -> None:
    experts = jnp.asarray(CASES["skewed"][0])

    def moved(x: jax.Array) -> jax.Array:
        placement = place_rows(sort_choices(experts, 7, 8), 0, 128, 8)
        return rows_to_tokens(tokens_to_rows(x, placement), placement)

    text = jax.jit(jax.grad(lambda x: jnp.sum(moved(x) ** 2))).lower(jnp.ones((M, D))).as_text()
    assert "gather" in text
    assert "scatter" not in text


@pytest.mark.parametrize(
    ("backend", "choices", "rows"),
    [
        ("cpu", 10, 64),
        ("gpu", 10, 16),
        ("gpu", 300, 32),
        ("gpu", 10**6, 128),
        ("tpu", 10, 128),
        ("tpu", 2100, 256),
        ("tpu", 10**6, 512),
    ],
)
def test_tiles_of_each_backend(
    backend: str, choices: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "platform", lambda: backend)
    assert rows_per_tile(choices, 8) == rows


def test_further_rows_cost_memory_of_their_room_only() -> None:
    """Of a program for one of eight shards, to which all tokens' choices may go."""
    tokens, k, E, F = 4096, 2, 8, 1024
    x = jnp.zeros((tokens, 64), jnp.bfloat16)
    experts, weights = jnp.zeros((tokens, k), jnp.int32), jnp.ones((tokens, k))
    matrices = [jnp.zeros((1, *shape)) for shape in ((64, F), (64, F), (F, 64))]

    def temporary(count: int) -> int:
        def loss(*arrays: jax.Array) -> jax.Array:
            return jnp.sum(weighted_sum(arrays[0], experts, *arrays[1:], count=count))

        compiled = jax.jit(jax.grad(loss, range(5))).lower(x, weights, *matrices).compile()
        return int(compiled.memory_analysis().temp_size_in_bytes)

    assert temporary(E) < 0.6 * temporary(1)


@needs_gpu_compiler
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("chip", CHIPS)
def test_kernels_compile_for_gpus(chip: str, dtype: str) -> None:
    """Widths that no block divides; a tile of every size."""

    def run(x: Any, y: Any, w: Any, tiles: Any) -> Any:
        return (
            triton.tile_products(x, w, tiles, False),
            triton.tile_products(y, w, tiles, True),
            triton.outer_products(x, y, tiles, len(w)),
        )

    for tile in module.TILES["gpu"]:
        x, y, w = ((16 * tile, 136), dtype), ((16 * tile, 72), dtype), ((4, 136, 72), dtype)
        text = compiled_for(chip, run, x, y, w, ((16,), "int32")).as_text()
        assert text.count("__gpu$xla.gpu.triton") == 3


@needs_gpu_compiler
def test_products_on_a_gpu_cost_what_the_choices_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward, what remat `minimal` repeats included: nine products a choice."""
    monkeypatch.setattr(module, "platform", lambda: "gpu")
    tokens, k, E, width, inner = 16384, 8, 64, 256, 128

    def loss(x: Any, experts: Any, weights: Any, *matrices: Any) -> jax.Array:
        layer = jax.checkpoint(weighted_sum, policy=REMAT_POLICIES["minimal"])
        return layer(x, experts, weights, *matrices).astype(jnp.float32).sum()

    compiled = compiled_for(
        "h100",
        jax.value_and_grad(loss, (0, 2, 3, 4, 5)),
        ((tokens, width), "bfloat16"),
        ((tokens, k), "int32"),
        ((tokens, k), "float32"),
        *[((E, *shape), "float32") for shape in 2 * [(width, inner)] + [(inner, width)]],
    )
    program = HloProgram(compiled.as_text())
    found = estimate_step_time(program, MachineLimits(1, 1, 1, 1, 1, 1)).matrix_flops
    assert 1 <= found / (9 * 2 * tokens * k * width * inner) < 1.2
    assert program.kernels() == {"grouped_product": 6, "grouped_outer_product": 3}
    rows = f"({tokens}|{tokens * k}|1[34]\\d{{4}})"
    assert not re.search(rf"\[{rows},{E},|\[{E},{rows},", compiled.as_text())


def test_without_triton_experts_run_a_tile_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "platform", lambda: "gpu")
    monkeypatch.setitem(sys.modules, "frame_jax.models.triton_grouped_product", None)
    monkeypatch.delattr(models, "triton_grouped_product")
    with pytest.warns(UserWarning, match="a tile at a time"):
        kernels = module.product_kernels()
    assert kernels == (module.looped_products, module.looped_outer_products)
