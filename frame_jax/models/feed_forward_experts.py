"""A mixture of experts as a layer's feed-forward: a router, experts, and a shared one beside them.

No token is dropped, so what a token becomes depends on nothing but itself. The router computes in
float32: rounded to bfloat16 it would choose differently near ties.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from frame_jax.config.models import ModelConfig
from frame_jax.models.context import Context
from frame_jax.models.grouped_product import feed_forward_experts
from frame_jax.models.layers import matmul, saved, swiglu
from frame_jax.models.parameters import Maker
from frame_jax.models.router import Statistics, choose, router_logits, statistics
from frame_jax.parallel.sharding import context_mesh, spec


def parameters(c: ModelConfig, make: Maker) -> dict[str, nnx.Param]:
    """The router, the experts' matrices and those of the shared expert."""
    e, hidden = c.experts, c.hidden_size
    inner, E = e.intermediate_size, e.count
    made = {
        "router": make.matrix((hidden, E), ("embed", "router")),
        "expert_gate": make.matrix((E, hidden, inner), ("expert", "embed", "mlp")),
        "expert_up": make.matrix((E, hidden, inner), ("expert", "embed", "mlp")),
        "expert_down": make.matrix((E, inner, hidden), ("expert", "mlp", "embed"), make.residual),
    }
    if e.balance_bias:
        made["router_bias"] = make.vector(E, 0.0)
    if e.shared_size:
        made["shared_gate"] = make.matrix((hidden, e.shared_size), ("embed", "mlp"))
        made["shared_up"] = make.matrix((hidden, e.shared_size), ("embed", "mlp"))
        made["shared_down"] = make.matrix((e.shared_size, hidden), ("mlp", "embed"), make.residual)
    return made


def apply(
    c: ModelConfig, p: dict[str, jax.Array], x: jax.Array, context: Context
) -> tuple[jax.Array, Statistics | None]:
    """[B, T, D] -> [B, T, D], and what the router did."""
    e = c.experts
    logits = router_logits(x, p["router"])  # [B, T, E]
    experts, weights, probabilities = choose(
        logits, p.get("router_bias"), e.per_token, e.scores, e.renormalise, e.scaling
    )
    matrices = Matrices(p["expert_gate"], p["expert_up"], p["expert_down"])
    out = mixture(Routed(x, experts, weights), matrices)
    if e.shared_size:
        gate = saved(matmul(x, p["shared_gate"]))
        up = saved(matmul(x, p["shared_up"]))
        out += matmul(swiglu(gate, up), p["shared_down"])
    if context.counted is None:
        return out, None
    return out, statistics(logits, probabilities, experts, context.counted)


class Routed(NamedTuple):
    """Tokens and where they go.

    Attributes:
        x: [B, T, D], compute dtype.
        experts: [B, T, k] int32.
        weights: [B, T, k] float32.
    """

    x: jax.Array
    experts: jax.Array
    weights: jax.Array


class Matrices(NamedTuple):
    """The experts' matrices, float32: `gate` and `up` [E, D, F], `down` [E, F, D]."""

    gate: jax.Array
    up: jax.Array
    down: jax.Array


def mixture(routed: Routed, matrices: Matrices) -> jax.Array:
    """The weighted sum of what the chosen experts make of each token, on any mesh: [B, T, D]."""
    mesh, count = context_mesh(), len(matrices.gate)
    if mesh is None or mesh.are_all_axes_manual:
        return outputs(routed, matrices, count=count)
    (rows,) = spec(("batch",), routed.x.shape[:1], mesh)
    shards, _, columns = spec(("expert", None, "mlp"), matrices.gate.shape, mesh)
    split, columnwise = PartitionSpec(rows), PartitionSpec(shards, None, columns)
    return jax.shard_map(
        functools.partial(local_outputs, count=count, rows=rows, shards=shards, columns=columns),
        in_specs=(split, Matrices(columnwise, columnwise, PartitionSpec(shards, columns))),  # type: ignore[arg-type]
        out_specs=split,
        check_vma=False,
    )(routed, matrices)


def outputs(
    routed: Routed, matrices: Matrices, *, count: int, first: jax.Array | int = 0
) -> jax.Array:
    """`mixture` on one device, of those of the `count` experts that are at hand, `first` and on."""
    x, experts, weights = (array.reshape(-1, array.shape[-1]) for array in routed)
    gate, up, down = matrices
    out = feed_forward_experts(x, experts, weights, gate, up, down, first_expert=first, count=count)
    return out.reshape(routed.x.shape)


def local_outputs(
    routed: Routed,
    matrices: Matrices,
    *,
    count: int,
    rows: tuple[str, ...] | None,
    shards: str | None,
    columns: str | None,
) -> jax.Array:
    """What one device does: the tokens of its group of the `expert` axis through its experts.

    Gathering the group's tokens and scattering the sums needs no exchange whose size depends on
    the routing.
    """
    first: jax.Array | int = 0
    gathered = shards is not None and rows is not None
    if shards is not None:
        first = jax.lax.axis_index(shards) * len(matrices.gate)
    if gathered:
        routed = jax.tree.map(lambda a: jax.lax.all_gather(a, shards, axis=0, tiled=True), routed)
    # Sums over devices in float32, as inside a product.
    partial = outputs(routed, matrices, count=count, first=first).astype(jnp.float32)
    if columns is not None:
        partial = jax.lax.psum(partial, columns)
    if gathered:
        partial = jax.lax.psum_scatter(partial, shards, scatter_dimension=0, tiled=True)
    elif shards is not None:
        partial = jax.lax.psum(partial, shards)
    return partial.astype(routed.x.dtype)
