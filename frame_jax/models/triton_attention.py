"""Attention over packed rows for GPUs where cuDNN has no kernel for them: Pallas through Triton.

FlashAttention-2 (Dao, 2023): scores live on chip, a tile at a time, and the forward pass keeps the
logarithms of the softmax's denominators. A tile of queries visits the tiles of keys from the start
of its earliest document to the diagonal; in the backward pass a tile of keys visits the tiles of
queries from the diagonal to the end of its last document. No other tile is read.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl

from frame_jax.models.layers import contract_f32, document_bounds, save_activation
from frame_jax.parallel.sharding import platform

ROW_MULTIPLE = 128  # T is padded to it; a multiple of every tile
LOG2_E = math.log2(math.e)  # a GPU has an instruction for powers of two


def unsupported_reason(q: Array) -> str | None:
    """Why `triton_attention` cannot take these queries; None if it can."""
    if q.dtype != jnp.bfloat16 or q.shape[3] > 256:
        return f"kernels take up to 256 numbers a head, in bfloat16, not {q.shape[3]} in {q.dtype}"
    try:
        from jax.experimental.pallas import triton  # noqa: F401
    except ImportError as error:
        return f"Pallas in this version of JAX has no Triton ({error})"
    return None


def triton_attention(q: Array, k: Array, v: Array, segment_ids: Array) -> Array:
    """`models.attention.attention`, where `unsupported_reason` finds none.

    Segments must be contiguous: equal ids stand side by side. Heads are padded to a power of two,
    rows to whole tiles, by keys that are behind every query.
    """
    T, _, head_dim = q.shape[1:]
    tail, width = -T % ROW_MULTIPLE, max(16, pl.next_power_of_2(head_dim)) - head_dim
    q, k, v = (jnp.pad(x, ((0, 0), (0, tail), (0, 0), (0, width))) for x in (q, k, v))
    starts, ends = document_bounds(jnp.pad(segment_ids, ((0, 0), (0, tail))))
    return _attend(q, k, v, starts, ends, head_dim**-0.5)[:, :T, :, :head_dim]


def _forward(
    q: Array, k: Array, v: Array, starts: Array, ends: Array, scale: float
) -> tuple[Array, tuple[Array, ...]]:
    B, T, H, _ = q.shape
    out = [q, jax.ShapeDtypeStruct((B, H, T), jnp.float32)]
    mixed, log_total = _call(attention_forward, scale, 2 * T * q.size, [starts, q, k, v], out)
    mixed, log_total = save_activation(mixed), save_activation(log_total)
    return mixed, (q, k, v, save_activation(starts), save_activation(ends), mixed, log_total)


def _backward(scale: float, residuals: tuple[Array, ...], grad: Array) -> tuple[Any, ...]:
    q, k, v, starts, ends, mixed, log_total = residuals
    grad, flops = grad.astype(q.dtype), q.shape[1] * q.size  # of a product, below the diagonal
    operands, out = [starts, q, k, v, mixed, grad, log_total], [q, log_total]
    grad_q, inner = _call(attention_query_grad, scale, 2 * flops, operands, out)
    operands = [ends, q, k, v, grad, log_total, inner]
    grad_k, grad_v = _call(attention_key_grad, scale, 3 * flops, operands, [k, v])
    return grad_q, grad_k, grad_v, None, None


_attend = jax.custom_vjp(lambda *inputs: _forward(*inputs)[0], nondiff_argnums=(5,))
_attend.defvjp(_forward, _backward)


def _call(kernel: Callable[..., None], scale: float, flops: int, operands: Any, out: Any) -> Any:
    """Runs a kernel for each tile of a row and head of its first result, [B, T, heads, head_dim].
    Its refs are of whole arrays, of which it loads what it indexes."""
    from jax.experimental.pallas import triton

    B, T, heads, head_dim = out[0].shape
    return pl.pallas_call(
        partial(kernel, scale),
        grid=(T // _tiles(head_dim)[0], heads, B),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in out],
        compiler_params=triton.CompilerParams(num_warps=8, num_stages=2),
        interpret=platform() == "cpu",
        name=kernel.__name__,
        metadata={"flops": str(flops)},
    )(*operands)


def _tiles(head_dim: int) -> tuple[int, int]:
    """Tokens of the tile that a program is for, and of one that it visits: what fits in registers,
    and in the 99 KiB that the chips with the least memory on chip have for a program."""
    return (128, 64) if head_dim <= 128 else (64, 16)


def _positions(tile: Array, size: int) -> tuple[Any, Array]:
    """A tile's positions in its row, as a slice and as [size] int32."""
    return pl.ds(tile * size, size), tile * size + jnp.arange(size, dtype=jnp.int32)


def _program(x: Any) -> tuple[Array, Array, Any, Array]:
    """The row, head and positions (as a slice and [own] int32) that the program is for; `x` is
    [B, T, any heads, head_dim]."""
    tile, head, row = (pl.program_id(axis) for axis in range(3))
    return row, head, *_positions(tile, _tiles(x.shape[3])[0])


