"""The loop over a stack of layers: activations and stacked parameters in, activations out.

Loops may lie in one another: a layer may itself be a loop over layers.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from frame_jax.models.layers import from_bits, to_bits

# Activations [B, T, D], one layer's parameters and what all layers read, to activations and what
# else the layer tells, a tree of arrays.
Layer = Callable[[jax.Array, Any, Any], tuple[jax.Array, Any]]


def run_layers(
    layer: Layer, unroll: int, x: jax.Array, stacked: Any, context: Any
) -> tuple[jax.Array, Any]:
    """`x` after all layers, and the auxiliary output of each.

    Args:
        layer: One layer.
        unroll: Layers in one turn of the loop.
        x: [B, T, D].
        stacked: Parameters, each with a leading axis over which the loop goes.
        context: What all layers read; nothing is differentiated with respect to it.

    Returns:
        [B, T, D], and a tree of arrays with the leading axis of `stacked`.
    """
    return jax.lax.scan(lambda x, params: layer(x, params, context), x, stacked, unroll=unroll)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def run_layers_on_cpu(
    layer: Layer, unroll: int, x: jax.Array, stacked: Any, context: Any
) -> tuple[jax.Array, Any]:
    """`run_layers`, what the backward pass needs of each layer being kept as bits.

    XLA for CPUs writes and reads a stack of bfloat16 by way of float32: left alone, it converts the
    saved activations of all layers at once, forth and back, and holds them at three times their
    size. Values and derivatives are those of `run_layers`, bit for bit.
    """
    return run_layers(layer, unroll, x, stacked, context)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class KnownLeaf:
    """Stands for the array at `index` among the leaves of a layer's parameters and the context,
    which the backward pass has without saving it."""

    index: int


class BFloat16Bits(NamedTuple):
    """Stands for an array of bfloat16. (A loop inside keeps its own as plain uint16.)"""

    bits: jax.Array


def is_placeholder(leaf: Any) -> bool:
    """Whether a leaf of what was kept is not the array itself."""
    return isinstance(leaf, KnownLeaf | BFloat16Bits)


def _forward(
    layer: Layer, unroll: int, x: jax.Array, stacked: Any, context: Any
) -> tuple[tuple[jax.Array, Any], tuple[Any, Any, Any]]:
    def body(x: jax.Array, params: Any) -> tuple[jax.Array, Any]:
        (x, aux), pull_back = jax.vjp(lambda x, params: layer(x, params, context), x, params)
        index_by_id = {id(leaf): i for i, leaf in enumerate(jax.tree.leaves((params, context)))}

        def placeholder_or_leaf(leaf: jax.Array) -> jax.Array | KnownLeaf | BFloat16Bits:
            if id(leaf) in index_by_id:
                return KnownLeaf(index_by_id[id(leaf)])
            return BFloat16Bits(to_bits(leaf)) if leaf.dtype == jnp.bfloat16 else leaf

        return x, (aux, jax.tree.map(placeholder_or_leaf, pull_back))

    x, (aux, saved) = jax.lax.scan(body, x, stacked, unroll=unroll)
    return (x, aux), (saved, stacked, context)


def _backward(
    layer: Layer, unroll: int, residuals: tuple[Any, Any, Any], grads: tuple[jax.Array, Any]
) -> tuple[jax.Array, Any, None]:
    saved, stacked, context = residuals

    def body(grad: jax.Array, inputs: tuple[Any, Any, Any]) -> tuple[jax.Array, Any]:
        params, saved, grad_aux = inputs
        known_leaves = jax.tree.leaves((params, context))

        def value(leaf: jax.Array | KnownLeaf | BFloat16Bits) -> jax.Array:
            if isinstance(leaf, KnownLeaf):
                return known_leaves[leaf.index]
            return from_bits(leaf.bits) if isinstance(leaf, BFloat16Bits) else leaf

        pull_back = jax.tree.map(value, saved, is_leaf=is_placeholder)
        return pull_back((grad, grad_aux))

    grad, grad_aux = grads
    grad, grad_stacked = jax.lax.scan(
        body, grad, (stacked, saved, grad_aux), reverse=True, unroll=unroll
    )
    return grad, grad_stacked, None


run_layers_on_cpu.defvjp(_forward, _backward)
