"""The feed-forward of experts on the tokens that chose them; no token is dropped.

Choices are sorted by expert, and each expert's rows are padded to whole tiles, so that a tile meets
one expert's matrix. Moving tokens to rows and back are gathers, each the other's transpose.
The product of tiles and matrices has one body for each backend: Pallas megablox on TPU,
`jax.lax.ragged_dot` on GPU, a loop over tiles elsewhere.
"""

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

CPU_TILE = 64
TPU_TILES = (512, 256, 128)  # rows of a tile, the largest that an expert's mean load fills
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


class Placement(NamedTuple):
    """Which choice of an expert each row holds, int32; nothing is differentiated through it.

    Attributes:
        source: [R] choice of a row, counted m * k + j for the j-th choice of token m; M * k where
            the row is empty.
        row: [M, k] row of each choice; R where its expert is absent.
        tile_expert: [tiles] expert of each tile of R / tiles rows, ascending; E where no expert
            needs the tile.
    """

    source: Array
    row: Array
    tile_expert: Array


def rows_per_tile(choices: int, experts: int) -> int:
    """Rows of a tile for so many choices among so many experts."""
    if platform() == "tpu":
        return next((size for size in TPU_TILES if size <= choices // experts), TPU_TILES[-1])
    return 1 if platform() == "gpu" else CPU_TILE  # `ragged_dot` takes groups of any size


def place_choices(experts: Array, num_experts: int, tile: int) -> Placement:
    """Assigns rows to all choices, sorted by expert, each expert's rows padded to whole tiles.

    Args:
        experts: [M, k] int32, different for each choice of a token; choices outside [0, E) are of
            experts that are not here, and get no row.
        num_experts: E, experts here.
        tile: Rows of a tile.

    Returns:
        Placement of R rows, enough for any choices: a multiple of `tile`, at most
        M * min(k, E) + E * (tile - 1).
    """
    M, k = experts.shape
    most = M * min(k, num_experts)
    tiles = (most + min(num_experts, most) * (tile - 1)) // tile
    rows = jnp.arange(tiles * tile, dtype=jnp.int32)
    chosen = jnp.where((experts >= 0) & (experts < num_experts), experts, num_experts).reshape(-1)
    order = jnp.argsort(chosen, stable=True).astype(jnp.int32)
    sorted_choices = chosen[order]
    starts = jnp.searchsorted(sorted_choices, jnp.arange(num_experts + 1)).astype(jnp.int32)
    lengths = jnp.diff(starts)
    ends = jnp.cumsum(-(-lengths // tile) * tile)  # [E] where the experts' padded rows end
    shift = jnp.concatenate([jnp.zeros(1, jnp.int32), ends[:-1]]) - starts[:-1]

    tile_expert = jnp.searchsorted(ends, rows[::tile], side="right").astype(jnp.int32)
    expert = jnp.repeat(tile_expert, tile)
    index = rows - shift.at[expert].get(mode="clip")  # among the sorted choices
    filled = (expert < num_experts) & (index < starts[1:].at[expert].get(mode="clip"))
    source = jnp.where(filled, order.at[index].get(mode="clip"), M * k)

    row = jnp.arange(M * k, dtype=jnp.int32) + shift.at[sorted_choices].get(mode="clip")
    row = jnp.where(sorted_choices < num_experts, row, rows.size)
    _, row = jax.lax.sort((order, row), num_keys=1)  # back in the order of the tokens
    return Placement(
        save_activation(source), save_activation(row.reshape(M, k)), save_activation(tile_expert)
    )


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
    tile_products, _ = KERNELS.get(platform(), KERNELS["cpu"])
    return tile_products(x, w.astype(x.dtype), tile_expert, False)


def _backward(residuals: tuple[Array, Array, Array], grad: Array) -> tuple[Array, Array, None]:
    x, w, tile_expert = residuals
    tile_products, outer_products = KERNELS.get(platform(), KERNELS["cpu"])
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


def ragged_products(x: Array, w: Array, tile_expert: Array, transposed: bool) -> Array:
    """`tile_products` in `jax.lax.ragged_dot_general`, which compiles on a GPU but is not fast
    there (by public reports, and in JAX's own fallback, every expert multiplies every row)."""
    lengths = _rows_per_expert(tile_expert, len(x), len(w))
    return _ragged_dot(x, w, lengths, (1, 2 if transposed else 1), [0]).astype(x.dtype)


def ragged_outer_products(x: Array, y: Array, tile_expert: Array, num_experts: int) -> Array:
    """`outer_products` in `jax.lax.ragged_dot_general`."""
    return _ragged_dot(x, y, _rows_per_expert(tile_expert, len(x), num_experts), (0, 0), [])


def _ragged_dot(
    x: Array, y: Array, lengths: Array, axes: tuple[int, int], groups: list[int]
) -> Array:
    """The sum over an axis of both, in float32, for groups of rows of `x` of these lengths."""
    numbers = jax.lax.RaggedDotDimensionNumbers(
        dot_dimension_numbers=(((axes[0],), (axes[1],)), ((), ())),
        lhs_ragged_dimensions=[0],
        rhs_group_dimensions=groups,
    )
    return jax.lax.ragged_dot_general(x, y, lengths, numbers, preferred_element_type=jnp.float32)


# Backend -> two functions: the tiles times `w` [E, D, F], or times its transpose, in the dtype of
# `x`; and [R, D] and [R, F] to [E, D, F] float32, the sum of x_d * y_f over the rows of an expert.
KERNELS = {
    "tpu": (megablox_products, megablox_outer_products),
    "gpu": (ragged_products, ragged_outer_products),
    "cpu": (looped_products, looped_outer_products),
}


@recompute_in_backward
def _gate_and_up(x: Array, placement: Placement, gate: Array, up: Array) -> tuple[Array, Array]:
    """The two first products, [M, D] to twice [R, F]; the backward pass makes the rows again."""
    rows = tokens_to_rows(x, placement)
    tiles = placement.tile_expert
    return grouped_matmul(rows, gate, tiles), grouped_matmul(rows, up, tiles)


@recompute_in_backward
def _weighted_swiglu(gate: Array, up: Array, weights: Array) -> Array:
    """`layers.swiglu` of [R, F], each row times its weight before the one rounding."""
    hidden = jax.nn.silu(gate.astype(jnp.float32)) * up.astype(jnp.float32)
    return (hidden * weights[:, None]).astype(gate.dtype)


def local_expert_sum(
    routed: RoutedTokens, matrices: ExpertWeights, *, count: int, first: int | Array = 0
) -> Array:
    """The weighted sum of the outputs of each token's experts, SwiGLU each, on one device.

    A device that holds some of the experts, or some of the columns F, gives its part of the sum;
    the caller adds the parts. Products cost what the choices of the experts here cost, up to a tile
    an expert; memory is for the worst case, that all tokens choose experts which are here: those
    numbered `first` + [0, E), of `count` on all devices. The result has the shape and dtype of
    `routed.x`.
    """
    x, experts, weights = (array.reshape(-1, array.shape[-1]) for array in routed)
    placement = place_choices(
        experts - first, len(matrices.gate), rows_per_tile(experts.size, count)
    )
    gate, up = _gate_and_up(x, placement, matrices.gate, matrices.up)
    # A weight on the way into `down` counts for the same as one on the way out, and spares the
    # backward pass what comes out.
    hidden = _weighted_swiglu(
        save_activation(gate), save_activation(up), choices_to_rows(weights, placement)
    )
    out = rows_to_tokens(grouped_matmul(hidden, matrices.down, placement.tile_expert), placement)
    return out.reshape(routed.x.shape)
