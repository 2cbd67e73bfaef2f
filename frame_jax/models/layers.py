"""What layers share: initial parameters, matrix product, norms, activations, rotary positions.

One rule for every backend: matrix-product operands in the compute dtype (bfloat16), sums in
float32. TPU and GPU matrix units work that way, and so do the CPU's.
"""

import copy
import functools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from frame_jax.config.models import RopeScalingConfig
from frame_jax.parallel.sharding import platform

SAVED_NAME = "saved"
# Marks what remat `minimal` keeps of a layer.
save_activation = functools.partial(checkpoint_name, name=SAVED_NAME)
# A product whose operands keep their dtype and whose sums are float32.
einsum_f32 = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
# Elementwise work costs less to repeat in the backward pass than its float32 intermediates cost to
# keep. Forward and backward pass are two loops over layers: there is nothing to merge by mistake.
recompute_in_backward = functools.partial(jax.checkpoint, prevent_cse=False)


class ParamInitializer:
    """Makes initial parameters: those of equal layers are stacked on a first axis.

    Attributes:
        residual: Scale of the matrices that write to the residual stream: they are scaled down, so
            that its variance does not grow with depth.
    """

    def __init__(self, num_layers: int, key: Array):
        self._rngs = nnx.Rngs(params=key)
        self._stack: tuple[int, ...] = ()
        self.residual = (2 * num_layers) ** -0.5

    def stacked(self, layers: int) -> Self:
        """The same, for parameters of so many equal layers."""
        other = copy.copy(self)
        other._stack = (layers,)
        return other

    def _param(self, values: Array, axes: Sequence[str]) -> nnx.Param:
        return nnx.Param(values, axes=(*["layer"] * len(self._stack), *axes))

    def embedding(self, vocab_size: int, hidden: int) -> nnx.Param:
        """[vocab_size, hidden], normal with a standard deviation of 0.02."""
        values = jax.random.normal(self._rngs.params(), (vocab_size, hidden), jnp.float32)
        return self._param(values * 0.02, ("vocab", "embed"))

    def matrix(self, shape: Sequence[int], axes: Sequence[str], scale: float = 1.0) -> nnx.Param:
        """Matrices [layers, *shape], normal with the variance `scale`^2 / rows."""
        values = jax.random.normal(self._rngs.params(), (*self._stack, *shape), jnp.float32)
        return self._param(values * (scale * shape[-2] ** -0.5), axes)

    def uniform(self, shape: Sequence[int], low: float, high: float) -> Array:
        """[layers, *shape], uniform in [low, high)."""
        shape = (*self._stack, *shape)
        return jax.random.uniform(self._rngs.params(), shape, jnp.float32, low, high)

    def vector(self, width: int, value: float | Array) -> nnx.Param:
        """Vectors [layers, width] that weight decay spares: norms, biases and the like."""
        values = jnp.broadcast_to(jnp.asarray(value, jnp.float32), (*self._stack, width))
        return self._param(values, ("norm",))

    def conv_kernel(self, width: int, channels: int) -> nnx.Param:
        """Weights [layers, width, channels] of a causal convolution over each channel."""
        bound = width**-0.5
        return self._param(self.uniform((width, channels), -bound, bound), ("conv", "norm"))

    def feed_forward(
        self,
        hidden: int,
        inner: int,
        prefix: str = "",
        experts: Sequence[int] = (),
        gated: bool = True,
    ) -> dict[str, nnx.Param]:
        """The matrices of a feed-forward, or of the experts of a mixture: gate, up and down."""
        axes = ["expert"] * len(experts)
        into = {
            f"{prefix}{name}": self.matrix((*experts, hidden, inner), (*axes, "embed", "mlp"))
            for name in (("gate", "up") if gated else ("up",))
        }
        down = self.matrix((*experts, inner, hidden), (*axes, "mlp", "embed"), self.residual)
        return into | {f"{prefix}down": down}

    def norm(self, name: str, width: int, kind: str) -> dict[str, nnx.Param]:
        """The scale of a norm and, for LayerNorm, its bias."""
        params = {name: self.vector(width, 1.0)}
        if kind == "layer":
            params[f"{name}_bias"] = self.vector(width, 0.0)
        return params


