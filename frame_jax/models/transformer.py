"""The dense decoder: token ids in, final hidden states out; the loss projects them to logits.

The layout is Llama's: RMSNorm before each sublayer, rotary positions, grouped-query attention,
SwiGLU. Parameters of all layers are stacked on a leading axis and the layers are scanned, so
compile time does not depend on depth. Every parameter names its logical axes where it is born
(`axes=...`); `frame_jax.parallel.sharding` maps those to mesh axes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from frame_jax.config.models import ModelConfig
from frame_jax.models.attention import attention
from frame_jax.models.layer_loop import run_layers, run_layers_on_cpu
from frame_jax.models.layers import (
    SAVED,
    matmul,
    rms_norm,
    rotary_frequencies,
    rotary_tables,
    rotate,
    saved,
    swiglu,
)
from frame_jax.parallel.sharding import constrain, platform

Params = dict[str, Any]  # nested dict of float32 arrays, one subtree a submodule

REMAT_POLICIES = {
    "minimal": jax.checkpoint_policies.save_only_these_names(SAVED),
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Context(NamedTuple):
    """What every layer needs to know about the tokens.

    Attributes:
        segment_ids: [B, T] int32; tokens attend inside their segment.
        rotary: Two arrays [B, T, 1, head_dim], as `rotary_tables` makes them.
    """

    segment_ids: jax.Array
    rotary: tuple[jax.Array, jax.Array]


class Layers(nnx.Module):
    """All decoder layers, parameters stacked on a leading `layer` axis.

    Called with parameters of one layer in place of the stack (see `Transformer`), it computes that
    layer.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        c, L = config, config.num_layers
        self.config = config
        hidden, heads = c.hidden_size, c.num_heads * c.head_width
        kv_heads = c.num_kv_heads * c.head_width

        def weight(rows: int, columns: int, axes: tuple[str, str], scale: float = 1.0) -> nnx.Param:
            values = jax.random.normal(rngs.params(), (L, rows, columns), jnp.float32)
            return nnx.Param(values * (scale * rows**-0.5), axes=("layer", *axes))

        def norm(width: int) -> nnx.Param:
            return nnx.Param(jnp.ones((L, width), jnp.float32), axes=("layer", "norm"))

        # Both writes to the residual stream are scaled down, so its variance does not grow with L.
        residual = (2 * L) ** -0.5
        self.attention_norm = norm(hidden)
        self.query = weight(hidden, heads, ("embed", "heads"))
        self.key = weight(hidden, kv_heads, ("embed", "heads"))
        self.value = weight(hidden, kv_heads, ("embed", "heads"))
        self.attention_out = weight(heads, hidden, ("heads", "embed"), residual)
        if c.qkv_bias:
            self.query_bias, self.key_bias, self.value_bias = (
                nnx.Param(jnp.zeros((L, width), jnp.float32), axes=("layer", "norm"))
                for width in (heads, kv_heads, kv_heads)
            )
        if c.qk_norm:
            self.query_norm, self.key_norm = norm(c.head_width), norm(c.head_width)
        self.mlp_norm = norm(hidden)
        self.gate = weight(hidden, c.intermediate_size, ("embed", "mlp"))
        self.up = weight(hidden, c.intermediate_size, ("embed", "mlp"))
        self.down = weight(c.intermediate_size, hidden, ("mlp", "embed"), residual)

    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        """One layer: [B, T, D] -> [B, T, D]."""
        x = constrain(x, "batch", None, None)
        x = x + self.attend(rms_norm(x, self.attention_norm[...], self.config.norm_eps), context)
        x = saved(constrain(x, "batch", None, None))
        return x + self.feed_forward(rms_norm(x, self.mlp_norm[...], self.config.norm_eps))

    def attend(self, x: jax.Array, context: Context) -> jax.Array:
        c = self.config

        def heads(w: nnx.Param) -> jax.Array:
            """[..., H * head_dim] -> [..., H, head_dim]. Products with weights of this shape spare
            a TPU a new layout of queries, keys, values and of what attention makes of them."""
            return w[...].reshape(*w.shape[:-1], -1, c.head_width)

        q, k, v = (matmul(x, heads(w)) for w in (self.query, self.key, self.value))
        if c.qkv_bias:
            q += heads(self.query_bias).astype(q.dtype)
            k += heads(self.key_bias).astype(k.dtype)
            v += heads(self.value_bias).astype(v.dtype)
        if c.qk_norm:
            q = rms_norm(q, self.query_norm[...], c.norm_eps)
            k = rms_norm(k, self.key_norm[...], c.norm_eps)
        q, k = rotate(q, context.rotary), rotate(k, context.rotary)
        q, k, v = saved(q), saved(k), saved(v)
        mixed = attention(q, k, v, context.segment_ids)
        out = self.attention_out[...].reshape(-1, c.head_width, x.shape[-1])
        return matmul(mixed, out, axes=2)

    def feed_forward(self, x: jax.Array) -> jax.Array:
        gate, up = saved(matmul(x, self.gate[...])), saved(matmul(x, self.up[...]))
        return matmul(swiglu(gate, up), self.down[...])


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
        hidden = config.hidden_size
        table = jax.random.normal(rngs.params(), (vocab_size, hidden), jnp.float32)
        self.embedding = nnx.Param(table * 0.02, axes=("vocab", "embed"))
        self.layers = Layers(config, rngs)
        self.final_norm = nnx.Param(jnp.ones((hidden,), jnp.float32), axes=("norm",))
        if not config.tie_embeddings:
            output = jax.random.normal(rngs.params(), (vocab_size, hidden), jnp.float32)
            self.output = nnx.Param(output * 0.02, axes=("vocab", "embed"))

    def __call__(
        self,
        tokens: jax.Array,
        segment_ids: jax.Array,
        positions: jax.Array,
        gather: Callable[[Params], Params] | None = None,
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
        c = self.config
        x = constrain(self.embedding[...][tokens].astype(self.compute_dtype), "batch", None, None)
        frequencies = rotary_frequencies(c.head_width, c.rope_theta, c.rope_scaling)
        context = Context(segment_ids, rotary_tables(positions, frequencies))
        layers, stacked = nnx.split(self.layers)

        def layer(x: jax.Array, params: nnx.State, context: Context) -> jax.Array:
            if gather is not None:
                params = nnx.State(gather(nnx.to_pure_dict(params)))
            return nnx.merge(layers, params)(x, context)

        if self.remat != "none":
            policy = REMAT_POLICIES[self.remat]
            # Layers unrolled into one piece have no loop that keeps the two passes apart.
            layer = jax.checkpoint(layer, policy=policy, prevent_cse=self.unroll > 1)
        run = run_layers_on_cpu if platform() == "cpu" else run_layers
        x = run(layer, self.unroll, x, stacked, context)
        return rms_norm(x, self.final_norm[...], c.norm_eps)

    def unembedding(self) -> jax.Array:
        """[V, D] float32, the rows that hidden states are compared with."""
        return (self.embedding if self.config.tie_embeddings else self.output)[...]
