"""A mixture of experts as a layer's feed-forward: a router, experts, and a shared one beside them.

No token is dropped, so the output for a token depends on no other token. The router computes in
float32: rounded to bfloat16 it would choose differently near ties.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec

from frame_jax.config.models import ModelConfig
from frame_jax.models.grouped_product import ExpertWeights, RoutedTokens, local_expert_sum
from frame_jax.models.layers import (
    LayerContext,
    Param,
    ParamInitializer,
    matmul,
    save_activation,
    swiglu,
)
from frame_jax.models.router import (
    RouterStatistics,
    choose_experts,
    router_logits,
    router_statistics,
)
from frame_jax.parallel.sharding import context_mesh, partition_spec


def init_params(c: ModelConfig, init: ParamInitializer) -> dict[str, Param]:
    """Makes the router, the experts' matrices and those of the shared expert."""
    e, hidden, E = c.experts, c.hidden_size, c.experts.num_experts
    params = {"router": init.matrix((hidden, E), ("embed", "router"))}
    params |= init.feed_forward(hidden, e.intermediate_size, "expert_", (E,))
    if e.router_bias:
        params["router_bias"] = init.vector(E, 0.0)
    if e.shared_expert_intermediate_size:
        params |= init.feed_forward(hidden, e.shared_expert_intermediate_size, "shared_")
    return params


def apply(
    c: ModelConfig, p: dict[str, Array], x: Array, context: LayerContext
) -> tuple[Array, RouterStatistics | None]:
    """Applies the layer: [B, T, D] -> [B, T, D], and the router's statistics."""
    e = c.experts
    logits = router_logits(x, p["router"])  # [B, T, E]
    experts, weights, probabilities = choose_experts(
        logits,
        p.get("router_bias"),
        e.num_experts_per_token,
        e.scores,
        e.norm_topk_prob,
        e.routed_scaling_factor,
    )
    matrices = ExpertWeights(p["expert_gate"], p["expert_up"], p["expert_down"])
    out = weighted_expert_sum(RoutedTokens(x, experts, weights), matrices)
    if e.shared_expert_intermediate_size:
        gate = save_activation(matmul(x, p["shared_gate"]))
        up = save_activation(matmul(x, p["shared_up"]))
        out += matmul(swiglu(gate, up), p["shared_down"])
    if context.loss_mask is None:
        return out, None
    return out, router_statistics(logits, probabilities, experts, context.loss_mask)


def weighted_expert_sum(routed: RoutedTokens, matrices: ExpertWeights) -> Array:
    """The weighted sum of the chosen experts' outputs for each token, on any mesh: [B, T, D]."""
    mesh, count = context_mesh(), len(matrices.gate)
    if mesh is None or mesh.are_all_axes_manual:
        return local_expert_sum(routed, matrices, count=count)
    (rows,) = partition_spec(("batch",), routed.x.shape[:1], mesh)
    shards, _, columns = partition_spec(("expert", None, "mlp"), matrices.gate.shape, mesh)
    split, columnwise = PartitionSpec(rows), PartitionSpec(shards, None, columns)
    return jax.shard_map(
        functools.partial(
            sharded_expert_sum, count=count, rows=rows, shards=shards, columns=columns
        ),
        in_specs=(split, ExpertWeights(columnwise, columnwise, PartitionSpec(shards, columns))),  # type: ignore[arg-type]
        out_specs=split,
        check_vma=False,
    )(routed, matrices)


def sharded_expert_sum(
    routed: RoutedTokens,
    matrices: ExpertWeights,
    *,
    count: int,
    rows: tuple[str, ...] | None,
    shards: str | None,
    columns: str | None,
) -> Array:
    """The part of one device in `weighted_expert_sum`, inside `shard_map`.

    It gathers the tokens of its group of the `expert` axis, applies its experts and scatters the
    sums: no exchange has a size that depends on the routing.

    Args:
        routed: The tokens of this device.
        matrices: The experts, and columns of them, of this device.
        count: Experts of all devices.
        rows: Mesh axes over which tokens are split.
        shards: Mesh axis over which experts are split.
        columns: Mesh axis over which the experts' columns F are split.
    """
    first: Array | int = 0
    gathered = shards is not None and rows is not None
    if shards is not None:
        first = jax.lax.axis_index(shards) * len(matrices.gate)
    if gathered:
        routed = jax.tree.map(lambda a: jax.lax.all_gather(a, shards, axis=0, tiled=True), routed)
    # Sums over devices in float32, as inside a product.
    partial = local_expert_sum(routed, matrices, count=count, first=first).astype(jnp.float32)
    if columns is not None:
        partial = jax.lax.psum(partial, columns)
    if gathered:
        partial = jax.lax.psum_scatter(partial, shards, scatter_dimension=0, tiled=True)
    elif shards is not None:
        partial = jax.lax.psum(partial, shards)
    return partial.astype(routed.x.dtype)
