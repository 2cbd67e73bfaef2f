"""The decoder: token ids in, final hidden states out; the loss projects them to logits.

An embedding, layers of any mix of mixers and feed-forwards (`models.block`), a final norm. Dense
layers are Llama's unless the shape says otherwise. Parameters of equal layers are stacked and
scanned, so compile time does not depend on depth. Every parameter names its logical axes where it
is born (`axes=...`); `frame_jax.parallel.sharding` maps those to mesh axes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from frame_jax.config.models import LayerGroup, ModelConfig
from frame_jax.models import block
from frame_jax.models.context import LayerContext
from frame_jax.models.layer_loop import run_layers, run_layers_on_cpu
from frame_jax.models.layers import SAVED_NAME, rotary_frequencies, rotary_tables
from frame_jax.models.parameters import ParamInitializer
from frame_jax.models.router import RouterStatistics
from frame_jax.parallel.sharding import constrain_sharding, platform

Params = dict[str, Any]  # nested dict of float32 arrays, one subtree a submodule
# Makes parameters of one layer whole: its parameters, or shards of them, and the name of its run.
GatherParams = Callable[[Params, str], Params]

REMAT_POLICIES = {
    "minimal": jax.checkpoint_policies.save_only_these_names(SAVED_NAME),
    "full": jax.checkpoint_policies.nothing_saveable,
}


class StackedLayers(nnx.Module):
    """The parameters of equal layers, stacked on leading axes."""

    def __init__(
        self, config: ModelConfig, group: LayerGroup, leading: tuple[int, ...], rngs: nnx.Rngs
    ):
        make = ParamInitializer(leading, config.num_layers, rngs)
        for name, parameter in block.init_params(config, group.spec, make).items():
            setattr(self, name, parameter)


class LayerGroups(nnx.Module):
    """A stack for each run of equal layers, [repeats of the pattern, layers of the run, ...]."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        for group in config.layer_groups:
            setattr(
                self, group.name, StackedLayers(config, group, (config.repeats, group.length), rngs)
            )


