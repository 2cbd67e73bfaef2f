"""The loop over a stack of layers: activations and stacked parameters in, activations out."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax

from frame_jax.models.layers import from_bits, to_bits

# Activations [B, T, D], one layer's parameters and what all layers read, to activations.
Layer = Callable[[jax.Array, Any, Any], jax.Array]


def run_layers(layer: Layer, unroll: int, x: jax.Array, stacked: Any, context: Any) -> jax.Array:
    """`x` after all layers.

    Args:
        layer: One layer.
        unroll: Layers in one turn of the loop.
        x: [B, T, D].
        stacked: Parameters, each with a leading axis over which the loop goes.
        context: What all layers read; nothing is differentiated with respect to it.

    Returns:
        [B, T, D].
    """
    x, _ = jax.lax.scan(
        lambda x, params: (layer(x, params, context), None), x, stacked, unroll=unroll
    )
    return x


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def run_layers_on_cpu(
    layer: Layer, unroll: int, x: jax.Array, stacked: Any, context: Any
) -> jax.Array:
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


def _forward(
    layer: Layer, unroll: int, x: jax.Array, stacked: Any, context: Any
) -> tuple[jax.Array, tuple[Any, Any, Any]]:
    def body(x: jax.Array, params: Any) -> tuple[jax.Array, Any]:
        x, pull_back = jax.vjp(lambda x, params: layer(x, params, context), x, params)
        places = {id(leaf): i for i, leaf in enumerate(jax.tree.leaves((params, context)))}

        def kept(leaf: jax.Array) -> jax.Array | AtHand:
            if id(leaf) in places:
                return AtHand(places[id(leaf)])
            return to_bits(leaf)

        return x, jax.tree.map(kept, pull_back)

    x, saved = jax.lax.scan(body, x, stacked, unroll=unroll)
    return x, (saved, stacked, context)


def _backward(
    layer: Layer, unroll: int, residuals: tuple[Any, Any, Any], grad: jax.Array
) -> tuple[jax.Array, Any, None]:
    saved, stacked, context = residuals

    def body(grad: jax.Array, inputs: tuple[Any, Any]) -> tuple[jax.Array, Any]:
        params, saved = inputs
        at_hand = jax.tree.leaves((params, context))

        def value(leaf: jax.Array | AtHand) -> jax.Array:
            if isinstance(leaf, AtHand):
                return at_hand[leaf.place]
            return from_bits(leaf)

        pull_back = jax.tree.map(value, saved, is_leaf=lambda leaf: isinstance(leaf, AtHand))
        return pull_back(grad)

    grad, grads = jax.lax.scan(body, grad, (stacked, saved), reverse=True, unroll=unroll)
    return grad, grads, None


run_layers_on_cpu.defvjp(_forward, _backward)
