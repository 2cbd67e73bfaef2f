"""A mixture of experts as a layer's feed-forward: a router, experts, and a shared one beside them.

No token is dropped, so the output for a token depends on no other token. The router computes in
float32: rounded to bfloat16 it would choose differently near ties.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import PartitionSpec

from frame_jax.config.models import ExpertsConfig, ModelConfig
from frame_jax.models.grouped_product import ExpertWeights, RoutedTokens, local_expert_sum
from frame_jax.models.layers import (
    LayerContext,
    ParamInitializer,
    matmul,
    recompute_in_backward,
    save_activation,
    swiglu,
)
from frame_jax.parallel.sharding import context_mesh, partition_spec


class RouterStatistics(NamedTuple):
    """Statistics of one layer's router: sums over tokens or rows, float32.

    They add, exactly, over rows, microbatches and devices; a row of padding adds nothing. A loss is
    then `(balance_weight * balance + z_weight * z) / tokens` of the summed statistics.

    Attributes:
        counts: [E] choices of each expert.
        balance: [] the sum over rows of n * E * sum_e f_e * P_e: n the row's tokens, f_e the share
            of expert e in their choices, P_e its mean probability (Switch Transformer, by row). n
            where choices are even.
        z: [] the sum over tokens of the squared log-sum-exp of the logits (ST-MoE).
        entropy: [] the sum over tokens of the entropy of the probabilities, nats.
        tokens: [] tokens counted.
    """

    counts: Array
    balance: Array
    z: Array
    entropy: Array
    tokens: Array


def router_logits(x: Array, weight: Array) -> Array:
    """The router's logits: [..., D] in the compute dtype times [D, E] float32, [..., E] float32.

    The backward pass chooses from the saved logits, so it cannot choose otherwise.
    """
    return save_activation(_logits(x, weight))


@recompute_in_backward
def _logits(x: Array, weight: Array) -> Array:
    return jnp.dot(x.astype(jnp.float32), weight, precision="highest")


def choose_experts(
    e: ExpertsConfig, logits: Array, bias: Array | None
) -> tuple[Array, Array, Array]:
    """Chooses the k experts of each token: those with the highest score, the first of equals.

    Logits are [..., E] float32; a bias, [E] float32, is added to the scores for the choice only.

    Returns:
        experts: [..., k] int32, all different.
        weights: [..., k] float32, the chosen scores.
        probabilities: [..., E] float32, the scores, which sum to 1 over experts.
    """
    probabilities = score = jax.nn.softmax(logits)
    if e.scores == "sigmoid":
        score = jax.nn.sigmoid(logits)
        probabilities = score / _total(score)
    biased = score if bias is None else score + bias
    _, experts = jax.lax.top_k(jax.lax.stop_gradient(biased), e.num_experts_per_token)
    weights = _chosen(score, experts)
    if e.norm_topk_prob:
        weights /= _total(weights)
    return experts, weights * e.routed_scaling_factor, probabilities


def _total(scores: Array) -> Array:
    """The sum over the last axis, above zero where all sigmoids underflow."""
    return jnp.sum(scores, axis=-1, keepdims=True) + 1e-20


@recompute_in_backward
def _chosen(score: Array, experts: Array) -> Array:
    """`score` [..., E] at `experts` [..., k]. Comparing instead of indexing keeps a scatter out of
    the backward pass."""
    chosen = _is_chosen(experts, score.shape[-1])
    return jnp.sum(jnp.where(chosen, score[..., None, :], 0.0), axis=-1)


def _is_chosen(experts: Array, num_experts: int) -> Array:
    """[..., k] to [..., k, E]."""
    return experts[..., None] == jnp.arange(num_experts)


def router_statistics(
    logits: Array, probabilities: Array, experts: Array, loss_mask: Array
) -> RouterStatistics:
    """Sums the statistics of one layer's router; see `RouterStatistics`.

    Gradients flow to `probabilities`, by way of `balance`, and to `logits`, by way of `z`, both
    [B, T, E] float32. `experts` are [B, T, k] int32; `loss_mask`, [B, T] float32, is 1 where a
    token counts, 0 for padding.
    """
    E, k = logits.shape[-1], experts.shape[-1]
    tokens = jnp.sum(loss_mask, axis=1)  # [B]
    chosen = jnp.sum(_is_chosen(experts, E), axis=2) * loss_mask[:, :, None]
    counts = jnp.sum(chosen, axis=1)  # [B, E]
    mass = jnp.sum(probabilities * loss_mask[:, :, None], axis=1)  # [B, E]
    balance = E / (k * jnp.maximum(tokens, 1)) * jnp.sum(counts * mass, axis=1)  # [B]
    z = jnp.square(jax.nn.logsumexp(logits, axis=-1))
    # The derivative of the entropy is infinite where a probability is 0.
    entropy = jnp.sum(jax.scipy.special.entr(jax.lax.stop_gradient(probabilities)), axis=-1)
    return RouterStatistics(
        counts=jnp.sum(counts, axis=0),
        balance=jnp.sum(balance),
        z=jnp.sum(z * loss_mask),
        entropy=jnp.sum(entropy * loss_mask),
        tokens=jnp.sum(tokens),
    )


def updated_router_bias(bias: Array, counts: Array, rate: float) -> Array:
    """The balancing bias of the next step: up for experts chosen less than the mean, else down, by
    `rate`. Both it and `counts`, the choices in the whole batch, are [..., E] float32.

    Source: loss-free balancing, arXiv:2408.15664.
    """
    return bias + rate * jnp.sign(jnp.mean(counts, axis=-1, keepdims=True) - counts)


def init_params(c: ModelConfig, init: ParamInitializer) -> dict[str, nnx.Param]:
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
    experts, weights, probabilities = choose_experts(e, logits, p.get("router_bias"))
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
    """The weighted sum of the chosen experts' outputs for each token, on any mesh: [B, T, D].

    A device gathers the tokens of its group of the `expert` axis, applies its experts and sends
    every other its part of the sums: no exchange has a size that depends on the routing.
    """
    mesh, count = context_mesh(), len(matrices.gate)
    if mesh is None or mesh.are_all_axes_manual:
        return local_expert_sum(routed, matrices, count=count)
    # Mesh axes over which tokens, experts and the experts' columns F are split.
    (rows,) = partition_spec(("batch",), routed.x.shape[:1], mesh)
    (columns,) = partition_spec(("mlp",), matrices.gate.shape[2:], mesh)
    shards = "expert" if count % mesh.shape["expert"] == 0 else None
    gathered = shards is not None and shards in (rows or ())

    def expert_sum(routed: RoutedTokens, matrices: ExpertWeights) -> Array:
        """The part of one device, which has some of the experts, or of their columns."""
        first = 0 if shards is None else jax.lax.axis_index(shards) * len(matrices.gate)
        shape = routed.x.shape
        if gathered:
            routed = jax.tree.map(
                lambda a: jax.lax.all_gather(a, shards, axis=0, tiled=True), routed
            )
        parts = local_expert_sum(routed, matrices, count=count, first=first).reshape(-1, *shape)
        if gathered:
            parts = jax.lax.all_to_all(parts, shards, 0, 0)
        # Sums over devices in float32, as inside a product.
        total = jnp.sum(parts, axis=0, dtype=jnp.float32)
        left = [axes for axes in (columns, None if gathered else shards) if axes is not None]
        return (jax.lax.psum(total, left) if left else total).astype(routed.x.dtype)

    split, columnwise = PartitionSpec(rows), PartitionSpec(shards, None, columns)
    return jax.shard_map(
        expert_sum,
        in_specs=(split, ExpertWeights(columnwise, columnwise, PartitionSpec(shards, columns))),  # type: ignore[arg-type]
        out_specs=split,
        check_vma=False,
    )(routed, matrices)
