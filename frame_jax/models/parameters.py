"""Initial parameters of a stack of equal layers, each with the names of its axes."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx


class ParamInitializer:
    """Makes parameters for layers that are stacked on leading axes.

    Attributes:
        leading: Sizes of those axes: the layers, or repeats of a pattern and layers of a run.
        layers: Layers of the whole model, by which writes to the residual stream are scaled.
        rngs: Where random numbers come from.
    """

    def __init__(self, leading: tuple[int, ...], layers: int, rngs: nnx.Rngs):
        self.leading, self.rngs = leading, rngs
        # All writes to the residual stream are scaled down, so its variance does not grow.
        self.residual = (2 * layers) ** -0.5

    def _param(self, values: jax.Array, axes: Sequence[str]) -> nnx.Param:
        return nnx.Param(values, axes=("layer",) * len(self.leading) + tuple(axes))

    def matrix(self, shape: Sequence[int], axes: Sequence[str], scale: float = 1.0) -> nnx.Param:
        """Matrices [*leading, *shape], normal with the variance `scale`^2 / rows."""
        values = jax.random.normal(self.rngs.params(), (*self.leading, *shape), jnp.float32)
        return self._param(values * (scale * shape[-2] ** -0.5), axes)

    def uniform(self, width: int, low: float, high: float) -> jax.Array:
        """[*leading, width], uniform in [low, high)."""
        shape = (*self.leading, width)
        return jax.random.uniform(self.rngs.params(), shape, jnp.float32, low, high)

    def vector(self, width: int, value: float | jax.Array) -> nnx.Param:
        """Vectors [*leading, width] that weight decay spares: norms, biases and the like."""
        values = jnp.broadcast_to(jnp.asarray(value, jnp.float32), (*self.leading, width))
        return self._param(values, ("norm",))

    def conv_kernel(self, width: int, channels: int) -> nnx.Param:
        """Weights [*leading, width, channels] of a causal convolution over each channel."""
        bound = width**-0.5
        shape = (*self.leading, width, channels)
        values = jax.random.uniform(self.rngs.params(), shape, jnp.float32, -bound, bound)
        return self._param(values, ("conv", "norm"))

    def norm(self, name: str, width: int, kind: str) -> dict[str, nnx.Param]:
        """The scale of a norm and, for LayerNorm, its bias."""
        params = {name: self.vector(width, 1.0)}
        if kind == "layer":
            params[f"{name}_bias"] = self.vector(width, 0.0)
        return params


def inverse_softplus(x: jax.Array) -> jax.Array:
    """Inverse of softplus."""
    return x + jnp.log(-jnp.expm1(-x))
