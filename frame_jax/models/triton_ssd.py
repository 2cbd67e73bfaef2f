"""The sums of `models.ssd` on GPUs: Pallas kernels through Triton, for Ampere and later chips.

Decays, scores and running states stay on the chip. A program of the forward pass goes through the
chunks of one head in order. The backward pass does so for the states before chunks and, from the
end, for the derivatives of the states after them, and writes both; then every chunk is by itself,
and a program adds up over heads that read the same B and C.

Operands of matrix products are in the dtype of `x`, sums in float32, as in the plain form, which is
the witness.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from frame_jax.models.layers import contract_f32
from frame_jax.models.ssd_inputs import EXACT, TokenInputs

CHUNK = 64  # tokens: what a program holds for so many fits its registers
HEADS = 8  # that a program of the backward pass adds up over, at most
STATE_AXES, SUM_AXES = "bgrknp", "bhtgn"  # as in `_call`


def unsupported_reason(inputs: TokenInputs) -> str | None:
    """Why `recurrence` cannot take these inputs; None if it can."""
    P, N = inputs.x.shape[-1], inputs.b.shape[-1]
    if inputs.x.dtype != jnp.bfloat16:
        return f"the kernels compute in bfloat16, not {inputs.x.dtype}"
    if P not in (16, 32, 64, 128) or N not in (16, 32, 64, 128, 256) or P * N > 2**14:
        return f"the kernels do not take heads of {P} numbers with states of {N}"
    return None


def recurrence(inputs: TokenInputs, d: Array, interpret: bool = False) -> Array:
    """[B, T, G, R, P]: `models.ssd.ssd` of inputs that are ordered by group.

    `d` is [B, G, R] float32, one for each row, so that the derivative of a row stays with it.
    """
    T = inputs.x.shape[1]

    def pad(x: Array) -> Array:
        return jnp.pad(x, ((0, 0), (0, -T % CHUNK)) + ((0, 0),) * (x.ndim - 2))

    inputs = jax.tree.map(pad, inputs)
    dt, log_decay = (jnp.moveaxis(v, 1, -1) for v in (inputs.dt, inputs.log_decay))
    return _recurrence(interpret, inputs._replace(dt=dt, log_decay=log_decay), d)[:, :T]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _recurrence(interpret: bool, inputs: TokenInputs, d: Array) -> Array:
    N, P = inputs.b.shape[-1], inputs.x.shape[-1]
    products = CHUNK * (N + P) + 2 * N * P
    operands, outputs = _named(inputs, d), [("btgrp", inputs.x)]
    return _call("ssd_forward", _forward_kernel, products, operands, outputs, interpret)[0]


def _backward(
    interpret: bool, residuals: tuple[TokenInputs, Array], grad: Array
) -> tuple[TokenInputs, Array]:
    inputs, d = residuals
    B, T, G, R, P = inputs.x.shape
    N, dtype = inputs.b.shape[-1], inputs.x.dtype
    states = [(STATE_AXES, jax.ShapeDtypeStruct((B, G, R, T // CHUNK, N, P), dtype))]

    def states_of(name: str, inputs: TokenInputs, reverse: bool) -> tuple[str, Array]:
        kernel = functools.partial(_states_kernel, reverse)
        return STATE_AXES, _call(name, kernel, N * P, _named(inputs, d), states, interpret)[0]

    before = states_of("ssd_states", inputs, False)
    after = states_of("ssd_state_gradients", inputs._replace(x=grad, b=inputs.c), True)
    heads = next(n for n in range(HEADS, 0, -1) if R % n == 0)
    sums = jax.ShapeDtypeStruct((B, R // heads, T, G, N), jnp.float32)
    operands = [*_named(inputs, d), before, after, ("btgrp", grad)]
    outputs = [("btgrp", inputs.x)] + [("bgrt", inputs.dt)] * 3 + [(SUM_AXES, sums)] * 2
    products = CHUNK * (CHUNK + 2 * P) + 4 * N * P + 3 * CHUNK * N // heads
    by_x, by_dt, by_decay, by_d, by_b, by_c = _call(
        "ssd_gradients", _gradients_kernel, products, operands, outputs, interpret, heads
    )
    by_b, by_c = (jnp.sum(v, axis=1).astype(dtype) for v in (by_b, by_c))
    return TokenInputs(by_x, by_dt, by_decay, by_b, by_c), jnp.sum(by_d, axis=-1)


_recurrence.defvjp(lambda *args: (_recurrence(*args), args[1:]), _backward)


def _named(inputs: TokenInputs, d: Array) -> list[tuple[str, Array]]:
    """What all kernels read, each with the names of its axes."""
    return list(zip(("btgrp", "bgrt", "bgrt", "btgn", "btgn", "bgr"), (*inputs, d), strict=True))


def _call(
    name: str,
    kernel: Callable[..., None],
    products: int,
    operands: Sequence[tuple[str, Array]],
    outputs: Sequence[tuple[str, Any]],
    interpret: bool,
    heads: int | None = None,
) -> list[Array]:
    """Calls a kernel. A program takes one chunk of `heads` heads, or if that is None all chunks of
    one head; it multiplies `products` times for each token of each head.

    Operands and outputs have their axes named: `k` are chunks, `h` blocks of heads.
    """
    size = {axis: n for axes, x in operands for axis, n in zip(axes, x.shape, strict=True)}
    B, T, G, R = (size[axis] for axis in "btgr")
    if heads is None:
        grid, of_program = (B, G, R), dict.fromkeys("bgr")
    else:
        grid = (B, T // CHUNK, G * R // heads)
        of_program = dict.fromkeys("bgkh") | {"t": CHUNK, "r": heads}

    def indices(row: Any, second: Any, third: Any) -> dict[str, Any]:
        if heads is None:
            return {"b": row, "g": second, "r": third}
        group, block = divmod(third, R // heads)
        return {"b": row, "t": second, "k": second, "g": group, "r": block, "h": block}

    def spec(axes: str, x: Any) -> pl.BlockSpec:
        shape = tuple(of_program.get(axis, n) for axis, n in zip(axes, x.shape, strict=True))
        return pl.BlockSpec(shape, lambda *ids: tuple(indices(*ids).get(axis, 0) for axis in axes))

    return pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=[spec(*operand) for operand in operands],
        out_specs=[spec(*output) for output in outputs],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for _, x in outputs],
        compiler_params=triton.CompilerParams(num_warps=8, num_stages=2 if heads is None else 1),
        name=name,
        metadata={"flops": str(2 * products * B * T * G * R)},
        interpret=interpret,
    )(*(x for _, x in operands))


def _forward_kernel(
    x_ref: Any, dt_ref: Any, decay_ref: Any, b_ref: Any, c_ref: Any, d_ref: Any, y_ref: Any
) -> None:
    """Outputs of one head, chunk after chunk: x [T, P], dt [T], B [T, N], one d."""
    dtype, d = x_ref.dtype, d_ref[...]

    def body(k: Array, state: Array) -> Array:
        here = pl.ds(k * CHUNK, CHUNK)
        b, c, x, dt = b_ref[here, :], c_ref[here, :], x_ref[here, :], dt_ref[here]
        between, since_start, to_end, kept = _decays(decay_ref[here])
        y = _dot(c, state.astype(dtype), 1, 0) * since_start[:, None]
        scores = _dot(c, b, 1, 1) * between * dt[None]
        y += _dot(scores.astype(dtype), x, 1, 0)
        y_ref[here, :] = (y + d * x).astype(dtype)
        return state * kept + _dot(b, (x * (dt * to_end)[:, None]).astype(dtype), 0, 0)

    empty = jnp.zeros((b_ref.shape[1], x_ref.shape[1]), jnp.float32)
    jax.lax.fori_loop(0, x_ref.shape[0] // CHUNK, body, empty)


def _states_kernel(
    reverse: bool,
    x_ref: Any,
    dt_ref: Any,
    decay_ref: Any,
    b_ref: Any,
    _c_ref: Any,
    _d_ref: Any,
    states_ref: Any,
) -> None:
    """States of one head before each chunk; with `reverse`, where derivatives of outputs are in the
    place of x and C in that of B, the derivatives of the states after each chunk."""
    dtype, count = x_ref.dtype, states_ref.shape[0]

    def body(k: Array, state: Array) -> Array:
        k = count - 1 - k if reverse else k
        here = pl.ds(k * CHUNK, CHUNK)
        states_ref[k, :, :] = state.astype(dtype)
        _, since_start, to_end, kept = _decays(decay_ref[here])
        weight = since_start if reverse else dt_ref[here] * to_end
        added = (x_ref[here, :].astype(jnp.float32) * weight[:, None]).astype(dtype)
        return state * kept + _dot(b_ref[here, :], added, 0, 0)

    jax.lax.fori_loop(0, count, body, jnp.zeros(states_ref.shape[1:], jnp.float32))


def _gradients_kernel(
    x_ref: Any,
    dt_ref: Any,
    decay_ref: Any,
    b_ref: Any,
    c_ref: Any,
    d_ref: Any,
    before_ref: Any,
    after_ref: Any,
    grad_ref: Any,
    by_x_ref: Any,
    by_dt_ref: Any,
    by_decay_ref: Any,
    by_d_ref: Any,
    by_b_ref: Any,
    by_c_ref: Any,
) -> None:
    """Derivatives at one chunk of some heads that read one group, x [CHUNK, heads, P].

    Given are the states before the chunk and the derivatives of those after it, [heads, N, P].
    """
    dtype, b, c = x_ref.dtype, b_ref[...], c_ref[...]
    plain_scores = _dot(c, b, 1, 1)
    i, k = _indices()

    def within(r: Array, by_scores: Array) -> Array:
        x, dt, grad = x_ref[:, r, :], dt_ref[r, :], grad_ref[:, r, :]
        before, after = before_ref[r, :, :], after_ref[r, :, :]
        between, since_start, to_end, kept = _decays(decay_ref[r, :])
        crossing = kept * jnp.sum(before.astype(jnp.float32) * after)
        scores = plain_scores * between
        by_score = _dot(grad, x, 1, 1) * dt[None]  # after its decay
        # A token's decay is in what those before it leave to it and to those after it: sums over
        # these pairs, and no differences of larger ones.
        by_pair = _dot((by_score * scores).astype(dtype), (i < k).astype(dtype), 1, 0)
        reads = jnp.sum(_dot(c, before, 1, 0) * grad, axis=1) * since_start
        from_after = _dot(b, after, 1, 0) * to_end[:, None]
        writes = jnp.sum(from_after * x, axis=1) * dt
        by_decay = jnp.sum(jnp.where(i >= k, by_pair + reads[:, None], writes[:, None]), axis=0)
        by_decay_ref[r, :] = by_decay + crossing
        by_added = _dot(scores.astype(dtype), grad, 0, 0) + from_after
        by_dt_ref[r, :] = jnp.sum(by_added * x, axis=1)
        by_d_ref[r, :] = jnp.sum(grad.astype(jnp.float32) * x, axis=1)
        by_x_ref[:, r, :] = (by_added * dt[:, None] + d_ref[r] * grad).astype(dtype)
        return by_scores + by_score * between

    by_scores = jax.lax.fori_loop(0, x_ref.shape[1], within, jnp.zeros_like(plain_scores))
    by_scores = by_scores.astype(dtype)

    def across(r: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        _, since_start, to_end, _ = _decays(decay_ref[r, :])
        x = x_ref[:, r, :] * (dt_ref[r, :] * to_end)[:, None]
        grad = grad_ref[:, r, :] * since_start[:, None]
        by_b = sums[0] + _dot(after_ref[r, :, :], x.astype(dtype), 1, 1)
        return by_b, sums[1] + _dot(before_ref[r, :, :], grad.astype(dtype), 1, 1)

    start = (_dot(c, by_scores, 0, 0), _dot(b, by_scores, 0, 1))
    by_b, by_c = jax.lax.fori_loop(0, x_ref.shape[1], across, start)
    by_b_ref[...] = by_b.T
    by_c_ref[...] = by_c.T


def _dot(x: Array, y: Array, of_x: int, of_y: int) -> Array:
    """The sum over these axes of two matrices, in float32."""
    return contract_f32(x, y, (of_x,), (of_y,))


def _decays(log_decay: Array) -> tuple[Array, Array, Array, Array]:
    """Decay factors in a chunk, from the logarithms of those at its tokens, [CHUNK].

    Returns:
        [CHUNK, CHUNK], at token i, of what token j added, 0 if j is after i; [CHUNK], at each
        token, of the state before the chunk; [CHUNK], at the chunk's end, of what each token added;
        and a number, at the chunk's end, of the state before it.
    """
    coarse = jnp.floor(log_decay / EXACT + 0.5) * EXACT  # see `models.ssd._running_sums`
    parts = (coarse, log_decay - coarse)
    until, whole = [jnp.cumsum(v) for v in parts], [jnp.sum(v) for v in parts]
    between = jnp.exp(sum(v[:, None] - v[None] for v in until))
    to_end = jnp.exp(sum(total - v for total, v in zip(whole, until, strict=True)))
    i, j = _indices()
    return jnp.where(i >= j, between, 0), jnp.exp(sum(until)), to_end, jnp.exp(sum(whole))


def _indices() -> tuple[Array, Array]:
    """Row and column of each element, [CHUNK, CHUNK]."""
    row, column = (jax.lax.broadcasted_iota(jnp.int32, (CHUNK, CHUNK), axis) for axis in (0, 1))
    return row, column
