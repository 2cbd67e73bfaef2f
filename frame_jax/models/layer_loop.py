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
    """`x` after all layers, and what each told.

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
class AtHand:
    """Stands for the array at `place` among the leaves of a layer's parameters and the context,
    which the backward pass has without saving it."""

    place: int


class Bits(NamedTuple):
    """Stands for an array of bfloat16. (A loop inside keeps its own as plain uint16.)"""

    bits: jax.Array


def stands_for_another(leaf: Any) -> bool:
    """Whether a leaf of what was kept is not the array itself."""
    return isinstance(leaf, AtHand | Bits)


def _forward(
    layer: Layer, unroll: int, x: jax.Array, stacked: Any, context: Any
) -> tuple[tuple[jax.Array, Any], tuple[Any, Any, Any]]:
    def body(x: jax.Array, params: Any) -> tuple[jax.Array, Any]:
        (x, told), pull_back = jax.vjp(lambda x, params: layer(x, params, context), x, params)
        places = {id(leaf): i for i, leaf in enumerate(jax.tree.leaves((params, context)))}

        def kept(leaf: jax.Array) -> jax.Array | AtHand | Bits:
            if id(leaf) in places:
                return AtHand(places[id(leaf)])
            return Bits(to_bits(leaf)) if leaf.dtype == jnp.bfloat16 else leaf

        return x, (told, jax.tree.map(kept, pull_back))

    x, (told, saved) = jax.lax.scan(body, x, stacked, unroll=unroll)
    return (x, told), (saved, stacked, context)


def _backward(
    layer: Layer, unroll: int, residuals: tuple[Any, Any, Any], grads: tuple[jax.Array, Any]
) -> tuple[jax.Array, Any, None]:
    saved, stacked, context = residuals

    def body(grad: jax.Array, inputs: tuple[Any, Any, Any]) -> tuple[jax.Array, Any]:
        params, saved, grad_told = inputs
        at_hand = jax.tree.leaves((params, context))

        def value(leaf: jax.Array | AtHand | Bits) -> jax.Array:
            if isinstance(leaf, AtHand):
                return at_hand[leaf.place]
            return from_bits(leaf.bits) if isinstance(leaf, Bits) else leaf

        pull_back = jax.tree.map(value, saved, is_leaf=stands_for_another)
        return pull_back((grad, grad_told))

    grad, grad_told = grads
    grad, grad_stacked = jax.lax.scan(
        body, grad, (stacked, saved, grad_told), reverse=True, unroll=unroll
    )
    return grad, grad_stacked, None


run_layers_on_cpu.defvjp(_forward, _backward)
