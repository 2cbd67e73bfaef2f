"""Attention over packed rows for NVIDIA GPUs: cuDNN's kernel, given where each document begins.

The kernel takes lists of segments, their lengths and offsets, and never meets two segments in one
tile of work: what the documents hide is neither computed nor described by a mask [T, T]. A call
has a fixed number of places for segments, and takes working memory for T tokens at each; a batch
with more segments takes more calls, in a loop. The result is exact for any batch.

JAX has the kernel's operations, but no public function for them; its internal one scales the keys'
offsets by the number of query heads up to JAX 0.10.2, which is wrong where heads share keys
(jax-ml/jax pull request 39521). So the two operations are called here directly, with offsets of our
own. `unsupported_reason` says where that is not possible.

The forward pass keeps the logarithms of the softmax's denominators, one a query and head, which
spares the backward pass the forward kernel. cuDNN gives and wants them by place and position, with
room for T positions at every place; they are that only around a call.
"""

from __future__ import annotations

import functools
import math
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from frame_jax.models.layers import save_activation
from frame_jax.parallel.sharding import device_kind

# Segments that a call takes. The rows of a device share the places, and each brings two at least.
# The backward pass needs 8 bytes for each number of the queries at each place (says
# cudnn-frontend's source: sums of dQ in float32, dK and dV of every query head).
SEGMENT_SLOTS = 16
HEAD_DIMS = range(8, 257, 8)
# Data-centre chips from Hopper on, which is what the kernel's packed layout needs.
CHIPS = re.compile(r"\b(?:GH|H|GB|B)\d{2,3}\b")


class BatchSegments(NamedTuple):
    """Where the segments of a batch lie in its B * T tokens. A call has places for B * P of them.

    Attributes:
        starts: [B * T + B * P + 1] int32, the first token of each segment; then B * T.
        segment: [B, T] int32, which segment a token is in, counted through all rows.
        position: [B, T] int32, a token's place in its segment.
        calls: [] int32, how many calls of the kernel take all segments.
    """

    starts: jax.Array
    segment: jax.Array
    position: jax.Array
    calls: jax.Array


