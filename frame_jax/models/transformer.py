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

from frame_jax.config.models import ModelConfig, Run
from frame_jax.models import block
from frame_jax.models.context import Context
from frame_jax.models.layer_loop import run_layers, run_layers_on_cpu
from frame_jax.models.layers import SAVED, rotary_frequencies, rotary_tables
from frame_jax.models.parameters import Maker
from frame_jax.models.router import Statistics
from frame_jax.parallel.sharding import constrain, platform

Params = dict[str, Any]  # nested dict of float32 arrays, one subtree a submodule
# Makes parameters of one layer whole: its parameters, or shards of them, and the name of its run.
Gather = Callable[[Params, str], Params]

REMAT_POLICIES = {
    "minimal": jax.checkpoint_policies.save_only_these_names(SAVED),
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Stack(nnx.Module):
    """The parameters of equal layers, stacked on leading axes."""

    def __init__(self, config: ModelConfig, run: Run, leading: tuple[int, ...], rngs: nnx.Rngs):
        make = Maker(leading, config.num_layers, rngs)
        for name, parameter in block.parameters(config, run.kind, make).items():
            setattr(self, name, parameter)


class Runs(nnx.Module):
    """A stack for each run of equal layers, [repeats of the pattern, layers of the run, ...]."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        for run in config.runs:
            setattr(self, run.name, Stack(config, run, (config.repeats, run.length), rngs))


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
        hidden, runs = config.hidden_size, config.runs
        table = jax.random.normal(rngs.params(), (vocab_size, hidden), jnp.float32)
        self.embedding = nnx.Param(table * 0.02, axes=("vocab", "embed"))
        if len(runs) == 1:
            self.layers: nnx.Module = Stack(config, runs[0], (config.num_layers,), rngs)
        else:
            self.layers = Runs(config, rngs)
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
        gather: Gather | None = None,
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
        counted: jax.Array | None = None,
        gather: Gather | None = None,
    ) -> tuple[jax.Array, Statistics | None]:
        """The same, and what the routers did.

        Args:
            tokens: As in `__call__`.
            segment_ids: Likewise.
            positions: Likewise.
            counted: [B, T] float32, 1 for tokens that count in the statistics of routers; None for
                no statistics.
            gather: Likewise.

        Returns:
            The hidden states, and the routers' statistics, each with a leading axis over the layers
            that have experts.
        """
        c = self.config
        x = self.embedding[...][tokens].astype(self.compute_dtype)
        if c.embedding_multiplier != 1:
            x *= x.dtype.type(c.embedding_multiplier)
        x = constrain(x, "batch", None, None)
        frequencies = rotary_frequencies(c.rotary_width, c.rope_theta, c.rope_scaling)
        context = Context(segment_ids, positions, rotary_tables(positions, frequencies), counted)
        stacked = nnx.to_pure_dict(nnx.state(self.layers))
        loop = run_layers_on_cpu if platform() == "cpu" else run_layers

        def run_of_layers(
            run: Run, x: jax.Array, stacked: Params, context: Context
        ) -> tuple[jax.Array, Statistics | None]:
            layer = functools.partial(self.layer, run, gather)
            return loop(self.rematerialised(layer), self.unroll, x, stacked, context)

        if len(c.runs) == 1:
            x, told = run_of_layers(c.runs[0], x, stacked, context)
        else:

            def pattern(x: jax.Array, params: Params, context: Context) -> tuple[jax.Array, Any]:
                told = {}
                for run in c.runs:
                    x, told[run.name] = run_of_layers(run, x, params[run.name], context)
                return x, told

            x, told_by_run = loop(pattern, 1, x, stacked, context)
            told = in_order([told_by_run[run.name] for run in c.runs])
        final = {"final_norm": self.final_norm[...] / c.logits_divisor}
        if c.norm == "layer":
            final["final_norm_bias"] = self.final_norm_bias[...] / c.logits_divisor
        return block.normed(c, final, "final_norm", x), told

    def layer(
        self, run: Run, gather: Gather | None, x: jax.Array, params: Params, context: Context
    ) -> tuple[jax.Array, Statistics | None]:
        """One layer of a run."""
        if gather is not None:
            params = gather(params, run.name)
        return block.apply(self.config, run.kind, params, x, context)

    def rematerialised(self, layer: Callable[..., Any]) -> Callable[..., Any]:
        """`layer`, keeping for the backward pass what `remat` says."""
        if self.remat == "none":
            return layer
        # Layers unrolled into one piece have no loop that keeps the two passes apart.
        return jax.checkpoint(layer, policy=REMAT_POLICIES[self.remat], prevent_cse=self.unroll > 1)

    def unembedding(self) -> jax.Array:
        """[V, D] float32, the rows that hidden states are compared with."""
        return (self.embedding if self.config.tie_embeddings else self.output)[...]


def in_order(told: list[Statistics | None]) -> Statistics | None:
    """What the runs' layers told, [repeats, layers of the run, ...] each, as one axis of layers."""
    parts = [part for part in told if part is not None]
    if not parts:
        return None

    def joined(*arrays: jax.Array) -> jax.Array:
        whole = jnp.concatenate(arrays, axis=1)
        return whole.reshape(-1, *whole.shape[2:])

    return jax.tree.map(joined, *parts)
