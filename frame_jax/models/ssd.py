"""The arithmetic of a Mamba-2 mixer: convolution, state-space recurrence, gated norm.

Everything restarts at each document of a packed row. `positions` says where: a token at position p
sees itself and the p tokens before it, of whatever is summed. Positions that count through the row
(0 to T - 1) make the row one document; padding has position 0 everywhere.

All is batched over rows and heads, and nothing looks across heads but `gated_rms_norm` across those
of a group: heads, and groups with their heads, may be split over devices.

The state-space sum goes chunk by chunk as in section 6 of Dao and Gu, "Transformers are SSMs"
(2024, arXiv:2405.21060).
"""

import functools
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import PartitionSpec

from frame_jax.models.layers import from_bits, recompute_in_backward, save_activation, to_bits
from frame_jax.models.ssd_inputs import EXACT, NEGLIGIBLE_LOG_DECAY, TokenInputs
from frame_jax.parallel.sharding import context_mesh, partition_spec, platform


@recompute_in_backward
def document_convolution(x: Array, weight: Array, bias: Array | None, positions: Array) -> Array:
    """Causal convolution of each channel of `x`, [B, T, C], by itself inside documents, then SiLU;
    in float32, the result in the dtype of `x`.

    `weight` is [W, C] float32, its row j counts the token j back (checkpoints have the oldest
    first); `bias` is [C] float32, positions are [B, T] int32, of each token inside its document.
    """
    x32, T = x.astype(jnp.float32), x.shape[1]
    total = x32 * weight[0]
    for j in range(1, weight.shape[0]):
        earlier = jnp.pad(x32, ((0, 0), (j, 0), (0, 0)))[:, :T]
        total += jnp.where(positions[:, :, None] >= j, earlier, 0) * weight[j]
    return jax.nn.silu(total if bias is None else total + bias).astype(x.dtype)


@functools.partial(recompute_in_backward, static_argnums=(3, 4))
def gated_rms_norm(y: Array, z: Array, scale: Array, eps: float, groups: int) -> Array:
    """`y` times SiLU of the gate `z`, both [..., D], then RMSNorm over each of `groups` equal parts
    of the last axis, computed in float32; shape and dtype of `y`.

    `scale` is [D] float32; `eps` is added to the mean square.
    """
    gated = y.astype(jnp.float32) * jax.nn.silu(z.astype(jnp.float32))
    parts = gated.reshape(*y.shape[:-1], groups, -1)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(parts), axis=-1, keepdims=True) + eps)
    return ((parts * inverse).reshape(y.shape) * scale).astype(y.dtype)


