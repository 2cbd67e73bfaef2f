"""The decoder as pure functions over a nested dict of arrays: `Decoder.init`, `Decoder.bind`.

The module is written in NNX; training, scoring and checkpoints work on plain pytrees, which jit
without NNX's per-call bookkeeping.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax import Array

from frame_jax.config.models import ModelConfig
from frame_jax.models.transformer import Params, Transformer
from frame_jax.run.json_dataclass import read_dataclass, write_dataclass


@dataclasses.dataclass(frozen=True)
class Decoder:
    """A decoder's shape and the settings of its computation; holds no arrays.

    Attributes:
        config: Shape of the model.
        vocab_size: Rows of the embedding.
        compute_dtype: Type of matrix-product operands.
        remat: What the backward pass recomputes, as in `TrainingConfig.remat`.
        unroll: Layers in one turn of the loop over layers.
    """

    config: ModelConfig
    vocab_size: int
    compute_dtype: str = "bfloat16"
    remat: str = "none"
    unroll: int = 1

    def _create(self, key: Array) -> Transformer:
        return Transformer(
            self.config,
            self.vocab_size,
            rngs=nnx.Rngs(params=key),
            compute_dtype=self.compute_dtype,
            remat=self.remat,
            unroll=self.unroll,
        )

    @functools.cached_property
    def _abstract(self) -> tuple[nnx.GraphDef, nnx.State]:
        return nnx.split(nnx.eval_shape(lambda: self._create(jax.random.key(0))))

    def init(self, key: Array) -> Params:
        """Initial parameters, float32. Wrap in `jax.jit` with output shardings for large models."""
        return nnx.to_pure_dict(nnx.state(self._create(key)))

    def shapes(self) -> Params:
        """The parameters as `jax.ShapeDtypeStruct`s, without making them."""
        return nnx.to_pure_dict(self._abstract[1])

    def axes(self) -> Params:
        """The logical axes of every parameter, e.g. `("layer", "embed", "mlp")`."""
        named = jax.tree.map(
            lambda variable: variable.get_metadata()["axes"],
            self._abstract[1],
            is_leaf=lambda node: isinstance(node, nnx.Variable),
        )
        return nnx.to_pure_dict(named)

    def bind(self, params: Params) -> Transformer:
        """The module with `params` as its parameters."""
        return nnx.merge(self._abstract[0], nnx.State(params))

    def parameter_count(self) -> int:
        """Number of parameters, embeddings included."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.shapes()))


@dataclasses.dataclass(frozen=True)
class Description:
    """What `model.json` says of a model: rows of its embedding, and its shape."""

    vocab_size: int
    model: ModelConfig


def write_description(folder: Path, decoder: Decoder) -> None:
    """Writes `model.json`, which `read_description` reads."""
    write_dataclass(folder / "model.json", Description(decoder.vocab_size, decoder.config))


def read_description(folder: Path, **settings: Any) -> Decoder:
    """Reads `folder/model.json`.

    Args:
        folder: Of the model.
        settings: Settings of `Decoder` beside its shape, e.g. `compute_dtype="float32"`.
    """
    found = read_dataclass(folder / "model.json", Description)
    return Decoder(found.model, found.vocab_size, **settings)
