"""The two products of `grouped_product` in Pallas kernels for NVIDIA GPUs, through Triton.

A program multiplies one tile of rows, or one expert's rows, into one block of columns; tiles
without an expert cost nothing. Sizes that a block does not divide are padded.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from frame_jax.models.layers import contract_f32

BLOCK = 128  # rows or columns of a program's result
STEP_BYTES = 128  # of each operand's row that is multiplied at one time
SETTINGS = triton.CompilerParams(num_warps=8, num_stages=3)


def tile_products(
    x: Array, w: Array, tile_expert: Array, transposed: bool, interpret: bool = False
) -> Array:
    """`tile_products` of `grouped_product.product_kernels`, for tiles of 16, 32, 64 or 128 rows."""
    columns, step = w.shape[1 if transposed else 2], STEP_BYTES // x.itemsize
    x = _pad(x, (1, step))
    w = _pad(w, (1, BLOCK), (2, step)) if transposed else _pad(w, (1, step), (2, BLOCK))
    (R, D), E, tiles = x.shape, len(w), len(tile_expert)
    F = w.shape[1 if transposed else 2]
    tile = R // tiles

    def kernel(tile_expert, x, w, out):  # type: ignore[no-untyped-def]
        block, number = pl.ds(pl.program_id(0) * BLOCK, BLOCK), pl.program_id(1)
        expert = tile_expert[number]

        def add(i: Array, total: Array) -> Array:
            inner = pl.ds(i * step, step)
            rows = triton.load(x.at[pl.ds(number * tile, tile), inner])
            matrix = w.at[expert, block, inner] if transposed else w.at[expert, inner, block]
            return total + contract_f32(rows, triton.load(matrix), (1,), (int(transposed),))

        @pl.when(expert < E)
        def _() -> None:
            total = jax.lax.fori_loop(0, D // step, add, jnp.zeros((tile, BLOCK), jnp.float32))
            out[...] = total.astype(out.dtype)

    whole = pl.BlockSpec(memory_space=pl.ANY)
    # Columns first: programs that run together share rows and matrices in the cache.
    return pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((R, F), x.dtype),
        grid=(F // BLOCK, tiles),
        in_specs=(whole, whole, whole),
        out_specs=pl.BlockSpec((tile, BLOCK), lambda block, tile: (tile, block)),
        compiler_params=SETTINGS,
        interpret=interpret,
        name="grouped_product",
        metadata={"flops": str(2 * R * D * F)},
    )(tile_expert, x, w)[:, :columns]


def outer_products(
    x: Array, y: Array, tile_expert: Array, num_experts: int, interpret: bool = False
) -> Array:
    """`outer_products` of `grouped_product.product_kernels`."""
    (R, D), F, tiles = x.shape, y.shape[1], len(tile_expert)
    step = min(R // tiles, STEP_BYTES // x.itemsize)
    x, y = _pad(x, (1, BLOCK)), _pad(y, (1, BLOCK))
    bounds = jnp.searchsorted(tile_expert, jnp.arange(num_experts + 1)) * (R // tiles // step)

    def kernel(bounds, x, y, out):  # type: ignore[no-untyped-def]
        column, row, expert = (pl.program_id(axis) for axis in range(3))

        def add(i: Array, total: Array) -> Array:
            rows = pl.ds(i * step, step)
            left = triton.load(x.at[rows, pl.ds(row * BLOCK, BLOCK)])
            right = triton.load(y.at[rows, pl.ds(column * BLOCK, BLOCK)])
            return total + contract_f32(left, right, (0,), (0,))

        total = jnp.zeros((BLOCK, BLOCK), jnp.float32)
        out[...] = jax.lax.fori_loop(bounds[expert], bounds[expert + 1], add, total)

    whole = pl.BlockSpec(memory_space=pl.ANY)
    shape = (num_experts, x.shape[1], y.shape[1])
    return pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct(shape, jnp.float32),
        grid=(shape[2] // BLOCK, shape[1] // BLOCK, num_experts),
        in_specs=(whole, whole, whole),
        out_specs=pl.BlockSpec((None, BLOCK, BLOCK), lambda column, row, e: (e, row, column)),
        compiler_params=SETTINGS,
        interpret=interpret,
        name="grouped_outer_product",
        metadata={"flops": str(2 * R * D * F)},
    )(bounds.astype(jnp.int32), x, y)[:, :D, :F]


def _pad(x: Array, *multiples: tuple[int, int]) -> Array:
    """`x` with zeros behind each of these axes, up to a multiple of the number."""
    widths = [(0, 0)] * x.ndim
    for axis, multiple in multiples:
        widths[axis] = (0, -x.shape[axis] % multiple)
    return jnp.pad(x, widths)
