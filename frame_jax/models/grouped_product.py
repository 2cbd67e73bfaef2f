"""The feed-forward of experts on the tokens that chose them; no token is dropped.

Choices are sorted by expert, and each expert's rows are padded to whole tiles, so that a tile meets
one expert's matrix. Moving tokens to rows and back are gathers, each the other's transpose.
The product of tiles and matrices has one body for each backend: Pallas megablox on TPU, Pallas
through Triton on GPU (`triton_grouped_product`), a loop over tiles elsewhere.
"""

import functools
import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from frame_jax.models.layers import (
    contract_f32,
    from_bits,
    recompute_in_backward,
    save_activation,
    to_bits,
)
from frame_jax.parallel.sharding import platform

# Rows of a tile: the largest that an expert's mean load fills, else the last.
TILES = {"tpu": (512, 256, 128), "gpu": (128, 64, 32, 16), "cpu": (64,)}
# Of the rows that a shard of experts has at one time, over those of even choices.
ROOM = 1.25
# What is multiplied at one time, with tiles of 512 rows, fits in the 16 MiB that a v5e's compiler
# gives a kernel; operands of 1024 columns keep the matrix unit busier than memory.
TPU_BLOCK_BYTES = 2048  # of a row of operands


class RoutedTokens(NamedTuple):
    """Tokens [B, T, D] in the compute dtype, the experts of each, [B, T, k] int32, and their
    weights, [B, T, k] float32."""

    x: Array
    experts: Array
    weights: Array


class ExpertWeights(NamedTuple):
    """The experts' matrices, float32: `gate` and `up` [E, D, F], `down` [E, F, D]."""

    gate: Array
    up: Array
    down: Array


class SortedChoices(NamedTuple):
    """Choices of experts in the order of their rows, int32: sorted by expert, each expert's rows
    padded to whole tiles.

    Attributes:
        order: [M * k] the choices, counted m * k + j for the j-th choice of token m, sorted by
            expert; behind them those whose expert is absent.
        starts: [E + 1] where each expert's choices begin in `order`, and where the last's end.
        ends: [E] where each expert's rows end.
        row: [M, k] row of each choice, -1 where its expert is absent.
    """

    order: Array
    starts: Array
    ends: Array
    row: Array


class Placement(NamedTuple):
    """Which choice of an expert each row holds, int32; nothing is differentiated through it.

    Attributes:
        source: [R] choice of a row, as in `SortedChoices.order`; M * k where the row is empty.
        row: [M, k] row of each choice; R where it has none here.
        tile_expert: [tiles] expert of each tile of R / tiles rows, ascending; E where no expert
            needs the tile.
    """

    source: Array
    row: Array
    tile_expert: Array


