"""A mixture of experts as a layer's feed-forward: a router, experts, and a shared one beside them.

No token is dropped, so what a token becomes depends on nothing but itself. The router computes in
float32: rounded to bfloat16 it would choose differently near ties.
"""

from __future__ import annotations

import functools

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
    out = mixture(x, experts, weights, p["expert_gate"], p["expert_up"], p["expert_down"])
    if e.shared_size:
        gate = saved(matmul(x, p["shared_gate"]))
        up = saved(matmul(x, p["shared_up"]))
        out += matmul(swiglu(gate, up), p["shared_down"])
    if context.counted is None:
        return out, None
    return out, statistics(logits, probabilities, experts, context.counted)


def mixture(
    x: jax.Array,
    experts: jax.Array,
    weights: jax.Array,
    gate: jax.Array,
    up: jax.Array,
    down: jax.Array,
) -> jax.Array:
    """The weighted sum of the chosen experts' outputs, on any mesh.

    Args:
        x: [B, T, D], compute dtype.
        experts: [B, T, k] int32.
        weights: [B, T, k] float32.
        gate: [E, D, F].
        up: [E, D, F].
        down: [E, F, D].

    Returns:
        [B, T, D] in the dtype of `x`.
    """
    mesh = context_mesh()
    if mesh is None or mesh.are_all_axes_manual:
        return outputs(x, experts, weights, gate, up, down, count=len(gate))
    (rows,) = spec(("batch",), x.shape[:1], mesh)
    shards, _, columns = spec(("expert", None, "mlp"), gate.shape, mesh)
    split = PartitionSpec(rows)
    return jax.shard_map(
        functools.partial(
            local_outputs, count=len(gate), rows=rows, shards=shards, columns=columns
        ),
        in_specs=(
            split,
            split,
            split,
            PartitionSpec(shards, None, columns),
            PartitionSpec(shards, None, columns),
            PartitionSpec(shards, columns),
        ),
        out_specs=split,
        check_vma=False,
    )(x, experts, weights, gate, up, down)


def outputs(
    x: jax.Array,
    experts: jax.Array,
    weights: jax.Array,
    gate: jax.Array,
    up: jax.Array,
    down: jax.Array,
    *,
    count: int,
    first: jax.Array | int = 0,
) -> jax.Array:
    """`mixture` on one device, of those of the `count` experts that are at hand, `first` and on."""
    flat, chosen, scores = (a.reshape(-1, a.shape[-1]) for a in (x, experts, weights))
    return feed_forward_experts(
        flat, chosen, scores, gate, up, down, first_expert=first, count=count
    ).reshape(x.shape)


def local_outputs(
    x: jax.Array,
    experts: jax.Array,
    weights: jax.Array,
    gate: jax.Array,
    up: jax.Array,
    down: jax.Array,
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
        first = jax.lax.axis_index(shards) * gate.shape[0]
    if gathered:
        x, experts, weights = (
            jax.lax.all_gather(array, shards, axis=0, tiled=True) for array in (x, experts, weights)
        )
    out = outputs(x, experts, weights, gate, up, down, count=count, first=first)
    # Sums over devices in float32, as inside a product.
    partial = out.astype(jnp.float32)
    if columns is not None:
        partial = jax.lax.psum(partial, columns)
    if gathered:
        partial = jax.lax.psum_scatter(partial, shards, scatter_dimension=0, tiled=True)
    elif shards is not None:
        partial = jax.lax.psum(partial, shards)
    return partial.astype(x.dtype)
