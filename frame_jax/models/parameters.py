"""Initial parameters of a stack of equal layers, each with the names of its axes."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array


class ParamInitializer:
    """Makes the parameters of equal layers, stacked on a first axis.

    Attributes:
        residual: Scale of the matrices that write to the residual stream: they are scaled down, so
            that its variance does not grow with depth.
    """

    def __init__(self, stacked: int, num_layers: int, rngs: nnx.Rngs):
        """
        Args:
            stacked: Layers of the stack.
            num_layers: Layers of the whole model.
            rngs: Where random numbers come from.
        """
        self._stacked, self._rngs = stacked, rngs
        self.residual = (2 * num_layers) ** -0.5

    def _param(self, values: Array, axes: Sequence[str]) -> nnx.Param:
        return nnx.Param(values, axes=("layer", *axes))

    def matrix(self, shape: Sequence[int], axes: Sequence[str], scale: float = 1.0) -> nnx.Param:
        """Matrices [layers, *shape], normal with the variance `scale`^2 / rows."""
        values = jax.random.normal(self._rngs.params(), (self._stacked, *shape), jnp.float32)
        return self._param(values * (scale * shape[-2] ** -0.5), axes)

    def uniform(self, shape: Sequence[int], low: float, high: float) -> Array:
        """[layers, *shape], uniform in [low, high)."""
        shape = (self._stacked, *shape)
        return jax.random.uniform(self._rngs.params(), shape, jnp.float32, low, high)

    def vector(self, width: int, value: float | Array) -> nnx.Param:
        """Vectors [layers, width] that weight decay spares: norms, biases and the like."""
        values = jnp.broadcast_to(jnp.asarray(value, jnp.float32), (self._stacked, width))
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
