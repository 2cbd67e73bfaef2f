"""The decoder: an embedding, layers, a final norm; the loss projects its output to logits.

Layers are any mix of mixers and feed-forwards (`models.block`), Llama's unless the shape says
otherwise. Parameters of equal layers are stacked and scanned, so compile time does not depend on
depth. Every parameter names its logical axes where it is made (`axes=...`);
`frame_jax.parallel.sharding` maps those to mesh axes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from frame_jax.config.models import LayerGroup, ModelConfig
from frame_jax.models import block
from frame_jax.models.layer_loop import scan_layers
from frame_jax.models.layers import (
    SAVED_NAME,
    LayerContext,
    ParamInitializer,
    rotary_frequencies,
    rotary_tables,
)
from frame_jax.models.router import RouterStatistics
from frame_jax.parallel.sharding import constrain_sharding

Params = dict[str, Any]  # nested dict of float32 arrays
# Makes one layer's parameters whole: the parameters, or shards of them, and its group's name.
GatherParams = Callable[[Params, str], Params]

REMAT_POLICIES = {
    "minimal": jax.checkpoint_policies.save_only_these_names(SAVED_NAME),
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Transformer(nnx.Module):
    """Embedding, layers, final norm.

    `layers` holds the parameters of each group of equal layers, `layers[group][parameter]`, stacked
    on a first axis in the order of the layers: [repeats of the pattern * layers of the group, ...].

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
        hidden = config.hidden_size
        table = jax.random.normal(rngs.params(), (vocab_size, hidden), jnp.float32)
        self.embedding = nnx.Param(table * 0.02, axes=("vocab", "embed"))
        groups = {}
        for group in config.layer_groups:
            init = ParamInitializer(config.repeats * group.length, config.num_layers, rngs)
            groups[group.name] = nnx.Dict(block.init_params(config, group.spec, init))
        self.layers = nnx.Dict(groups)
        self.final_norm = nnx.Param(jnp.ones((hidden,), jnp.float32), axes=("norm",))
        if config.norm == "layer":
            self.final_norm_bias = nnx.Param(jnp.zeros((hidden,), jnp.float32), axes=("norm",))
        if not config.tie_embeddings:
            output = jax.random.normal(rngs.params(), (vocab_size, hidden), jnp.float32)
            self.output = nnx.Param(output * 0.02, axes=("vocab", "embed"))

    def __call__(
        self,
        tokens: Array,
        segment_ids: Array,
        positions: Array,
        gather: GatherParams | None = None,
    ) -> Array:
        """The hidden states of `forward` alone."""
        return self.forward(tokens, segment_ids, positions, gather=gather)[0]

    def forward(
        self,
        tokens: Array,
        segment_ids: Array,
        positions: Array,
        *,
        loss_mask: Array | None = None,
        gather: GatherParams | None = None,
    ) -> tuple[Array, RouterStatistics | None]:
        """Computes the final hidden states, normed, and the routers' statistics.

        Args:
            tokens: [B, T] int32.
            segment_ids: [B, T] int32; attention stays inside equal ids.
            positions: [B, T] int32, counted from the start of each segment.
            loss_mask: [B, T] float32, 1 for tokens that count in the statistics of routers; None
                for no statistics.
            gather: Makes one layer's parameters whole, where `layers` holds shards of them.

        Returns:
            [B, T, D] in the compute dtype (logits are `hidden @ unembedding().T`), and the
            statistics with a leading axis over the layers that have experts, in their order.
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
        layers = nnx.to_pure_dict(nnx.state(self.layers))
        pattern = functools.partial(self.apply_pattern, gather)
        if c.repeats == 1:
            x, statistics = pattern(x, layers, context)
        else:
            by_repeat = jax.tree.map(lambda p: p.reshape(c.repeats, -1, *p.shape[1:]), layers)
            x, statistics = scan_layers(pattern, 1, x, by_repeat, context)
            statistics = jax.tree.map(lambda s: s.reshape(-1, *s.shape[2:]), statistics)
        final = {"final_norm": self.final_norm[...] / c.logits_divisor}
        if c.norm == "layer":
            final["final_norm_bias"] = self.final_norm_bias[...] / c.logits_divisor
        return block.apply_norm(c, final, "final_norm", x), statistics

    def apply_pattern(
        self, gather: GatherParams | None, x: Array, layers: Params, context: LayerContext
    ) -> tuple[Array, RouterStatistics | None]:
        """Applies the groups of one repeat of the pattern, a loop over the layers of each.

        Args:
            gather: As in `forward`.
            x: [B, T, D], compute dtype.
            layers: The groups' parameters of this repeat, [layers of the group, ...] each.
            context: What all layers read.

        Returns:
            [B, T, D], and the statistics of the layers that have experts, in their order.
        """
        statistics = []
        for group in self.config.layer_groups:
            layer = self.remat_layer(functools.partial(self.apply_layer, group, gather))
            x, of_group = scan_layers(layer, self.unroll, x, layers[group.name], context)
            statistics += [] if of_group is None else [of_group]
        joined = jax.tree.map(lambda *s: jnp.concatenate(s), *statistics) if statistics else None
        return x, joined

    def apply_layer(
        self,
        group: LayerGroup,
        gather: GatherParams | None,
        x: Array,
        params: Params,
        context: LayerContext,
    ) -> tuple[Array, RouterStatistics | None]:
        """Applies one layer of a group, as `block.apply_layer` does."""
        if gather is not None:
            params = gather(params, group.name)
        return block.apply_layer(self.config, group.spec, params, x, context)

    def remat_layer(self, layer: Callable[..., Any]) -> Callable[..., Any]:
        """`layer`, keeping for the backward pass what `remat` says."""
        if self.remat == "none":
            return layer
        # Layers unrolled into one piece have no loop that keeps the two passes apart.
        return jax.checkpoint(layer, policy=REMAT_POLICIES[self.remat], prevent_cse=self.unroll > 1)

    def unembedding(self) -> Array:
        """[V, D] float32, the output projection: its own, or the embedding."""
        return (self.embedding if self.config.tie_embeddings else self.output)[...]