def ssd(
    x: Array, dt: Array, a: Array, b: Array, c: Array, d: Array, positions: Array, chunk: int
) -> Array:
    """The outputs of a linear recurrence that begins anew with each document.

    For each head, `state[t] = exp(dt[t] * a) * state[t - 1] + dt[t] * outer(b[t], x[t])`, from zero
    where `positions` is 0, and `y[t] = c[t] @ state[t] + d * x[t]`. Within a chunk it is a masked
    matrix product, between chunks a scan over states. The result does not depend on the chunk.

    Memory: neither pass holds the decays, [chunk, chunk] a head, of more than one chunk; the
    backward pass keeps the state before each chunk, B * ceil(T / chunk) * H * N * P float32.

    Args:
        x: [B, T, H, P], compute dtype.
        dt: [B, T, H] float32, not negative.
        a: [H] float32, negative.
        b: [B, T, G, N]; head h reads group h // (H / G).
        c: [B, T, G, N].
        d: [H] float32.
        positions: [B, T] int32, position of each token inside its document.
        chunk: Tokens a chunk, at most 1,024.

    Returns:
        [B, T, H, P], dtype of `x`.
    """
    B, T, H, P = x.shape
    by_group = (B, T, b.shape[2], H // b.shape[2])
    log_decay = jnp.maximum(dt * a, NEGLIGIBLE_LOG_DECAY)
    # A document forgets those before it.
    log_decay = jnp.where(positions[:, :, None] == 0, NEGLIGIBLE_LOG_DECAY, log_decay)
    x_by_group, log_decay = x.reshape(*by_group, P), log_decay.reshape(by_group)
    inputs = TokenInputs(x_by_group, dt.reshape(by_group), log_decay, b, c)
    by_row = jnp.broadcast_to(d.reshape(by_group[2:]), (B, *by_group[2:]))
    y = _by_device(min(chunk, T), inputs, by_row)
    return save_activation(y.reshape(x.shape))


def _by_device(size: int, inputs: TokenInputs, d: Array) -> Array:
    """`_on_device`, on GPUs for the rows, and groups or heads of a group, of each by itself: the
    partitioner cannot split a kernel."""
    mesh = context_mesh()
    if platform() != "gpu" or mesh is None or mesh.are_all_axes_manual:
        return _on_device(size, inputs, d)
    rows, groups, heads = partition_spec(("batch", "heads", "heads"), d.shape, mesh)
    heads = None if groups else heads
    of_head, of_group = PartitionSpec(rows, None, groups, heads), PartitionSpec(rows, None, groups)
    specs: list[Any] = [of_head] * 3 + [of_group] * 2
    return jax.shard_map(
        functools.partial(_on_device, size),
        in_specs=(TokenInputs(*specs), PartitionSpec(rows, groups, heads)),
        out_specs=of_head,
        check_vma=False,
    )(inputs, d)


def _on_device(size: int, inputs: TokenInputs, d: Array) -> Array:
    """[B, T, G, R, P]: `ssd` of inputs that are ordered by group, `d` [B, G, R] for each row."""
    if platform() != "gpu":
        return _by_chunks(size, inputs, d)
    try:
        from frame_jax.models import triton_ssd

        reason = triton_ssd.unsupported_reason(inputs)
    except ImportError as error:
        reason = f"this version of JAX has no Pallas through Triton ({error})"
    if reason is None:
        return triton_ssd.recurrence(inputs, d)
    warnings.warn(f"the state-space sums run in plain XLA: {reason}", stacklevel=2)
    return _by_chunks(size, inputs, d)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _by_chunks(size: int, inputs: TokenInputs, d: Array) -> Array:
    """`_on_device` in plain XLA."""
    return _forward(size, inputs, d)[0]


def _forward(
    size: int, inputs: TokenInputs, d: Array
) -> tuple[Array, tuple[Array, TokenInputs, Array]]:
    def body(state: Array, chunk: TokenInputs) -> tuple[Array, tuple]:
        after, y = scan_chunk(state, jax.tree.map(from_bits, chunk), d)
        return after, (state, to_bits(y))

    B, T, G, R, P = inputs.x.shape
    empty = jnp.zeros((B, G, R, inputs.b.shape[-1], P), jnp.float32)
    _, (states, y) = jax.lax.scan(body, empty, _split_chunks(inputs, size))
    return _join_chunks(y, T), (states, inputs, d)


def _backward(
    size: int, residuals: tuple[Array, TokenInputs, Array], grad: Array
) -> tuple[TokenInputs, Array]:
    """Computes each chunk again, from the last to the first."""
    states, inputs, d = residuals

    def body(grads: tuple[Array, Array], chunk: tuple) -> tuple[tuple, TokenInputs]:
        by_state, by_d = grads
        state, (inputs, grad) = chunk[0], jax.tree.map(from_bits, chunk[1])
        pull = jax.vjp(scan_chunk, state, inputs, d)[1]
        by_state, by_inputs, more = pull((by_state, grad))
        return (by_state, by_d + more), jax.tree.map(to_bits, by_inputs)

    zero = (jnp.zeros_like(states[0]), jnp.zeros_like(d))
    chunks = (states, _split_chunks((inputs, grad), size))
    (_, by_d), by_inputs = jax.lax.scan(body, zero, chunks, reverse=True)
    T = grad.shape[1]
    return jax.tree.map(lambda x: _join_chunks(x, T), by_inputs), by_d


_by_chunks.defvjp(_forward, _backward)


def _split_chunks(arrays: Any, size: int) -> Any:
    """Splits each [B, T, ...] into [ceil(T / size), B, size, ...], as bits, padded with zeros."""

    def split(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % size)) + ((0, 0),) * (x.ndim - 2))
        return to_bits(x.reshape(x.shape[0], -1, size, *x.shape[2:]).swapaxes(0, 1))

    return jax.tree.map(split, arrays)


def _join_chunks(chunks: Array, length: int) -> Array:
    """The inverse of `_split_chunks`, for one array."""
    x = from_bits(chunks).swapaxes(0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]


