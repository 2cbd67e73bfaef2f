"""The decoder: an embedding, layers, a final norm; the loss projects its output to logits.

Layers are any mix of mixers and feed-forwards (`models.block`), Llama's unless the shape says
otherwise. Parameters are a nested dict of arrays; those of equal layers are stacked and scanned, so
compile time does not depend on depth. Every parameter names its logical axes where it is made;
`frame_jax.parallel.sharding` maps those to mesh axes.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from frame_jax.config.models import ModelConfig
from frame_jax.models import block
from frame_jax.models.feed_forward_experts import RouterStatistics
from frame_jax.models.layer_loop import scan_layers
from frame_jax.models.layers import (
    SAVED_NAME,
    LayerContext,
    ParamInitializer,
    rotary_frequencies,
    rotary_tables,
)
from frame_jax.parallel.sharding import constrain_sharding, platform
from frame_jax.run.directory import read_dataclass, write_dataclass

Params = dict[str, Any]  # nested dict of float32 arrays
# Makes one layer's parameters whole: its group's name, and the parameters or shards of them.
GatherParams = Callable[[str, Params], Params]

UNROLLED_GROUPS = 16  # of layers, at most, outside a loop: each is compiled by itself
REMAT_POLICIES = {
    "minimal": jax.checkpoint_policies.save_only_these_names(SAVED_NAME),
    "full": jax.checkpoint_policies.nothing_saveable,
}


@dataclasses.dataclass(frozen=True)
class Decoder:
    """A decoder's shape and the settings of its computation, as functions of its parameters.

    `params["layers"]` holds those of each group of equal layers, `layers[group][parameter]`,
    stacked on a first axis in the order of the layers: [repeats of the pattern * layers of the
    group, ...].

    Attributes:
        vocab_size: Rows of the embedding.
        compute_dtype: Type of activations and of matrix-product operands.
        remat: What the backward pass recomputes, as in `TrainingConfig.remat`.
        unroll: Layers in one turn of the loop over layers.
    """

    config: ModelConfig
    vocab_size: int
    compute_dtype: str = "bfloat16"
    remat: str = "none"
    unroll: int = 1

    def _create(self, key: Array) -> dict[str, Any]:
        """Initial parameters, each an `nnx.Param` with its logical axes."""
        c = self.config
        init = ParamInitializer(c.num_layers, key)
        params: dict[str, Any] = {"embedding": init.embedding(self.vocab_size, c.hidden_size)}
        params["layers"] = {
            group.name: block.init_params(c, group.spec, init.stacked(c.repeats * group.length))
            for group in c.layer_groups
        }
        params |= init.norm("final_norm", c.hidden_size, c.norm)
        if not c.tie_embeddings:
            params["output"] = init.embedding(self.vocab_size, c.hidden_size)
        return params

    @functools.cached_property
    def _abstract(self) -> dict[str, Any]:
        return jax.eval_shape(lambda: self._create(jax.random.key(0)))

    def init(self, key: Array) -> Params:
        """Initial parameters, float32. Wrap in `jax.jit` with output shardings for large models."""
        return _of_each(self._create(key), nnx.Param.get_value)

    def shapes(self) -> Params:
        """The parameters as `jax.ShapeDtypeStruct`s, without making them."""
        return _of_each(self._abstract, nnx.Param.get_value)

    def axes(self) -> Params:
        """The logical axes of every parameter, e.g. `("layer", "embed", "mlp")`."""
        return _of_each(self._abstract, operator.attrgetter("axes"))

    def parameter_count(self) -> int:
        """Number of parameters, embeddings included."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.shapes()))

    def unembedding(self, params: Params) -> Array:
        """[V, D] float32, the output projection: its own, or the embedding."""
        return params["embedding" if self.config.tie_embeddings else "output"]

    def forward(
        self,
        params: Params,
        tokens: Array,
        segment_ids: Array,
        positions: Array,
        *,
        loss_mask: Array | None = None,
        gather: GatherParams | None = None,
    ) -> tuple[Array, RouterStatistics | None]:
        """Computes the final hidden states, normed, and the routers' statistics.

        Args:
            params: Nested dict of float32 arrays.
            tokens: [B, T] int32.
            segment_ids: [B, T] int32; attention stays inside equal ids.
            positions: [B, T] int32, counted from the start of each segment.
            loss_mask: [B, T] float32, 1 for tokens that count in the statistics of routers; None
                for no statistics.
            gather: Makes one layer's parameters whole, where `layers` holds shards of them.

        Returns:
            [B, T, D] in the compute dtype (logits are `hidden @ unembedding(params).T`), and the
            statistics with a leading axis over the layers that have experts, in their order.
        """
        c = self.config
        x = params["embedding"][tokens].astype(self.compute_dtype)
        if c.embedding_multiplier != 1:
            x *= x.dtype.type(c.embedding_multiplier)
        x = constrain_sharding(x, "batch", None, None)
        frequencies = rotary_frequencies(c.rotary_dim, c.rope_theta, c.rope_scaling)
        context = LayerContext(
            segment_ids, positions, rotary_tables(positions, frequencies), loss_mask
        )
        pattern = functools.partial(self.apply_pattern, gather)
        if c.repeats == 1:
            x, statistics = pattern(x, params["layers"], context)
        else:
            by_repeat = jax.tree.map(
                lambda p: p.reshape(c.repeats, -1, *p.shape[1:]), params["layers"]
            )
            x, statistics = scan_layers(pattern, self._repeats_unrolled, x, by_repeat, context)
            statistics = jax.tree.map(lambda s: s.reshape(-1, *s.shape[2:]), statistics)
        names = ("final_norm", "final_norm_bias")
        final = {name: params[name] / c.logits_divisor for name in names if name in params}
        return block.apply_norm(c, final, "final_norm", x), statistics

    @property
    def _repeats_unrolled(self) -> int:
        """Repeats of the pattern in one turn of the loop over them: on GPUs all, where they are few
        with loops inside. Else what an inner loop saves is copied to the outer's and back."""
        c = self.config
        loops = any(group.length > 1 for group in c.layer_groups)
        few = c.repeats * len(c.layer_groups) <= UNROLLED_GROUPS
        return c.repeats if loops and few and platform() == "gpu" else 1

    def apply_pattern(
        self, gather: GatherParams | None, x: Array, layers: Params, context: LayerContext
    ) -> tuple[Array, RouterStatistics | None]:
        """Applies the groups of one repeat of the pattern, a loop over the layers of each.

        `gather` and the result are as in `forward`, `x` [B, T, D] in the compute dtype; `layers`
        are the groups' parameters of this repeat, [layers of the group, ...] each.
        """
        statistics = []
        for group in self.config.layer_groups:
            own = None if gather is None else functools.partial(gather, group.name)
            layer: Any = functools.partial(block.apply_layer, self.config, group.spec, own)
            if self.remat != "none":
                # Layers unrolled into one piece have no loop that keeps the two passes apart.
                policy = REMAT_POLICIES[self.remat]
                alone = self.unroll > 1 or (group.length == 1 and self._repeats_unrolled > 1)
                layer = jax.checkpoint(layer, policy=policy, prevent_cse=alone)
            x, of_group = scan_layers(layer, self.unroll, x, layers[group.name], context)
            statistics += [] if of_group is None else [of_group]
        joined = jax.tree.map(lambda *s: jnp.concatenate(s), *statistics) if statistics else None
        return x, joined


def _of_each(params: dict[str, Any], get: Callable[[nnx.Param], Any]) -> dict[str, Any]:
    """The same tree with what `get` makes of every parameter."""
    return jax.tree.map(get, params, is_leaf=lambda node: isinstance(node, nnx.Param))


@dataclasses.dataclass(frozen=True)
class Description:
    """What `model.json` says of a model: rows of its embedding, and its shape."""

    vocab_size: int
    model: ModelConfig


def write_description(folder: Path, decoder: Decoder) -> None:
    """Writes `model.json`, which `read_description` reads."""
    write_dataclass(folder / "model.json", Description(decoder.vocab_size, decoder.config))


def read_description(folder: Path, **settings: Any) -> Decoder:
    """Reads `folder/model.json`; `settings` are those of `Decoder` beside its shape."""
    found = read_dataclass(folder / "model.json", Description)
    return Decoder(found.model, found.vocab_size, **settings)