class LayerContext(NamedTuple):
    """What every layer reads beside activations and parameters.

    Attributes:
        segment_ids: [B, T] int32; tokens attend inside their segment.
        positions: [B, T] int32; a Mamba-2 layer starts anew where they are 0.
        rotary: Two arrays [B, T, 1, rotary width], as `rotary_tables` makes them.
        loss_mask: [B, T] float32, 1 for tokens that count in the statistics of routers; None for no
            statistics.
    """

    segment_ids: Array
    positions: Array
    rotary: tuple[Array, Array]
    loss_mask: Array | None


def document_bounds(segment_ids: Array) -> tuple[Array, Array]:
    """Where each token's segment starts, and where the next one does: twice [B, T] int32."""
    T = segment_ids.shape[1]
    begins, position = segment_ids[:, 1:] != segment_ids[:, :-1], jnp.arange(1, T)
    starts = jnp.pad(jnp.where(begins, position, 0), ((0, 0), (1, 0)))
    ends = jnp.pad(jnp.where(begins, position, T), ((0, 0), (0, 1)), constant_values=T)
    return jax.lax.cummax(starts, axis=1), jax.lax.cummin(ends, axis=1, reverse=True)


def to_bits(x: Array) -> Array:
    """bfloat16 as uint16, other dtypes as they are: for arrays that a loop takes slices of or puts
    together, which XLA for CPUs before jaxlib 0.12 does by way of float32."""
    return jax.lax.bitcast_convert_type(x, jnp.uint16) if x.dtype == jnp.bfloat16 else x


def from_bits(x: Array) -> Array:
    """The inverse of `to_bits`."""
    return jax.lax.bitcast_convert_type(x, jnp.bfloat16) if x.dtype == jnp.uint16 else x


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul(x: Array, w: Array, axes: int = 1) -> Array:
    """The product of `x` and `w` in the dtype of `x`, accumulated in float32.

    Its derivative rounds the cotangent to the dtype of the operands first; autodiff would multiply
    a float32 cotangent with a bfloat16 operand, which leaves the matrix units.

    Args:
        x: [..., *K], compute dtype.
        w: [*K, *N], any float dtype; rounded to the dtype of `x`.
        axes: How many axes K stands for: the last of `x`, the first of `w`.

    Returns:
        [..., *N], dtype of `x`.
    """
    rows = range(x.ndim - axes, x.ndim)
    return contract_f32(x, w.astype(x.dtype), rows, range(axes)).astype(x.dtype)


def contract_f32(x: Array, y: Array, of_x: Iterable[int], of_y: Iterable[int]) -> Array:
    """The sum over these axes of both, in float32; other axes stay, those of `x` first."""
    contract = ((tuple(of_x), tuple(of_y)), ((), ()))
    return jax.lax.dot_general(x, y, contract, preferred_element_type=jnp.float32)