def scan_chunk(state: Array, inputs: TokenInputs, d: Array) -> tuple[Array, Array]:
    """Computes the state after a chunk, and the outputs in it.

    `state`, before the chunk, is [B, G, R, N, P] float32, `d` [B, G, R] float32; `inputs` are those
    of the chunk's Q tokens.

    Returns:
        [B, G, R, N, P] float32, and [B, Q, G, R, P] in the dtype of `inputs.x`.
    """
    # Heads in front, tokens behind: plain batched matrix products.
    x, b, c = (jnp.moveaxis(v, 1, -2) for v in (inputs.x, inputs.b, inputs.c))
    dt, log_decay = (jnp.moveaxis(v, 1, -1) for v in (inputs.dt, inputs.log_decay))
    product = functools.partial(_product, x.dtype)
    since_start, between = chunk_decays(log_decay, x.dtype)
    x32 = x.astype(jnp.float32)
    added = x32 * dt[..., None]
    scores = product("bgin,bgjn->bgij", c, b)
    y = product("bgrij,bgrjp->bgrip", scores[:, :, None] * between, added)
    y += product("bgin,bgrnp->bgrip", c, state) * since_start[..., None]
    y += d[..., None, None] * x32
    state = state * since_start[..., -1, None, None]
    state += product("bgjn,bgrjp->bgrnp", b, added * between[..., -1, :, None])
    return state, jnp.moveaxis(y, -2, 1).astype(x.dtype)


def chunk_decays(log_decay: Array, dtype: jnp.dtype) -> tuple[Array, Array]:
    """Decay factors of earlier contributions, from `log_decay`, [B, G, R, Q].

    Returns:
        [B, G, R, Q], at each token, of the state before the chunk, and [B, G, R, Q, Q], at token i,
        of what token j added, 0 if j is after i.
    """
    until = np.tri(log_decay.shape[-1], dtype=bool)
    between = jnp.where(until, _sums_between(dtype, log_decay), -jnp.inf)
    return jnp.exp(sum(_running_sums(log_decay))), jnp.exp(between)


def _running_sums(log_decay: Array) -> tuple[Array, Array]:
    """Two parts of the sums up to each token: of multiples of `EXACT`, and of what is beside them.

    Differences of whole sums would lose, to rounding, what a token that forgets much leaves of the
    digits of those after it.
    """
    coarse = jnp.round(log_decay / EXACT) * EXACT
    return jnp.cumsum(coarse, axis=-1), jnp.cumsum(log_decay - coarse, axis=-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sums_between(dtype: jnp.dtype, log_decay: Array) -> Array:
    """[..., Q] -> [..., Q, Q]: the sum over the tokens after j up to i, where j is before i.

    The derivative sums, for each token, over the pairs that it is between. Autodiff would take the
    difference of two sums over all pairs, and leave rounding where there is none.
    """
    coarse, fine = (x[..., :, None] - x[..., None, :] for x in _running_sums(log_decay))
    return coarse + fine


def _sums_between_backward(dtype: jnp.dtype, residuals: None, grad: Array) -> tuple[Array]:
    until = np.tri(grad.shape[-1], dtype=bool)  # [i, k]: k is up to i
    sums = _product(dtype, "bgrij,jk->bgrik", grad, jnp.asarray(~until, dtype))
    return (jnp.sum(jnp.where(until, sums, 0), axis=-2),)


_sums_between.defvjp(lambda dtype, x: (_sums_between(dtype, x), None), _sums_between_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _product(dtype: jnp.dtype, terms: str, x: Array, y: Array) -> Array:
    """The einsum of `x` and `y` rounded to `dtype`, in float32.

    Its derivative rounds the cotangent too, as `layers.matmul` does.
    """
    x, y = x.astype(dtype), y.astype(dtype)
    return jnp.einsum(terms, x, y, preferred_element_type=jnp.float32)


def _product_backward(
    dtype: jnp.dtype, terms: str, residuals: tuple[Array, Array], grad: Array
) -> tuple[Array, Array]:
    x, y = residuals
    of_x, of_y, out = terms.replace("->", ",").split(",")
    by_x = _product(dtype, f"{out},{of_y}->{of_x}", grad, y)
    by_y = _product(dtype, f"{of_x},{out}->{of_y}", x, grad)
    return by_x.astype(x.dtype), by_y.astype(y.dtype)


_product.defvjp(
    lambda dtype, terms, x, y: (_product(dtype, terms, x, y), (x, y)), _product_backward
)
