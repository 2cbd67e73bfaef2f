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

from frame_jax.config.models import (
    ExpertsConfig,
    Mamba2Config,
    ModelConfig,
    RopeScalingConfig,
)
from frame_jax.models.transformer import Params, Transformer
from frame_jax.run.directory import read_json, write_json


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

    def _create(self, key: jax.Array) -> Transformer:
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

    def init(self, key: jax.Array) -> Params:
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


def write_description(folder: Path, decoder: Decoder) -> None:
    """Writes `model.json`, the model's shape and vocabulary, which `read_description` reads."""
    value = {"vocab_size": decoder.vocab_size, "model": dataclasses.asdict(decoder.config)}
    write_json(folder / "model.json", value)


def read_description(folder: Path, **settings: Any) -> Decoder:
    """Reads `folder/model.json`.

    Args:
        folder: Of the model.
        settings: Settings of `Decoder` beside its shape, e.g. `compute_dtype="float32"`.
    """
    value = read_json(folder / "model.json")
    shape = value["model"]
    parts = {"rope_scaling": RopeScalingConfig, "experts": ExpertsConfig, "mamba2": Mamba2Config}
    for name, part in parts.items():
        if shape.get(name):
            shape[name] = part(**shape[name])
    if "layers" in shape:
        shape["layers"] = tuple(shape["layers"])
    return Decoder(ModelConfig(**shape), value["vocab_size"], **settings)