def _matmul_backward(axes: int, residuals: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, w = residuals
    grad, batch = grad.astype(x.dtype), range(x.ndim - axes)
    columns = range(len(batch), grad.ndim)
    grad_x = contract_f32(grad, w.astype(x.dtype), columns, range(axes, w.ndim))
    return grad_x.astype(x.dtype), _over_tokens(x, grad, batch).astype(w.dtype)


def _over_tokens(x: Array, grad: Array, tokens: range) -> Array:
    """The sum over the leading axes of both, [*K, *N] float32.

    XLA for CPUs lays out the left operand anew, element by element, for a sum over its first axis.
    There the narrower of the two is the left one.
    """
    width = math.prod(x.shape[len(tokens) :])
    if platform() != "cpu" or width <= math.prod(grad.shape[len(tokens) :]):
        return contract_f32(x, grad, tokens, tokens)
    # Without the barrier XLA would exchange the operands again.
    transposed = jax.lax.optimization_barrier(contract_f32(grad, x, tokens, tokens))
    columns = range(grad.ndim - len(tokens))
    return transposed.transpose(*range(len(columns), transposed.ndim), *columns)


matmul.defvjp(lambda x, w, axes: (matmul(x, w, axes), (x, w)), _matmul_backward)


@functools.partial(recompute_in_backward, static_argnums=2)
def rms_norm(x: Array, scale: Array, eps: float) -> Array:
    """Root-mean-square normalisation of [..., D] over the last axis, computed in float32.

    `scale` is [D] float32; `eps` is added to the mean square.
    """
    x32 = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
    return (x32 * inverse * scale).astype(x.dtype)


@functools.partial(recompute_in_backward, static_argnums=3)
def layer_norm(x: Array, scale: Array, bias: Array, eps: float) -> Array:
    """Normalisation of [..., D] to mean 0 and variance 1 over the last axis, computed in float32.

    `scale` and `bias` are [D] float32; `eps` is added to the variance.
    """
    x32 = x.astype(jnp.float32)
    centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + eps)
    return (centred * inverse * scale + bias).astype(x.dtype)


@recompute_in_backward
def gelu(x: Array) -> Array:
    """The Gaussian error linear unit, exact (by the error function), computed in float32."""
    return jax.nn.gelu(x.astype(jnp.float32), approximate=False).astype(x.dtype)


@recompute_in_backward
def swiglu(gate: Array, up: Array) -> Array:
    """SiLU of `gate`, times `up`, computed in float32; same shape and dtype."""
    return (jax.nn.silu(gate.astype(jnp.float32)) * up.astype(jnp.float32)).astype(gate.dtype)


def rotary_frequencies(
    head_dim: int, theta: float, scaling: RopeScalingConfig | None = None
) -> np.ndarray:
    """Radians a position for each rotary pair, fastest first: [head_dim / 2] float32.

    `theta` is the base of the frequencies; `scaling` stretches them for a longer context, by the
    rule of Llama 3.1.
    """
    frequencies = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    if scaling is not None:
        turns = scaling.original_max_position_embeddings * frequencies / (2 * np.pi)
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        kept = np.clip((turns - low) / (high - low), 0, 1)
        frequencies *= kept + (1 - kept) / scaling.factor
    return frequencies.astype(np.float32)


def rotary_tables(positions: Array, frequencies: np.ndarray) -> tuple[Array, Array]:
    """Cosine and signed sine tables of the rotary embedding, from `rotary_frequencies` and the
    position of each token inside its document, [B, T] int32.

    Returns:
        Two arrays [B, T, 1, head_dim], float32: cosines, and sines with the first half negative.
    """
    angles = positions.astype(jnp.float32)[:, :, None, None] * frequencies
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([cos, cos], axis=-1), jnp.concatenate([-sin, sin], axis=-1)


@jax.custom_vjp
def apply_rotary(x: Array, tables: tuple[Array, Array]) -> Array:
    """Applies rotary positions to [B, T, heads, head_dim].

    Pairs are (i, i + head_dim / 2), the layout of Llama checkpoints on Hugging Face, so weights
    move in and out without a permutation. No derivative with respect to the tables is made.
    """
    cos, sin = tables
    return (x.astype(jnp.float32) * cos + _partners(x) * sin).astype(x.dtype)


apply_rotary.defvjp(
    lambda x, tables: (apply_rotary(x, tables), tables),
    lambda tables, grad: (apply_rotary(grad, (tables[0], -tables[1])), None),  # back by the angle
)


def _partners(x: Array) -> Array:
    """The two halves of the last axis, exchanged; float32.

    A TPU's vector unit moves numbers between lanes slowly. Its matrix unit does it in passing, and
    exactly: every sum has one term.
    """
    width = x.shape[-1]
    if platform() == "tpu":
        exchange = np.roll(np.eye(width), width // 2, axis=0).astype(x.dtype)
        return einsum_f32("...i,ij->...j", x, exchange, precision="highest")
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([second, first], axis=-1)
