"""The loop over a stack of layers: `lax.scan`, and on CPUs, where XLA needs it, one of our own.

Loops may lie in one another: a layer may itself be a loop over layers.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from frame_jax.models.layers import from_bits, to_bits
from frame_jax.parallel.sharding import platform

# Activations [B, T, D], one layer's parameters and what all layers read, to activations and an
# auxiliary output, a tree of arrays.
Layer = Callable[[Array, Any, Any], tuple[Array, Any]]

# Before jaxlib 0.12, XLA for CPUs wrote and read a stack of bfloat16 by way of float32. How that is
# avoided rests on `jax.vjp` returning a tree whose leaves are the arrays that it keeps, which JAX
# does not promise: it is done for the versions that were tried.
STACKS_NEED_BITS = jax.__version_info__ < (0, 11)


def scan_layers(
    layer: Layer, unroll: int, x: Array, stacked: Any, context: Any
) -> tuple[Array, Any]:
    """Applies layers one after the other to `x`, [B, T, D], `unroll` in one turn of the loop.

    `stacked` are parameters, each with a leading axis over which the loop goes; nothing is
    differentiated with respect to `context`.

    Returns:
        [B, T, D], and the layers' auxiliary outputs, each with the leading axis of `stacked`.
    """
    scan = _scan_saving_bits if platform() == "cpu" and STACKS_NEED_BITS else _plain_scan
    return scan(layer, unroll, x, stacked, context)


def _plain_scan(
    layer: Layer, unroll: int, x: Array, stacked: Any, context: Any
) -> tuple[Array, Any]:
    return jax.lax.scan(lambda x, params: layer(x, params, context), x, stacked, unroll=unroll)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _scan_saving_bits(
    layer: Layer, unroll: int, x: Array, stacked: Any, context: Any
) -> tuple[Array, Any]:
    """`_plain_scan`, what the backward pass needs of each layer being kept as bits.

    Left alone, XLA converts the saved activations of all layers at once to float32 and back, and
    holds them at three times their size. Values and derivatives are the same, bit for bit.
    """
    return _plain_scan(layer, unroll, x, stacked, context)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class KnownLeaf:
    """Stands for a residual that the backward pass has anyway: the array at `index` among the
    leaves of a layer's parameters and the context."""

    index: int


class BFloat16Bits(NamedTuple):
    """Stands for an array of bfloat16. (A loop inside keeps its own as plain uint16.)"""

    bits: Array


def _forward(
    layer: Layer, unroll: int, x: Array, stacked: Any, context: Any
) -> tuple[tuple[Array, Any], tuple[Any, Any, Any]]:
    def body(x: Array, params: Any) -> tuple[Array, Any]:
        (x, aux), pull_back = jax.vjp(lambda x, params: layer(x, params, context), x, params)
        index_by_id = {id(leaf): i for i, leaf in enumerate(jax.tree.leaves((params, context)))}

        def placeholder_or_leaf(leaf: Array) -> Array | KnownLeaf | BFloat16Bits:
            if id(leaf) in index_by_id:
                return KnownLeaf(index_by_id[id(leaf)])
            return BFloat16Bits(to_bits(leaf)) if leaf.dtype == jnp.bfloat16 else leaf

        return x, (aux, jax.tree.map(placeholder_or_leaf, pull_back))

    x, (aux, saved) = jax.lax.scan(body, x, stacked, unroll=unroll)
    return (x, aux), (saved, stacked, context)


def _backward(
    layer: Layer, unroll: int, residuals: tuple[Any, Any, Any], grads: tuple[Array, Any]
) -> tuple[Array, Any, None]:
    saved, stacked, context = residuals

    def body(grad: Array, inputs: tuple[Any, Any, Any]) -> tuple[Array, Any]:
        params, saved, grad_aux = inputs
        known_leaves = jax.tree.leaves((params, context))

        def value(leaf: Array | KnownLeaf | BFloat16Bits) -> Array:
            if isinstance(leaf, KnownLeaf):
                return known_leaves[leaf.index]
            return from_bits(leaf.bits) if isinstance(leaf, BFloat16Bits) else leaf

        pull_back = jax.tree.map(
            value, saved, is_leaf=lambda leaf: isinstance(leaf, KnownLeaf | BFloat16Bits)
        )
        return pull_back((grad, grad_aux))

    grad, grad_aux = grads
    grad, grad_stacked = jax.lax.scan(
        body, grad, (stacked, saved, grad_aux), reverse=True, unroll=unroll
    )
    return grad, grad_stacked, None


_scan_saving_bits.defvjp(_forward, _backward)