def _scores(x: Array, y: Array, seen: Array, scale: float) -> Array:
    """Scores between the tokens of two tiles, for weights that are powers of two."""
    return jnp.where(seen, contract_f32(x, y, (1,), (1,)) * (scale * LOG2_E), -jnp.inf)


def _visit_keys(starts: Any, q: Any, k: Any, visit: Callable[..., Any], carry: Any) -> Any:
    """Folds `visit(carry, where, seen)` over the tiles of keys that the program's queries read;
    `where` is the index of a tile, `seen` which of them read which, [own, visited] bool."""
    row, head, at, query = _program(q)
    own, visited = _tiles(q.shape[3])
    start, key_head = starts[row, at], jax.lax.div(head, q.shape[2] // k.shape[2])

    def step(tile: Array, carry: Any) -> Any:
        at, key = _positions(tile, visited)
        seen = (start[:, None] <= key) & (key <= query[:, None])
        return visit(carry, (row, at, key_head), seen)

    first, stop = jax.lax.div(jnp.min(start), visited), (pl.program_id(0) + 1) * (own // visited)
    return jax.lax.fori_loop(first, stop, step, carry)


def attention_forward(scale: float, *refs: Any) -> None:
    """A tile of queries in; mixed values and logarithms (base 2) of denominators out."""
    starts, q, k, v, mixed, log_total = refs
    row, head, at, _ = _program(q)
    queries = q[row, at, head]

    def visit(carry: Any, where: Any, seen: Array) -> tuple[Array, ...]:
        out, top, total = carry
        scores = _scores(queries, k[where], seen, scale)
        new_top = jnp.maximum(top, jnp.max(scores, axis=1))
        weights, shrink = jnp.exp2(scores - new_top[:, None]), jnp.exp2(top - new_top)
        new = contract_f32(weights.astype(v.dtype), v[where], (1,), (0,))
        return out * shrink[:, None] + new, new_top, total * shrink + jnp.sum(weights, axis=1)

    zero = jnp.zeros(len(queries), jnp.float32)
    carry = (jnp.zeros(queries.shape, jnp.float32), zero - 1e30, zero)  # finite: no inf - inf
    out, top, total = _visit_keys(starts, q, k, visit, carry)
    mixed[row, at, head] = (out / total[:, None]).astype(mixed.dtype)
    log_total[row, head, at] = top + jnp.log2(total)


def attention_query_grad(scale: float, *refs: Any) -> None:
    """A tile of queries in; their derivatives, and `grad` times the mixed values, out."""
    starts, q, k, v, mixed, grad, log_total, grad_q, inner = refs
    row, head, at, _ = _program(q)
    queries, grads, log_totals = q[row, at, head], grad[row, at, head], log_total[row, head, at]
    products = grads.astype(jnp.float32) * mixed[row, at, head].astype(jnp.float32)
    inners = jnp.sum(products, axis=1)

    def visit(total: Array, where: Any, seen: Array) -> Array:
        keys = k[where]
        weights = jnp.exp2(_scores(queries, keys, seen, scale) - log_totals[:, None])
        by_score = weights * (contract_f32(grads, v[where], (1,), (1,)) - inners[:, None])
        return total + contract_f32(by_score.astype(q.dtype), keys, (1,), (0,))

    total = _visit_keys(starts, q, k, visit, jnp.zeros(queries.shape, jnp.float32))
    grad_q[row, at, head] = (total * scale).astype(q.dtype)
    inner[row, head, at] = inners


def attention_key_grad(scale: float, *refs: Any) -> None:
    """A tile of keys in; derivatives of keys and values, by all heads that read them, out."""
    ends, q, k, v, grad, log_total, inner, grad_k, grad_v = refs
    row, key_head, at, key = _program(k)
    own, visited = _tiles(k.shape[3])
    groups = q.shape[2] // k.shape[2]
    end, keys, values = ends[row, at], k[row, at, key_head], v[row, at, key_head]
    first = pl.program_id(0) * (own // visited)
    count = jax.lax.div(jnp.max(end) + visited - 1, visited) - first

    def visit(i: Array, totals: tuple[Array, Array]) -> tuple[Array, Array]:
        at, query = _positions(first + jax.lax.rem(i, count), visited)
        head = key_head * groups + jax.lax.div(i, count)
        queries, grads = q[row, at, head], grad[row, at, head]
        seen = (key[:, None] <= query) & (query < end[:, None])
        weights = jnp.exp2(_scores(keys, queries, seen, scale) - log_total[row, head, at])
        by_weight = contract_f32(values, grads, (1,), (1,))
        by_score = (weights * (by_weight - inner[row, head, at])).astype(q.dtype)
        of_keys = totals[0] + contract_f32(by_score, queries, (1,), (0,))
        return of_keys, totals[1] + contract_f32(weights.astype(q.dtype), grads, (1,), (0,))

    zero = jnp.zeros(keys.shape, jnp.float32)
    of_keys, of_values = jax.lax.fori_loop(0, count * groups, visit, (zero, zero))
    grad_k[row, at, key_head] = (of_keys * scale).astype(k.dtype)
    grad_v[row, at, key_head] = of_values.astype(v.dtype)