def rows_per_tile(choices: int, experts: int) -> int:
    """Rows of a tile for so many choices among so many experts."""
    sizes = TILES[platform()]
    return next((size for size in sizes if size <= choices // experts), sizes[-1])


def sort_choices(experts: Array, num_experts: int, tile: int) -> SortedChoices:
    """Sorts choices by expert, and gives each a row; an expert's rows are whole tiles.

    `experts`, [M, k] int32, are different for each choice of a token; choices outside
    [0, num_experts) are of experts that are not here, and get no row.
    """
    chosen = jnp.where((experts >= 0) & (experts < num_experts), experts, num_experts).reshape(-1)
    order = jnp.argsort(chosen, stable=True).astype(jnp.int32)
    sorted_choices = chosen[order]
    starts = jnp.searchsorted(sorted_choices, jnp.arange(num_experts + 1)).astype(jnp.int32)
    ends = jnp.cumsum(-(-jnp.diff(starts) // tile) * tile)
    shift = _padding_before(starts, ends).at[sorted_choices].get(mode="clip")
    row = jnp.where(sorted_choices < num_experts, jnp.arange(chosen.size) + shift, -1)
    _, row = jax.lax.sort((order, row.astype(jnp.int32)), num_keys=1)  # back to tokens' order
    return SortedChoices(order, starts, ends, row.reshape(experts.shape))


def _padding_before(starts: Array, ends: Array) -> Array:
    """[E] what rows an expert's first has more before it than it has choices."""
    return jnp.pad(ends[:-1], (1, 0)) - starts[:-1]


def place_rows(choices: SortedChoices, first: int | Array, rows: int, tile: int) -> Placement:
    """The choices in the rows [first, first + rows), whole tiles, renumbered from 0."""
    number, experts = choices.order.size, len(choices.ends)
    index = first + jnp.arange(rows, dtype=jnp.int32)
    tile_expert = jnp.searchsorted(choices.ends, index[::tile], side="right").astype(jnp.int32)
    expert = jnp.repeat(tile_expert, tile)
    index -= _padding_before(choices.starts, choices.ends).at[expert].get(mode="clip")
    filled = (expert < experts) & (index < choices.starts[1:].at[expert].get(mode="clip"))
    source = jnp.where(filled, choices.order.at[index].get(mode="clip"), number)
    here = (choices.row >= first) & (choices.row < first + rows)
    row = jnp.where(here, choices.row - first, rows)
    return Placement(*map(save_activation, (source, row, tile_expert)))


def _take_or_zero(x: Array, indices: Array) -> Array:
    """Entries of the leading axis; zeros for indices behind its end."""
    return x.at[indices].get(mode="fill", fill_value=0, wrap_negative_indices=False)


@jax.custom_vjp
def tokens_to_rows(x: Array, placement: Placement) -> Array:
    """Copies tokens [M, D] to rows [R, D]; empty rows are zero."""
    return _take_or_zero(x, placement.source // placement.row.shape[1])


@jax.custom_vjp
def rows_to_tokens(rows: Array, placement: Placement) -> Array:
    """Sums each token's rows in float32: [R, D] to [M, D]."""
    total = jnp.sum(_take_or_zero(rows, placement.row).astype(jnp.float32), axis=1)
    return total.astype(rows.dtype)


@jax.custom_vjp
def choices_to_rows(values: Array, placement: Placement) -> Array:
    """Copies values of choices [M, k] to rows [R]; 0 for empty rows."""
    return _take_or_zero(values.reshape(-1), placement.source)


tokens_to_rows.defvjp(
    lambda x, placement: (tokens_to_rows(x, placement), placement),
    lambda placement, grad: (rows_to_tokens(grad, placement), None),
)
rows_to_tokens.defvjp(
    lambda rows, placement: (rows_to_tokens(rows, placement), placement),
    lambda placement, grad: (tokens_to_rows(grad, placement), None),
)
choices_to_rows.defvjp(
    lambda values, placement: (choices_to_rows(values, placement), placement),
    lambda placement, grad: (_take_or_zero(grad, placement.row), None),
)


@jax.custom_vjp
def grouped_matmul(x: Array, w: Array, tile_expert: Array) -> Array:
    """Multiplies each tile of rows with the matrix of its expert.

    By the rule of `layers.matmul`: operands in the dtype of `x`, sums in float32, the cotangent
    rounded to the dtype of `x`.

    Args:
        x: [R, D], compute dtype.
        w: [E, D, F], any float dtype; rounded to the dtype of `x`.
        tile_expert: [tiles] int32, ascending, as in `Placement`.

    Returns:
        [R, F], dtype of `x`. Rows of tiles without an expert are undefined, here and in the
        derivative with respect to `x`; they count for nothing in the one with respect to `w`.
    """
    tile_products, _ = product_kernels()
    return tile_products(x, w.astype(x.dtype), tile_expert, False)


def _backward(residuals: tuple[Array, Array, Array], grad: Array) -> tuple[Array, Array, None]:
    x, w, tile_expert = residuals
    tile_products, outer_products = product_kernels()
    grad = grad.astype(x.dtype)
    grad_x = tile_products(grad, w.astype(x.dtype), tile_expert, True)
    return grad_x, outer_products(x, grad, tile_expert, len(w)).astype(w.dtype), None


grouped_matmul.defvjp(
    lambda x, w, tile_expert: (grouped_matmul(x, w, tile_expert), (x, w, tile_expert)), _backward
)


def looped_products(x: Array, w: Array, tile_expert: Array, transposed: bool) -> Array:
    """`tile_products`, a tile at a time, for the tiles in use; matrices are not copied."""
    tile, columns = len(x) // len(tile_expert), w.shape[1 if transposed else 2]
    x, w, dtype = to_bits(x), to_bits(w), x.dtype

    def body(i: Array, out: Array) -> Array:
        rows = from_bits(jax.lax.dynamic_slice_in_dim(x, i * tile, tile))
        matrix = from_bits(jax.lax.dynamic_index_in_dim(w, tile_expert[i], keepdims=False))
        product = contract_f32(rows, matrix, (1,), (1 if transposed else 0,))
        product = to_bits(product.astype(dtype))
        return jax.lax.dynamic_update_slice_in_dim(out, product, i * tile, 0)

    out = jnp.zeros((len(x), columns), x.dtype)
    return from_bits(jax.lax.fori_loop(0, jnp.sum(tile_expert < len(w)), body, out))


def looped_outer_products(x: Array, y: Array, tile_expert: Array, num_experts: int) -> Array:
    """`outer_products`, a tile at a time, added up in place."""
    tile = len(x) // len(tile_expert)
    x, y = to_bits(x), to_bits(y)

    def body(i: Array, out: Array) -> Array:
        left, right = (
            from_bits(jax.lax.dynamic_slice_in_dim(rows, i * tile, tile)) for rows in (x, y)
        )
        return out.at[tile_expert[i]].add(contract_f32(left, right, (0,), (0,)))

    out = jnp.zeros((num_experts, x.shape[1], y.shape[1]), jnp.float32)
    return jax.lax.fori_loop(0, jnp.sum(tile_expert < num_experts), body, out)


def _rows_per_expert(tile_expert: Array, rows: int, num_experts: int) -> Array:
    """[E] int32: the rows of each expert, padding included."""
    tiles = jnp.diff(jnp.searchsorted(tile_expert, jnp.arange(num_experts + 1)))
    return (tiles * (rows // len(tile_expert))).astype(jnp.int32)


def _block(size: int, most: int) -> int:
    """The largest multiple of 128 up to `most` that divides `size`; else the kernel masks."""
    return next((block for block in range(most, 0, -128) if size % block == 0), min(size, most))


def megablox_products(
    x: Array, w: Array, tile_expert: Array, transposed: bool, interpret: bool = False
) -> Array:
    """`tile_products` in the Pallas kernel for TPU."""
    from jax.experimental.pallas.ops.tpu.megablox.gmm import gmm

    tile, most = len(x) // len(tile_expert), TPU_BLOCK_BYTES // x.itemsize
    columns = w.shape[1 if transposed else 2]
    return gmm(
        x,
        w,
        _rows_per_expert(tile_expert, len(x), len(w)),
        x.dtype,
        (tile, _block(x.shape[1], most), _block(columns, most)),
        transpose_rhs=transposed,
        interpret=interpret,
    )


def megablox_outer_products(
    x: Array, y: Array, tile_expert: Array, num_experts: int, interpret: bool = False
) -> Array:
    """`outer_products` in the Pallas kernel for TPU."""
    from jax.experimental.pallas.ops.tpu.megablox.gmm import tgmm

    tile, most = len(x) // len(tile_expert), TPU_BLOCK_BYTES // x.itemsize
    return tgmm(
        x.T,
        y,
        _rows_per_expert(tile_expert, len(x), num_experts),
        jnp.float32,
        (tile, _block(x.shape[1], most // 2), _block(y.shape[1], most)),
        interpret=interpret,
    )


def product_kernels() -> tuple[Callable[..., Array], Callable[..., Array]]:
    """What computes products on this backend, two functions.

    `tile_products(x, w, tile_expert, transposed)`: the tiles times `w` [E, D, F], or times its
    transpose, in the dtype of `x`. `outer_products(x, y, tile_expert, num_experts)`: [R, D] and
    [R, F] to [E, D, F] float32, the sum of x_d * y_f over the rows of an expert.
    """
    if platform() == "tpu":
        return megablox_products, megablox_outer_products
    if platform() == "gpu":
        try:
            from frame_jax.models import triton_grouped_product as kernels
        except ImportError:
            warnings.warn("experts run a tile at a time: no Pallas for Triton here", stacklevel=2)
        else:
            return kernels.tile_products, kernels.outer_products
    return looped_products, looped_outer_products


@recompute_in_backward
def _gate_and_up(x: Array, placement: Placement, gate: Array, up: Array) -> tuple[Array, Array]:
    """The two first products, [M, D] to twice [R, F]; the backward pass makes the rows again."""
    rows = tokens_to_rows(x, placement)
    tiles = placement.tile_expert
    return grouped_matmul(rows, gate, tiles), grouped_matmul(rows, up, tiles)


@recompute_in_backward
def _down(gate: Array, up: Array, weights: Array, down: Array, tile_expert: Array) -> Array:
    """`layers.swiglu` of [R, F], each row times its weight before the one rounding, and the last
    product, to [R, D].

    A weight on the way into `down` counts for the same as one on the way out, and spares the
    backward pass what comes out; it makes what goes in again.
    """
    hidden = jax.nn.silu(gate.astype(jnp.float32)) * up.astype(jnp.float32) * weights[:, None]
    return grouped_matmul(hidden.astype(gate.dtype), down, tile_expert)


def local_expert_sum(
    routed: RoutedTokens, matrices: ExpertWeights, *, count: int, first: int | Array = 0
) -> Array:
    """The weighted sum of the outputs of each token's experts, SwiGLU each, on one device.

    A device that holds some of the experts, or some of the columns F, gives its part of the sum;
    the caller adds the parts. Experts here are those numbered `first` + [0, E), of `count` on all
    devices. Products cost what the choices of these cost, up to a tile an expert. The result has
    the shape and dtype of `routed.x`.

    Memory is for any choices where all experts are here, else for `ROOM` times the rows of even
    choices: what arrives beyond is computed afterwards, as many rows at a time, and once more in
    the backward pass.
    """
    x, experts, weights = (array.reshape(-1, array.shape[-1]) for array in routed)
    (M, k), E = experts.shape, len(matrices.gate)
    tile = rows_per_tile(experts.size, count)
    most = M * min(k, E)
    enough = (most + min(E, most) * (tile - 1)) // tile  # tiles for any choices
    tiles = min(enough, -(-int(ROOM * M * k * E / count) // tile) + E)
    choices, size = sort_choices(experts - first, E, tile), (tiles * tile, tile)
    out = _sum_of_rows(x, weights, matrices, place_rows(choices, 0, *size))
    if tiles < enough:
        out += _sum_of_further_rows(size, x, weights, matrices, choices)
    return out.reshape(routed.x.shape)


def _sum_of_rows(x: Array, weights: Array, matrices: ExpertWeights, placement: Placement) -> Array:
    """The part of `local_expert_sum` of the choices that have a row: [M, D]."""
    gate, up = map(save_activation, _gate_and_up(x, placement, matrices.gate, matrices.up))
    by_row = choices_to_rows(weights, placement)
    return rows_to_tokens(_down(gate, up, by_row, matrices.down, placement.tile_expert), placement)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sum_of_further_rows(
    size: tuple[int, int], x: Array, weights: Array, matrices: ExpertWeights, choices: SortedChoices
) -> Array:
    """The part of all rows but the first `size[0]`, as many at one time; tiles of `size[1]`."""

    def add(i: Array, total: Array) -> Array:
        placement = place_rows(choices, i * size[0], *size)
        return total + _sum_of_rows(x, weights, matrices, placement)

    return jax.lax.fori_loop(1, -(-choices.ends[-1] // size[0]), add, jnp.zeros_like(x))


def _further_backward(size: tuple[int, int], residuals: tuple, grad: Array) -> tuple:
    *inputs, choices = residuals

    def add(i: Array, total: list) -> list:
        placement = place_rows(choices, i * size[0], *size)
        _, pull_back = jax.vjp(functools.partial(_sum_of_rows, placement=placement), *inputs)
        return jax.tree.map(jnp.add, total, list(pull_back(grad)))

    zeros = jax.tree.map(jnp.zeros_like, inputs)
    return *jax.lax.fori_loop(1, -(-choices.ends[-1] // size[0]), add, zeros), None


_sum_of_further_rows.defvjp(
    lambda size, *inputs: (_sum_of_further_rows(size, *inputs), inputs), _further_backward
)
