"""Attention over packed rows for NVIDIA GPUs: cuDNN's kernel, by the offsets of documents.

The kernel takes the lengths and offsets of segments, and computes no scores between two segments
and needs no mask [T, T]. A call has a fixed number of slots for segments, and takes working memory
for T tokens at each; a batch with more segments takes more calls, in a loop. The result is exact
for any batch.

JAX has the kernel's operations, but no public function for them; its internal one scales the keys'
offsets by the number of query heads up to JAX 0.10.2, which is wrong where heads share keys
(jax-ml/jax pull request 39521). So the two operations are called here directly, with offsets of our
own. `unsupported_reason` says where that is not possible.

The forward pass keeps the logarithms of the softmax's denominators, one a query and head, which
spares the backward pass the forward kernel. cuDNN returns and takes them by slot and position, with
space for T positions at every slot; they have that layout only around a call.
"""

import functools
import math
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from frame_jax.models.layers import save_activation
from frame_jax.parallel.sharding import device_kind

# Segments that a call takes. The rows of a device share the slots, and each brings two at least.
# The backward pass needs 8 bytes for each number of the queries at each slot (by the source of
# cudnn-frontend: sums of dQ in float32, dK and dV of every query head).
SEGMENT_SLOTS = 16
HEAD_DIMS = range(8, 257, 8)
# Data-centre chips from Hopper on, which is what the kernel's packed layout needs.
CHIPS = re.compile(r"\b(?:GH|H|GB|B)\d{2,3}\b")


class BatchSegments(NamedTuple):
    """Where the segments of a batch lie in its B * T tokens. A call has slots for B * P of them.

    Attributes:
        starts: [B * T + B * P + 1] int32, the first token of each segment; then B * T.
        segment: [B, T] int32, which segment a token is in, counted through all rows.
        position: [B, T] int32, a token's position in its segment.
        calls: [] int32, how many calls of the kernel take all segments.
    """

    starts: Array
    segment: Array
    position: Array
    calls: Array