def segment_slots_per_row(rows: int) -> int:
    """Places that each of so many rows brings to a call."""
    return max(2, SEGMENT_SLOTS // rows)


def find_segments(segment_ids: jax.Array) -> BatchSegments:
    """The segments of a batch, [B, T] int32; equal ids of one segment stand side by side."""
    B, T = segment_ids.shape
    begins = segment_ids[:, 1:] != segment_ids[:, :-1]
    begins = jnp.pad(begins, ((0, 0), (1, 0)), constant_values=True).reshape(-1)
    segment = jnp.cumsum(begins, dtype=jnp.int32) - 1
    slots = B * segment_slots_per_row(B)
    size = B * T + slots + 1
    starts = jnp.nonzero(begins, size=size, fill_value=B * T)[0].astype(jnp.int32)
    position = jnp.arange(B * T, dtype=jnp.int32) - starts[segment]
    calls = segment[-1] // slots + 1
    return BatchSegments(starts, segment.reshape(B, T), position.reshape(B, T), calls)


class KernelCall(NamedTuple):
    """What one call of the kernel takes.

    Attributes:
        lengths: [B, P] int32 of the segments at its places, 0 for none.
        starts: [B, P + 1] int32, first tokens in the B * T of the batch; the first B * P + 1 count.
        slot: [B, T] int32, where a token's segment is among the call's places, if it is.
        in_call: [B, T] bool, whether it is.
    """

    lengths: jax.Array
    starts: jax.Array
    slot: jax.Array
    in_call: jax.Array


def select_call(segments: BatchSegments, number: jax.Array) -> KernelCall:
    """The call of that number."""
    B, T = segments.segment.shape
    slots = B * segment_slots_per_row(B)
    starts = jax.lax.dynamic_slice(segments.starts, (number * slots,), (slots + 1,))
    slot = segments.segment - number * slots
    padded = jnp.pad(starts, (0, B - 1), constant_values=B * T).reshape(B, -1)
    lengths = jnp.diff(starts).reshape(B, -1)
    return KernelCall(lengths, padded, slot, (slot >= 0) & (slot < slots))


@jax.custom_vjp
def packed_attention(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array) -> jax.Array:
    """`models.attention.attention`, where `unsupported_reason` finds none.

    Segments must be contiguous: equal ids stand side by side.
    """
    return _forward(q, k, v, segment_ids)[0]


def _forward(
    q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    B, T, H, _ = q.shape
    segments = find_segments(segment_ids)

    def call(number: jax.Array, done: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        mixed, log_total = done
        part = select_call(segments, number)
        new, statistics = forward_kernel(q, k, v, part.lengths, part.starts)
        slot = jnp.clip(part.slot, 0, part.lengths.size - 1)
        of_token = statistics[slot, :, segments.position]  # [B, T, H]
        of_token = jnp.where(part.in_call[:, :, None], of_token, log_total)
        return jnp.where(part.in_call[:, :, None, None], new, mixed), of_token

    start = (jnp.zeros_like(q), jnp.zeros((B, T, H), jnp.float32))
    mixed, log_total = jax.lax.fori_loop(0, segments.calls, call, start)
    mixed, log_total = save_activation(mixed), save_activation(log_total)
    return mixed, (q, k, v, segment_ids, mixed, log_total)


def _backward(
    residuals: tuple[jax.Array, ...], grad: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    q, k, v, segment_ids, mixed, log_total = residuals
    B, T, H, _ = q.shape
    segments, grad = find_segments(segment_ids), grad.astype(q.dtype)
    # What stands at positions after a segment's end is never read into a result; it is finite.
    by_token = log_total.reshape(B * T, H)

    def call(number: jax.Array, done: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        part = select_call(segments, number)
        starts = part.starts.reshape(-1)[: part.lengths.size]
        token = jnp.minimum(starts[:, None] + jnp.arange(T), B * T - 1)
        statistics = by_token[token].transpose(0, 2, 1)  # [B * P, H, T]
        new = backward_kernel(q, k, v, statistics, mixed, grad, part.lengths, part.starts)
        mine = part.in_call[:, :, None, None]
        return tuple(jnp.where(mine, x, y) for x, y in zip(new, done, strict=True))

    start = tuple(jnp.zeros_like(x) for x in (q, k, v))
    grad_q, grad_k, grad_v = jax.lax.fori_loop(0, segments.calls, call, start)
    return grad_q, grad_k, grad_v, None


packed_attention.defvjp(_forward, _backward)


def forward_kernel(
    q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array, starts: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """cuDNN's forward pass over the segments of one call.

    Args:
        q: [B, T, H, head_dim].
        k: [B, T, K, head_dim].
        v: [B, T, K, head_dim].
        lengths: As in `KernelCall`.
        starts: Likewise.

    Returns:
        Mixed values, the shape of `q`, anything for tokens of other segments; logarithms of the
        softmax's denominators, [B * P, H, T] float32 by place and position, anything after a
        segment's end.
    """
    library = _library()
    lists, settings = _arguments(q, k, lengths, starts)
    operands = (q, k, v, _none(q), *lists, _none(q), _none(q))
    mixed, statistics = library._dot_product_attention_fwd_p.bind(
        *operands, is_training=True, **settings
    )
    return mixed, statistics


def backward_kernel(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    statistics: jax.Array,
    mixed: jax.Array,
    grad: jax.Array,
    lengths: jax.Array,
    starts: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Derivatives of `q`, `k` and `v`; anything for tokens of other segments.

    Beside the arguments of `forward_kernel` come what it returned and `grad`, the derivative of the
    mixed values.
    """
    library = _library()
    lists, settings = _arguments(q, k, lengths, starts)
    operands = (q, k, v, _none(q), *lists, _none(q), _none(q), statistics, mixed, grad)
    grad_q, grad_k, grad_v = library._dot_product_attention_bwd_p.bind(*operands, **settings)
    return grad_q, grad_k, grad_v


def _library() -> Any:
    """JAX's internal module with the operations that call cuDNN."""
    from jax._src.cudnn import fused_attention_stablehlo

    return fused_attention_stablehlo


def _none(q: jax.Array) -> jax.Array:
    """Stands for an operand that is not used."""
    return jnp.zeros(0, q.dtype)


def _arguments(
    q: jax.Array, k: jax.Array, lengths: jax.Array, starts: jax.Array
) -> tuple[tuple[jax.Array, ...], dict[str, Any]]:
    """Lengths and offsets of queries and keys, offsets in numbers; and the attributes of the
    call."""
    library = _library()
    by_query, by_key = (starts * math.prod(x.shape[2:]) for x in (q, k))
    settings = {
        "scale": q.shape[-1] ** -0.5,
        "seed": 0,
        "dropout_rate": 0.0,
        "variadic_args": (False, False),  # no bias, no derivative of one
        "mask_type": library.MaskType.PADDING_CAUSAL,
        "layout": library.AttentionLayout.BTNH.value,
        "sliding_window_length": None,
    }
    return (lengths, lengths, by_query, by_key), settings


def unsupported_reason(q: jax.Array, k: jax.Array) -> str | None:
    """Why `packed_attention` cannot take these queries and keys here; None if it can."""
    kind = device_kind()
    if not CHIPS.search(kind):
        return f"cuDNN's kernel for packed rows needs a Hopper or Blackwell chip, this is {kind}"
    if q.dtype != jnp.bfloat16:
        return f"cuDNN's kernels compute in bfloat16, not {q.dtype}"
    if q.shape[3] not in HEAD_DIMS:
        return f"cuDNN takes heads of 8, 16, ... 256 numbers, not {q.shape[3]}"
    if max(q.size, k.size) >= 2**31:
        return "the rows of a device are too many for 32-bit offsets"
    return _missing()


@functools.cache
def _missing() -> str | None:
    """What this version of JAX lacks of the operations; None if nothing."""
    q = jax.ShapeDtypeStruct((1, 128, 2, 64), jnp.bfloat16)
    k = jax.ShapeDtypeStruct((1, 128, 1, 64), jnp.bfloat16)
    ids = jax.ShapeDtypeStruct((1, 128), jnp.int32)
    try:
        jax.eval_shape(lambda q, k, ids: jax.vjp(packed_attention, q, k, k, ids)[1](q), q, k, ids)
    except Exception as error:  # internal functions may change in any way
        return f"this version of JAX has other operations for cuDNN ({error})"
    return None