class Transformer(nnx.Module):
    """Embedding, layers, final norm.

    Attributes:
        config: The shape.
        vocab_size: Rows of the embedding.
        compute_dtype: Type of activations and of matrix-product operands.
        remat: `none`, `minimal` or `full`, as in `TrainingConfig.remat`.
        unroll: Layers in one turn of the loop over layers.
    """

    def __init__(
        self,
        config: ModelConfig,
        vocab_size: int,
        *,
        rngs: nnx.Rngs,
        compute_dtype: str = "bfloat16",
        remat: str = "none",
        unroll: int = 1,
    ):
        self.config, self.vocab_size = config, vocab_size
        self.compute_dtype, self.remat, self.unroll = compute_dtype, remat, unroll
        hidden, groups = config.hidden_size, config.layer_groups
        table = jax.random.normal(rngs.params(), (vocab_size, hidden), jnp.float32)
        self.embedding = nnx.Param(table * 0.02, axes=("vocab", "embed"))
        if len(groups) == 1:
            self.layers: nnx.Module = StackedLayers(config, groups[0], (config.num_layers,), rngs)
        else:
            self.layers = LayerGroups(config, rngs)
        self.final_norm = nnx.Param(jnp.ones((hidden,), jnp.float32), axes=("norm",))
        if config.norm == "layer":
            self.final_norm_bias = nnx.Param(jnp.zeros((hidden,), jnp.float32), axes=("norm",))
        if not config.tie_embeddings:
            output = jax.random.normal(rngs.params(), (vocab_size, hidden), jnp.float32)
            self.output = nnx.Param(output * 0.02, axes=("vocab", "embed"))

    def __call__(
        self,
        tokens: jax.Array,
        segment_ids: jax.Array,
        positions: jax.Array,
        gather: GatherParams | None = None,
    ) -> jax.Array:
        """Final hidden states, normed.

        Args:
            tokens: [B, T] int32.
            segment_ids: [B, T] int32; attention stays inside equal ids.
            positions: [B, T] int32, counted from the start of each segment.
            gather: Makes one layer's parameters whole, where `layers` holds shards of them.

        Returns:
            [B, T, D] in the compute dtype; logits are `hidden @ unembedding().T`.
        """
        return self.forward(tokens, segment_ids, positions, gather=gather)[0]

    def forward(
        self,
        tokens: jax.Array,
        segment_ids: jax.Array,
        positions: jax.Array,
        *,
        loss_mask: jax.Array | None = None,
        gather: GatherParams | None = None,
    ) -> tuple[jax.Array, RouterStatistics | None]:
        """The same, and what the routers did.

        Args:
            tokens: As in `__call__`.
            segment_ids: Likewise.
            positions: Likewise.
            loss_mask: [B, T] float32, 1 for tokens that count in the statistics of routers; None
                for no statistics.
            gather: Likewise.

        Returns:
            The hidden states, and the routers' statistics, each with a leading axis over the layers
            that have experts.
        """
        c = self.config
        x = self.embedding[...][tokens].astype(self.compute_dtype)
        if c.embedding_multiplier != 1:
            x *= x.dtype.type(c.embedding_multiplier)
        x = constrain_sharding(x, "batch", None, None)
        frequencies = rotary_frequencies(c.rotary_dim, c.rope_theta, c.rope_scaling)
        context = LayerContext(
            segment_ids, positions, rotary_tables(positions, frequencies), loss_mask
        )
        stacked = nnx.to_pure_dict(nnx.state(self.layers))
        loop = run_layers_on_cpu if platform() == "cpu" else run_layers

        def run_layer_group(
            group: LayerGroup, x: jax.Array, stacked: Params, context: LayerContext
        ) -> tuple[jax.Array, RouterStatistics | None]:
            layer = functools.partial(self.apply_layer, group, gather)
            return loop(self.remat_layer(layer), self.unroll, x, stacked, context)

        if len(c.layer_groups) == 1:
            x, aux = run_layer_group(c.layer_groups[0], x, stacked, context)
        else:

            def pattern(
                x: jax.Array, params: Params, context: LayerContext
            ) -> tuple[jax.Array, Any]:
                aux = {}
                for group in c.layer_groups:
                    x, aux[group.name] = run_layer_group(group, x, params[group.name], context)
                return x, aux

            x, aux_by_group = loop(pattern, 1, x, stacked, context)
            aux = concat_layer_aux([aux_by_group[group.name] for group in c.layer_groups])
        final = {"final_norm": self.final_norm[...] / c.logits_divisor}
        if c.norm == "layer":
            final["final_norm_bias"] = self.final_norm_bias[...] / c.logits_divisor
        return block.apply_norm(c, final, "final_norm", x), aux

    def apply_layer(
        self,
        group: LayerGroup,
        gather: GatherParams | None,
        x: jax.Array,
        params: Params,
        context: LayerContext,
    ) -> tuple[jax.Array, RouterStatistics | None]:
        """One layer of a run."""
        if gather is not None:
            params = gather(params, group.name)
        return block.apply_layer(self.config, group.spec, params, x, context)

    def remat_layer(self, layer: Callable[..., Any]) -> Callable[..., Any]:
        """`layer`, keeping for the backward pass what `remat` says."""
        if self.remat == "none":
            return layer
        # Layers unrolled into one piece have no loop that keeps the two passes apart.
        return jax.checkpoint(layer, policy=REMAT_POLICIES[self.remat], prevent_cse=self.unroll > 1)

    def unembedding(self) -> jax.Array:
        """[V, D] float32, the rows that hidden states are compared with."""
        return (self.embedding if self.config.tie_embeddings else self.output)[...]


def concat_layer_aux(aux: list[RouterStatistics | None]) -> RouterStatistics | None:
    """Auxiliary outputs of the groups, [repeats, layers of the group, ...] each, joined on one axis
    of layers."""
    parts = [part for part in aux if part is not None]
    if not parts:
        return None

    def joined(*arrays: jax.Array) -> jax.Array:
        whole = jnp.concatenate(arrays, axis=1)
        return whole.reshape(-1, *whole.shape[2:])

    return jax.tree.map(joined, *parts)
