"""Digests of arrays, the same however the arrays are split over devices."""

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp


def array_digest(tree: Any, xp: ModuleType) -> Any:
    """Computes a number that changes with any bit of any array of a tree.

    They are arrays of `xp`, `numpy` or `jax.numpy`, of numbers of 16 or 32 bits.

    Returns:
        uint32 scalar: the sum of all elements' bits, each times an odd number of its own, and of
        the arrays' sizes.
    """
    total = xp.zeros(1, xp.uint32)  # an array, because NumPy warns when a scalar wraps
    for number, leaf in enumerate(jax.tree.leaves(tree)):
        bits = leaf.view(f"uint{8 * leaf.dtype.itemsize}").astype(xp.uint32)
        factor = xp.full((1,) * leaf.ndim, 2 * number + 1, xp.uint32)
        for axis, size in enumerate(leaf.shape):
            shape = [size if i == axis else 1 for i in range(leaf.ndim)]
            indices = xp.arange(size, dtype=xp.uint32).reshape(shape)
            factor = factor * xp.uint32(0x9E3779B1) + 2 * indices
        size = xp.uint32(leaf.size * (2 * number + 1) % 2**32)  # so that zeros differ from nothing
        total = total + xp.sum(bits * factor, dtype=xp.uint32) + size
    return total[0]


@jax.jit
def tree_digests(trees: dict[str, Any]) -> dict[str, jax.Array]:
    """`array_digest` of each tree of arrays on devices, by name."""
    return {name: array_digest(tree, jnp) for name, tree in trees.items()}
