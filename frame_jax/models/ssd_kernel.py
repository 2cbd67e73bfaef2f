"""The sums of `models.ssd` on GPUs: Pallas kernels, through Triton, for Ampere chips and later ones.

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
from frame_jax.models.ssd import EXACT, NEGLIGIBLE_LOG_DECAY, TokenInputs

CHUNK = 64  # tokens: what a program holds for so many fits its registers
import os; W={n: tuple(int(v) for v in os.environ.get(n,{"ssd_gradients":"8,2"}.get(n,"4,2")).split(",")) for n in "ssd_forward ssd_states ssd_state_gradients ssd_gradients".split()}
HEADS = 8  # that a program of the backward pass adds up over, at most
# The axes of what all kernels read: x, dt, log decay, B, C and d; of the states at each
# of the chunks ("k"), and of sums over each block of heads ("h").
INPUT_AXES, STATE_AXES, SUM_AXES = "btgrp bgrt bgrt btgn btgn bgr".split(), "bgrknp", "bhtgn"


def unsupported_reason(inputs: TokenInputs) -> str | None:
    """Why `recurrence` cannot take these inputs; None if it can."""
    P, N = inputs.x.shape[-1], inputs.b.shape[-1]
    if inputs.x.dtype != jnp.bfloat16:
        return f"the kernels compute in bfloat16, not {inputs.x.dtype}"
    if P not in (16, 32, 64, 128) or N not in (16, 32, 64, 128, 256):
        return f"the kernels do not take heads of {P} numbers with states of {N}"
    return None


def recurrence(inputs: TokenInputs, d: Array, positions: Array, interpret: bool = False) -> Array:
    """[B, T, G, R, P]: `models.ssd.ssd` of inputs that are ordered by group.

    `d` is [B, G, R] float32, one for each row, so that the derivative of a row stays with it;
    positions are [B, T] int32.
    """
    T = positions.shape[1]

    def pad(x: Array) -> Array:
        return jnp.pad(x, ((0, 0), (0, -T % CHUNK)) + ((0, 0),) * (x.ndim - 2))

    begins = (positions == 0)[:, :, None, None]
    log_decay = jnp.where(begins, NEGLIGIBLE_LOG_DECAY, inputs.log_decay)
    inputs = jax.tree.map(pad, inputs._replace(log_decay=log_decay))
    dt, log_decay = (jnp.moveaxis(v, 1, -1) for v in (inputs.dt, inputs.log_decay))
    inputs = inputs._replace(dt=dt, log_decay=log_decay)
    return _recurrence(interpret, inputs, d)[:, :T]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _recurrence(interpret: bool, inputs: TokenInputs, d: Array) -> Array:
    operands = list(zip(INPUT_AXES, (*inputs, d), strict=True))
    outputs = [("btgrp", inputs.x)]
    return _call("ssd_forward", _forward_kernel, operands, outputs, None, interpret)[0]


def _backward(
    interpret: bool, residuals: tuple[TokenInputs, Array], grad: Array
) -> tuple[TokenInputs, Array]:
    inputs, d = residuals
    B, T, G, R, P = inputs.x.shape
    N, dtype = inputs.b.shape[-1], inputs.x.dtype
    states = [(STATE_AXES, jax.ShapeDtypeStruct((B, G, R, T // CHUNK, N, P), dtype))]

    def named(inputs: TokenInputs) -> list[tuple[str, Array]]:
        return list(zip(INPUT_AXES, (*inputs, d), strict=True))

    def states_of(inputs: TokenInputs, reverse: bool) -> tuple[str, Array]:
        kernel = functools.partial(_states_kernel, reverse)
        name = "ssd_state_gradients" if reverse else "ssd_states"
        return STATE_AXES, _call(name, kernel, named(inputs), states, None, interpret)[0]

    before = states_of(inputs, False)
    after = states_of(inputs._replace(x=grad, b=inputs.c), True)
    together = next(n for n in range(HEADS, 0, -1) if R % n == 0)
    sums = jax.ShapeDtypeStruct((B, R // together, T, G, N), jnp.float32)
    outputs = [("btgrp", inputs.x)] + [("bgrt", inputs.dt)] * 3 + [(SUM_AXES, sums)] * 2
    operands = [*named(inputs), before, after, ("btgrp", grad)]
    by_x, by_dt, by_decay, by_d, by_b, by_c = _call(
        "ssd_gradients", _gradients_kernel, operands, outputs, together, interpret
    )
    by_b, by_c = (jnp.sum(v, axis=1).astype(dtype) for v in (by_b, by_c))
    return TokenInputs(by_x, by_dt, by_decay, by_b, by_c), jnp.sum(by_d, axis=-1)


_recurrence.defvjp(lambda *args: (_recurrence(*args), args[1:]), _backward)


def _call(
    name: str,
    kernel: Callable[..., None],
    operands: Sequence[tuple[str, Array]],
    outputs: Sequence[tuple[str, Any]],
    together: int | None,
    interpret: bool,
) -> list[Array]:
    """Calls a kernel with operands and outputs whose axes are named.

    A program takes one chunk of `together` heads, or if that is None all chunks of one head.
    """
    size = {axis: n for axes, x in operands for axis, n in zip(axes, x.shape, strict=True)}
    B, T, G, R, N, P = (size[axis] for axis in "btgrnp")
    if together is None:
        grid, block = (B, G, R), dict.fromkeys("bgr")
        products = CHUNK * (N + P) + 2 * N * P if name == "ssd_forward" else N * P
    else:
        blocks = R // together
        grid = (B, T // CHUNK, G * blocks)
        block = dict.fromkeys("bgkh") | {"t": CHUNK, "r": together}
        products = CHUNK * (CHUNK + 2 * P) + 4 * N * P + 3 * CHUNK * N // together

    def place(*ids: Any) -> dict[str, Any]:
        if together is None:
            return dict(zip("bgr", ids, strict=True))
        row, chunk, (group, heads) = *ids[:2], divmod(ids[2], blocks)
        return {"b": row, "t": chunk, "k": chunk, "g": group, "r": heads, "h": heads}

    def spec(axes: str, x: Any) -> pl.BlockSpec:
        shape = tuple(block.get(axis, n) for axis, n in zip(axes, x.shape, strict=True))
        return pl.BlockSpec(shape, lambda *ids: tuple(place(*ids).get(axis, 0) for axis in axes))

    return pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=[spec(*operand) for operand in operands],
        out_specs=[spec(*output) for output in outputs],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for _, x in outputs],
        compiler_params=triton.CompilerParams(num_warps=W[name][0], num_stages=W[name][1]),
        name=name,
        metadata={"flops": str(2 * products * B * T * G * R)},
        interpret=interpret,
    )(*(x for _, x in operands))


def _forward_kernel(
    x_ref: Any,
    dt_ref: Any,
    decay_ref: Any,
    b_ref: Any,
    c_ref: Any,
    d_ref: Any,
    y_ref: Any,
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

    def body(r: Array, sums: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        by_scores, by_b, by_c = sums
        x, dt, grad = x_ref[:, r, :], dt_ref[r, :], grad_ref[:, r, :]
        before, after = before_ref[r, :, :], after_ref[r, :, :]
        between, since_start, to_end, kept = _decays(decay_ref[r, :])
        scores = plain_scores * between
        by_score = _dot(grad, x, 1, 1) * dt[None]  # after its decay
        # A token's decay is in what those before it leave to it and to those after it: sums over
        # these pairs, and no differences of larger ones.
        by_pair = _dot((by_score * scores).astype(dtype), (i < k).astype(dtype), 1, 0)
        kept_grad = (grad * since_start[:, None]).astype(dtype)
        by_c += _dot(before, kept_grad, 1, 1)
        reads = jnp.sum(_dot(c, before, 1, 0) * kept_grad, axis=1)
        from_after = _dot(b, after, 1, 0) * to_end[:, None]
        by_b += _dot(after, (x * (dt * to_end)[:, None]).astype(dtype), 1, 1)
        writes = jnp.sum(from_after * x, axis=1) * dt
        by_added = _dot(scores.astype(dtype), grad, 0, 0) + from_after
        by_decay = jnp.sum(jnp.where(i >= k, by_pair + reads[:, None], writes[:, None]), axis=0)
        crossing = kept * jnp.sum(before.astype(jnp.float32) * after)
        by_decay_ref[r, :] = by_decay + crossing
        by_dt_ref[r, :] = jnp.sum(by_added * x, axis=1)
        by_d_ref[r, :] = jnp.sum(grad.astype(jnp.float32) * x, axis=1)
        by_x_ref[:, r, :] = (by_added * dt[:, None] + d_ref[r] * grad).astype(dtype)
        return by_scores + by_score * between, by_b, by_c

    zero = jnp.zeros(b.shape[::-1], jnp.float32)
    start = (jnp.zeros_like(plain_scores), zero, zero)
    by_scores, by_b, by_c = jax.lax.fori_loop(0, x_ref.shape[1], body, start)
    by_scores = by_scores.astype(dtype)
    by_b_ref[...] = (by_b + _dot(c, by_scores, 0, 0)).T
    by_c_ref[...] = (by_c + _dot(b, by_scores, 0, 1)).T


def _dot(x: Array, y: Array, of_x: int, of_y: int) -> Array:
    """The sum over these axes of two matrices, in float32."""
    return contract_f32(x, y, (of_x,), (of_y,))


def _decays(log_decay: Array) -> tuple[Array, Array, Array, Array]:
    """Decay factors in a chunk, from the logarithms of its tokens' [CHUNK].

    Returns:
        [CHUNK, CHUNK], at token i, of what token j added, 0 where j is after i; [CHUNK], at each
        token, of the state before the chunk; [CHUNK], at the chunk's end, of what each token added;
        and, a number, at the chunk's end, of the state before it.
    """
    coarse = jnp.floor(log_decay / EXACT + 0.5) * EXACT  # see `models.ssd._running_sums`
    parts = (coarse, log_decay - coarse)
    until, whole = [jnp.cumsum(v) for v in parts], [jnp.sum(v) for v in parts]
    between = jnp.exp(sum(v[:, None] - v[None] for v in until))
    to_end = jnp.exp(sum(total - v for total, v in zip(whole, until, strict=True)))
    i, j = _indices()
    return jnp.where(i >= j, between, 0), jnp.exp(sum(until)), to_end, jnp.exp(sum(whole))


def _indices() -> tuple[Array, Array]:
    """Row and column of each element, both [CHUNK, CHUNK]."""
    shape = (CHUNK, CHUNK)
    return tuple(jax.lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (0, 1))
