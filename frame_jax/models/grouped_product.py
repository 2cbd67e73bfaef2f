"""Experts on the tokens that chose them, arrays in and out: no capacity, nothing is dropped, and no
token's result depends on another token.

Choices are sorted by expert, and each expert's run is padded to whole tiles of rows, so that a tile
meets one expert's matrix. Moving tokens to rows and back are gathers, each the other's transpose.
The product of tiles and matrices has one body for each backend: Pallas megablox on TPU,
`jax.lax.ragged_dot` on GPU, a loop over tiles elsewhere.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from frame_jax.models.layers import from_bits, recompute_in_backward, save_activation, to_bits
from frame_jax.parallel.sharding import platform

CPU_TILE = 64
TPU_TILES = (512, 256, 128)  # rows of a tile, the largest that an expert's usual run fills
# What is multiplied at one time, with tiles of 512 rows, fits in the 16 MiB that a v5e's compiler
# gives a kernel; operands of 1024 columns keep the matrix unit busier than memory.
TPU_BLOCK_BYTES = 2048  # of a row of operands


class Placement(NamedTuple):
    """Which choice each row holds. Integers, int32; nothing is differentiated through them.

    Attributes:
        source: [R] choice of a row, counted m * k + j for the j-th choice of token m; M * k where
            the row is empty.
        row: [M, k] row of each choice; R where its expert is absent.
        tile_expert: [tiles] expert of each tile of R / tiles rows, ascending; E where no expert
            needs the tile.
    """

    source: jax.Array
    row: jax.Array
    tile_expert: jax.Array


def rows_per_tile(choices: int, experts: int) -> int:
    """Rows of a tile for so many choices among so many experts."""
    match platform():
        case "tpu":
            run = choices // experts
            return next((size for size in TPU_TILES if size <= run), TPU_TILES[-1])
        case "gpu":
            return 1  # `ragged_dot` takes runs of any length
        case _:
            return CPU_TILE


def place_choices(experts: jax.Array, num_experts: int, tile: int) -> Placement:
    """Rows for all choices, sorted by expert, each expert's run padded to whole tiles.

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
    sorted_experts = chosen[order]
    starts = jnp.searchsorted(sorted_experts, jnp.arange(num_experts + 1)).astype(jnp.int32)
    lengths = jnp.diff(starts)
    ends = jnp.cumsum(-(-lengths // tile) * tile)  # [E] where the padded runs end
    shift = jnp.concatenate([jnp.zeros(1, jnp.int32), ends[:-1]]) - starts[:-1]

    tile_expert = jnp.searchsorted(ends, rows[::tile], side="right").astype(jnp.int32)
    expert = jnp.repeat(tile_expert, tile)
    at = rows - shift.at[expert].get(mode="clip")  # place among the sorted choices
    filled = (expert < num_experts) & (at < starts[1:].at[expert].get(mode="clip"))
    source = jnp.where(filled, order.at[at].get(mode="clip"), M * k)

    row_of_choice = jnp.arange(M * k, dtype=jnp.int32) + shift.at[sorted_experts].get(mode="clip")
    row_of_choice = jnp.where(sorted_experts < num_experts, row_of_choice, rows.size)
    _, row = jax.lax.sort((order, row_of_choice), num_keys=1)  # back in the order of the tokens
    return Placement(
        save_activation(source), save_activation(row.reshape(M, k)), save_activation(tile_expert)
    )


def _take_or_zero(x: jax.Array, indices: jax.Array) -> jax.Array:
    """Entries of the leading axis; zeros for places behind its end."""
    return x.at[indices].get(mode="fill", fill_value=0, wrap_negative_indices=False)


@jax.custom_vjp
def tokens_to_rows(x: jax.Array, placement: Placement) -> jax.Array:
    """Tokens [M, D] to rows [R, D]; empty rows are zero."""
    return _take_or_zero(x, placement.source // placement.row.shape[1])


@jax.custom_vjp
def rows_to_tokens(rows: jax.Array, placement: Placement) -> jax.Array:
    """The sum of each token's rows: [R, D] to [M, D], summed in float32."""
    return jnp.sum(_take_or_zero(rows, placement.row).astype(jnp.float32), axis=1).astype(
        rows.dtype
    )


@jax.custom_vjp
def choices_to_rows(values: jax.Array, placement: Placement) -> jax.Array:
    """Values of choices [M, k] to rows [R]; 0 for empty rows."""
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
def grouped_matmul(x: jax.Array, w: jax.Array, tile_expert: jax.Array) -> jax.Array:
    """Each tile of rows times the matrix of its expert, by the rule of `layers.matmul`: operands in
    the dtype of `x`, sums in float32, the cotangent rounded to the dtype of `x`.

    Args:
        x: [R, D], compute dtype.
        w: [E, D, F], any float dtype; rounded to the dtype of `x`.
        tile_expert: [tiles] int32, ascending, as in `Placement`.

    Returns:
        [R, F], dtype of `x`. Rows of tiles without an expert are undefined, here and in the
        derivative with respect to `x`; they count for nothing in the one with respect to `w`.
    """
    return _products(x, w.astype(x.dtype), tile_expert, transposed=False)


def _backward(
    residuals: tuple[jax.Array, jax.Array, jax.Array], grad: jax.Array
) -> tuple[jax.Array, jax.Array, None]:
    x, w, tile_expert = residuals
    grad = grad.astype(x.dtype)
    grad_x = _products(grad, w.astype(x.dtype), tile_expert, transposed=True)
    return grad_x, _outer_products(x, grad, tile_expert, len(w)).astype(w.dtype), None


grouped_matmul.defvjp(
    lambda x, w, tile_expert: (grouped_matmul(x, w, tile_expert), (x, w, tile_expert)), _backward
)


def _products(x: jax.Array, w: jax.Array, tile_expert: jax.Array, transposed: bool) -> jax.Array:
    """Tiles times [E, D, F], or times its transpose where `transposed`; all in the dtype of `x`."""
    match platform():
        case "tpu":
            return megablox_products(x, w, tile_expert, transposed)
        case "gpu":
            return ragged_products(x, w, tile_expert, transposed)
        case _:
            return looped_products(x, w, tile_expert, transposed)


def _outer_products(
    x: jax.Array, y: jax.Array, tile_expert: jax.Array, num_experts: int
) -> jax.Array:
    """[R, D] and [R, F] to [E, D, F] float32: over the rows of an expert, the sum of x_d * y_f."""
    match platform():
        case "tpu":
            return megablox_outer_products(x, y, tile_expert, num_experts)
        case "gpu":
            return ragged_outer_products(x, y, tile_expert, num_experts)
        case _:
            return looped_outer_products(x, y, tile_expert, num_experts)


def looped_products(
    x: jax.Array, w: jax.Array, tile_expert: jax.Array, transposed: bool
) -> jax.Array:
    """`_products`, a tile at a time: work for the tiles in use, and no copies of matrices."""
    tile, columns = len(x) // len(tile_expert), w.shape[1 if transposed else 2]
    contract = (((1,), (1 if transposed else 0,)), ((), ()))
    x, w, dtype = to_bits(x), to_bits(w), x.dtype

    def body(i: jax.Array, out: jax.Array) -> jax.Array:
        rows = from_bits(jax.lax.dynamic_slice_in_dim(x, i * tile, tile))
        matrix = from_bits(jax.lax.dynamic_index_in_dim(w, tile_expert[i], keepdims=False))
        product = jax.lax.dot_general(rows, matrix, contract, preferred_element_type=jnp.float32)
        product = to_bits(product.astype(dtype))
        return jax.lax.dynamic_update_slice_in_dim(out, product, i * tile, 0)

    out = jnp.zeros((len(x), columns), x.dtype)
    return from_bits(jax.lax.fori_loop(0, jnp.sum(tile_expert < len(w)), body, out))


def looped_outer_products(
    x: jax.Array, y: jax.Array, tile_expert: jax.Array, num_experts: int
) -> jax.Array:
    """`_outer_products`, a tile at a time, added up in place."""
    tile = len(x) // len(tile_expert)
    x, y = to_bits(x), to_bits(y)

    def body(i: jax.Array, out: jax.Array) -> jax.Array:
        left, right = (
            from_bits(jax.lax.dynamic_slice_in_dim(rows, i * tile, tile)) for rows in (x, y)
        )
        product = jax.lax.dot_general(
            left, right, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32
        )
        return out.at[tile_expert[i]].add(product)

    out = jnp.zeros((num_experts, x.shape[1], y.shape[1]), jnp.float32)
    return jax.lax.fori_loop(0, jnp.sum(tile_expert < num_experts), body, out)


def _run_lengths(tile_expert: jax.Array, rows: int, num_experts: int) -> jax.Array:
    """[E] int32: rows of each expert's padded run."""
    tiles = jnp.diff(jnp.searchsorted(tile_expert, jnp.arange(num_experts + 1)))
    return (tiles * (rows // len(tile_expert))).astype(jnp.int32)


def _block(size: int, most: int) -> int:
    """The largest multiple of 128 up to `most` that divides `size`; else the kernel masks."""
    return next((block for block in range(most, 0, -128) if size % block == 0), min(size, most))


def megablox_products(
    x: jax.Array, w: jax.Array, tile_expert: jax.Array, transposed: bool, interpret: bool = False
) -> jax.Array:
    """`_products` in the Pallas kernel for TPU."""
    from jax.experimental.pallas.ops.tpu.megablox.gmm import gmm

    tile, most = len(x) // len(tile_expert), TPU_BLOCK_BYTES // x.itemsize
    columns = w.shape[1 if transposed else 2]
    return gmm(
        x,
        w,
        _run_lengths(tile_expert, len(x), len(w)),
        x.dtype,
        (tile, _block(x.shape[1], most), _block(columns, most)),
        transpose_rhs=transposed,
        interpret=interpret,
    )


def megablox_outer_products(
    x: jax.Array, y: jax.Array, tile_expert: jax.Array, num_experts: int, interpret: bool = False
) -> jax.Array:
    """`_outer_products` in the Pallas kernel for TPU."""
    from jax.experimental.pallas.ops.tpu.megablox.gmm import tgmm

    tile, most = len(x) // len(tile_expert), TPU_BLOCK_BYTES // x.itemsize
    return tgmm(
        x.T,
        y,
        _run_lengths(tile_expert, len(x), num_experts),
        jnp.float32,
        (tile, _block(x.shape[1], most // 2), _block(y.shape[1], most)),
        interpret=interpret,
    )


def ragged_products(
    x: jax.Array, w: jax.Array, tile_expert: jax.Array, transposed: bool
) -> jax.Array:
    """`_products` in `jax.lax.ragged_dot`: what compiles on a GPU, not what is fast there (public
    reports, and jax's own fallback, have every expert multiply every row)."""
    lengths = _run_lengths(tile_expert, len(x), len(w))
    numbers = jax.lax.RaggedDotDimensionNumbers(
        dot_dimension_numbers=(((1,), (2 if transposed else 1,)), ((), ())),
        lhs_ragged_dimensions=[0],
        rhs_group_dimensions=[0],
    )
    product = jax.lax.ragged_dot_general(x, w, lengths, numbers, preferred_element_type=jnp.float32)
    return product.astype(x.dtype)


def ragged_outer_products(
    x: jax.Array, y: jax.Array, tile_expert: jax.Array, num_experts: int
) -> jax.Array:
    """`_outer_products` in `jax.lax.ragged_dot_general`."""
    numbers = jax.lax.RaggedDotDimensionNumbers(
        dot_dimension_numbers=(((0,), (0,)), ((), ())),
        lhs_ragged_dimensions=[0],
        rhs_group_dimensions=[],
    )
    return jax.lax.ragged_dot_general(
        x,
        y,
        _run_lengths(tile_expert, len(x), num_experts),
        numbers,
        preferred_element_type=jnp.float32,
    )


@recompute_in_backward
def _gate_and_up(
    x: jax.Array, placement: Placement, gate: jax.Array, up: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """[M, D] to twice [R, F]. A token's k rows are made again in the backward pass, not kept."""
    rows = tokens_to_rows(x, placement)
    tiles = placement.tile_expert
    return grouped_matmul(rows, gate, tiles), grouped_matmul(rows, up, tiles)


@recompute_in_backward
def _weighted_swiglu(gate: jax.Array, up: jax.Array, weights: jax.Array) -> jax.Array:
    """`layers.swiglu` of [R, F], each row times its weight before the one rounding."""
    hidden = jax.nn.silu(gate.astype(jnp.float32)) * up.astype(jnp.float32)
    return (hidden * weights[:, None]).astype(gate.dtype)


def feed_forward_experts(
    x: jax.Array,
    experts: jax.Array,
    weights: jax.Array,
    gate: jax.Array,
    up: jax.Array,
    down: jax.Array,
    first_expert: int | jax.Array = 0,
    count: int | None = None,
) -> jax.Array:
    """The weighted sum of what each token's experts, SwiGLU each, make of it.

    A device that holds some of the experts, or some of the columns F, gives its part of the sum;
    the caller adds the parts. Products cost what the choices of the experts here cost, up to a tile
    an expert; memory is for the worst case, that all tokens choose experts which are here.

    Args:
        x: [M, D], compute dtype.
        experts: [M, k] int32, different for each choice of a token.
        weights: [M, k] float32.
        gate: [E, D, F], float32, of the experts here.
        up: [E, D, F].
        down: [E, F, D].
        first_expert: The first expert here; those here are `first_expert` + [0, E).
        count: Experts here and elsewhere; null means E.

    Returns:
        [M, D], dtype of `x`.
    """
    E = len(gate)
    placement = place_choices(experts - first_expert, E, rows_per_tile(experts.size, count or E))
    gate_out, up_out = _gate_and_up(x, placement, gate, up)
    # A weight on the way into `down` counts for the same as one on the way out, and spares the
    # backward pass what comes out.
    hidden = _weighted_swiglu(
        save_activation(gate_out), save_activation(up_out), choices_to_rows(weights, placement)
    )
    return rows_to_tokens(grouped_matmul(hidden, down, placement.tile_expert), placement)