def find_segments(segment_ids: Array) -> BatchSegments:
    """Finds the segments of a batch, [B, T] int32; equal ids of one segment are contiguous."""
    B, T = segment_ids.shape
    begins = segment_ids[:, 1:] != segment_ids[:, :-1]
    begins = jnp.pad(begins, ((0, 0), (1, 0)), constant_values=True).reshape(-1)
    segment = jnp.cumsum(begins, dtype=jnp.int32) - 1
    slots = B * max(2, SEGMENT_SLOTS // B)
    starts = jnp.nonzero(begins, size=B * T + slots + 1, fill_value=B * T)[0].astype(jnp.int32)
    position = jnp.arange(B * T, dtype=jnp.int32) - starts[segment]
    calls = segment[-1] // slots + 1
    return BatchSegments(starts, segment.reshape(B, T), position.reshape(B, T), calls)


class KernelCall(NamedTuple):
    """The segments of one call of the kernel.

    Attributes:
        lengths: [B, P] int32 of the segments at its slots, 0 for none.
        starts: [B, P + 1] int32, first tokens in the B * T of the batch; the first B * P + 1 count.
        slot: [B, T] int32, the slot of a token's segment, if the call has it.
        in_call: [B, T] bool, whether the call has a token's segment.
    """

    lengths: Array
    starts: Array
    slot: Array
    in_call: Array


def select_call(segments: BatchSegments, number: Array) -> KernelCall:
    """The segments of the call of that number."""
    B, T = segments.segment.shape
    slots = segments.starts.size - B * T - 1
    starts = jax.lax.dynamic_slice(segments.starts, (number * slots,), (slots + 1,))
    slot = segments.segment - number * slots
    padded = jnp.pad(starts, (0, B - 1), constant_values=B * T).reshape(B, -1)
    lengths = jnp.diff(starts).reshape(B, -1)
    return KernelCall(lengths, padded, slot, (slot >= 0) & (slot < slots))


@jax.custom_vjp
def packed_attention(q: Array, k: Array, v: Array, segment_ids: Array) -> Array:
    """`models.attention.attention`, where `unsupported_reason` finds none.

    Segments must be contiguous: equal ids stand side by side.
    """
    return _forward(q, k, v, segment_ids)[0]


def _forward(q: Array, k: Array, v: Array, segment_ids: Array) -> tuple[Array, tuple[Array, ...]]:
    B, T, H, _ = q.shape
    segments = find_segments(segment_ids)

    def call(number: Array, done: tuple[Array, Array]) -> tuple[Array, Array]:
        mixed, log_total = done
        kernel_call = select_call(segments, number)
        new, statistics = forward_kernel(q, k, v, kernel_call)
        slot = jnp.clip(kernel_call.slot, 0, kernel_call.lengths.size - 1)
        by_token = statistics[slot, :, segments.position]  # [B, T, H]
        in_call = kernel_call.in_call[:, :, None]
        return jnp.where(in_call[..., None], new, mixed), jnp.where(in_call, by_token, log_total)

    start = (jnp.zeros_like(q), jnp.zeros((B, T, H), jnp.float32))
    mixed, log_total = jax.lax.fori_loop(0, segments.calls, call, start)
    mixed, log_total = save_activation(mixed), save_activation(log_total)
    return mixed, (q, k, v, segment_ids, mixed, log_total)


def _backward(residuals: tuple[Array, ...], grad: Array) -> tuple[Array, Array, Array, None]:
    q, k, v, segment_ids, mixed, log_total = residuals
    B, T, H, _ = q.shape
    segments, grad = find_segments(segment_ids), grad.astype(q.dtype)
    # Positions after a segment's end are never read into a result; what they hold is finite.
    by_token = log_total.reshape(B * T, H)

    def call(number: Array, done: tuple[Array, ...]) -> tuple[Array, ...]:
        kernel_call = select_call(segments, number)
        starts = kernel_call.starts.reshape(-1)[: kernel_call.lengths.size]
        token = jnp.minimum(starts[:, None] + jnp.arange(T), B * T - 1)
        statistics = by_token[token].transpose(0, 2, 1)  # [B * P, H, T]
        new = backward_kernel(q, k, v, statistics, mixed, grad, kernel_call)
        in_call = kernel_call.in_call[:, :, None, None]
        return tuple(jnp.where(in_call, x, y) for x, y in zip(new, done, strict=True))

    start = tuple(jnp.zeros_like(x) for x in (q, k, v))
    grad_q, grad_k, grad_v = jax.lax.fori_loop(0, segments.calls, call, start)
    return grad_q, grad_k, grad_v, None


packed_attention.defvjp(_forward, _backward)


def forward_kernel(q: Array, k: Array, v: Array, call: KernelCall) -> tuple[Array, Array]:
    """cuDNN's forward pass over the segments of one call.

    Queries are [B, T, H, head_dim], keys and values [B, T, K, head_dim].

    Returns:
        Mixed values, the shape of `q`, anything for tokens of other segments; logarithms of the
        softmax's denominators, [B * P, H, T] float32 by slot and position, anything after a
        segment's end.
    """
    operands, settings = _arguments(q, k, v, call)
    forward = _library()._dot_product_attention_fwd_p
    return forward.bind(*operands, is_training=True, **settings)


def backward_kernel(
    q: Array, k: Array, v: Array, statistics: Array, mixed: Array, grad: Array, call: KernelCall
) -> tuple[Array, Array, Array]:
    """Derivatives of `q`, `k` and `v`; anything for tokens of other segments.

    Beside the arguments of `forward_kernel` come what it returned and `grad`, the derivative of the
    mixed values.
    """
    operands, settings = _arguments(q, k, v, call)
    backward = _library()._dot_product_attention_bwd_p
    return backward.bind(*operands, statistics, mixed, grad, **settings)


def _library() -> Any:
    """JAX's internal module with the operations that call cuDNN."""
    from jax._src.cudnn import fused_attention_stablehlo

    return fused_attention_stablehlo


def _arguments(
    q: Array, k: Array, v: Array, call: KernelCall
) -> tuple[tuple[Array, ...], dict[str, Any]]:
    """The operands that both operations begin with, offsets counted in numbers; and settings."""
    library, unused = _library(), jnp.zeros(0, q.dtype)
    by_query, by_key = (call.starts * math.prod(x.shape[2:]) for x in (q, k))
    operands = (q, k, v, unused, call.lengths, call.lengths, by_query, by_key, unused, unused)
    settings = {
        "scale": q.shape[-1] ** -0.5,
        "seed": 0,
        "dropout_rate": 0.0,
        "variadic_args": (False, False),  # no bias, no derivative of one
        "mask_type": library.MaskType.PADDING_CAUSAL,
        "layout": library.AttentionLayout.BTNH.value,
        "sliding_window_length": None,
    }
    return operands, settings


def unsupported_reason(q: Array, k: Array) -> str | None:
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
    """Why this version of JAX cannot call the operations; None if it can."""
    q = jax.ShapeDtypeStruct((1, 128, 2, 64), jnp.bfloat16)
    k = jax.ShapeDtypeStruct((1, 128, 1, 64), jnp.bfloat16)
    ids = jax.ShapeDtypeStruct((1, 128), jnp.int32)
    try:
        jax.eval_shape(lambda q, k, ids: jax.vjp(packed_attention, q, k, k, ids)[1](q), q, k, ids)
    except Exception as error:  # internal functions may change in any way
        return f"this version of JAX has other operations for cuDNN ({error})"
    return None
