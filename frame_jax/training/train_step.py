"""One optimizer update as a pure function of (state, rows), which returns (state, metrics)."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, PartitionSpec

from frame_jax.config.models import ModelConfig
from frame_jax.config.training import TrainingConfig
from frame_jax.models.cross_entropy import chunk_count, cross_entropy
from frame_jax.models.feed_forward_experts import RouterStatistics, updated_router_bias
from frame_jax.models.transformer import Decoder, Params
from frame_jax.parallel.sharding import constrain_sharding, data_parallel_size
from frame_jax.run.special_tokens import SpecialTokens


class TrainState(NamedTuple):
    """The state that an update reads and returns.

    Attributes:
        step: Updates applied so far, int32.
        params: Nested dict of float32 arrays.
    """

    step: jax.Array
    params: Params
    optimizer: Any


class LMBatch(NamedTuple):
    """A batch of rows as the model and the loss see it; all [B, T], rows being [B, T + 1].

    Attributes:
        inputs: Tokens the model reads, int32.
        targets: Tokens it predicts, int32.
        segment_ids: Document number inside the row, int32.
        positions: Position inside the document, int32.
        loss_mask: 1 where a target counts, else 0, float32.
    """

    inputs: jax.Array
    targets: jax.Array
    segment_ids: jax.Array
    positions: jax.Array
    loss_mask: jax.Array


def make_lm_batch(
    rows: jax.Array, special_tokens: SpecialTokens, document_attention: bool
) -> LMBatch:
    """Derives segments, positions and the loss mask from the tokens alone.

    A document begins at each BOS. A BOS that follows BOS or EOS is not predicted: which document
    comes next is not something to learn, and padding is repeated BOS. `rows` are [B, T + 1] int32;
    without `document_attention` attention and positions run through the whole row.
    """
    inputs, targets = rows[:, :-1], rows[:, 1:]
    starts = inputs == special_tokens.bos_id
    index = jnp.broadcast_to(jnp.arange(inputs.shape[1]), inputs.shape)
    segment_ids, positions = jnp.zeros_like(inputs), index
    if document_attention:
        segment_ids = jnp.cumsum(starts, axis=1)
        positions = index - jax.lax.cummax(jnp.where(starts, index, 0), axis=1)
    after_end = starts | (inputs == special_tokens.eos_id)
    loss_mask = ~((targets == special_tokens.bos_id) & after_end)
    return LMBatch(inputs, targets, segment_ids, positions, loss_mask.astype(jnp.float32))


class LossAux(NamedTuple):
    """Sums over the counted targets of a batch, which add up over microbatches: NLL in nats,
    float32, and the routers' statistics, None for a model without experts."""

    nll: jax.Array
    routers: RouterStatistics | None


def loss_fn(
    decoder: Decoder, params: Params, batch: LMBatch, chunks: int, training: TrainingConfig
) -> tuple[jax.Array, LossAux]:
    """The sum of the objective over the counted targets, and the sums that are reported."""
    routed = decoder.config.has("experts")
    hidden, routers = decoder.forward(
        params,
        batch.inputs,
        batch.segment_ids,
        batch.positions,
        loss_mask=batch.loss_mask if routed else None,
    )
    unembedding, weight = decoder.unembedding(params), training.z_loss_weight
    objective, nll = cross_entropy(
        hidden, unembedding, batch.targets, batch.loss_mask, chunks, weight
    )
    if routers is not None:
        objective += training.load_balance_loss_weight * jnp.mean(routers.balance)
        objective += training.router_z_loss_weight * jnp.mean(routers.z)
    return objective, LossAux(nll, routers)


def accumulate_gradients(
    loss: Callable[[Params, LMBatch], tuple[jax.Array, LossAux]],
    params: Params,
    batch: LMBatch,
    steps: int,
) -> tuple[Params, LossAux]:
    """The gradient of a batch's objective and the sums over it, `steps` microbatches in turn.

    Sums, not means, are added, so microbatches with different numbers of counted targets make
    exactly the gradient of the whole batch. Microbatch i is rows i, i + steps, ...: every device
    has an equal part of each.
    """
    gradient = functools.partial(jax.grad(loss, has_aux=True), params)
    if steps == 1:
        return gradient(batch)

    def split(x: jax.Array) -> jax.Array:
        microbatches = x.reshape(-1, steps, x.shape[1]).swapaxes(0, 1)
        return constrain_sharding(microbatches, None, "batch", None)

    microbatches = jax.tree.map(split, batch)
    shapes = jax.eval_shape(gradient, jax.tree.map(lambda x: x[0], microbatches))
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def add(carry: tuple[Params, LossAux], microbatch: LMBatch) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, carry, gradient(microbatch)), None

    return jax.lax.scan(add, zero, microbatches)[0]


def sums_once(decoder: Decoder, mesh: Mesh) -> bool:
    """Whether `sum_over_replicas` can sum the gradients, and is faster: for replicas on CPUs of a
    model without experts, whose losses are no sums over tokens."""
    replicas = mesh.shape["data"] == mesh.size > 1
    return replicas and mesh.devices.flat[0].platform == "cpu" and not decoder.config.has("experts")


def sum_over_replicas(
    gradients: Callable[[Params, LMBatch], tuple[Params, LossAux]], mesh: Mesh
) -> Callable[[Params, LMBatch], tuple[Params, LossAux]]:
    """Gradients of each device's rows, summed over the devices at one time, as one array.

    Left alone, XLA sums each array by itself. On a CPU a device that waits for the others holds a
    thread, and devices may begin with different arrays: with as many threads as devices none is
    left to end any of these sums (XLA's "Termination timeout" of a rendezvous).
    """

    def local(params: Params, batch: LMBatch) -> tuple[Params, LossAux]:
        flat, unravel = ravel_pytree(gradients(params, batch))
        return unravel(jax.lax.psum(flat, "data"))

    whole, rows = PartitionSpec(), PartitionSpec("data")
    return jax.shard_map(local, mesh=mesh, in_specs=(whole, rows), out_specs=whole, check_vma=False)


def updated_router_biases(
    params: Params, counts: jax.Array, rate: float, config: ModelConfig
) -> Params:
    """Moves the routers' balancing biases against the load of this step.

    `counts` are [layers with experts, E] float32, choices of the batch's counted tokens; `rate` is
    how far a bias moves.
    """
    E = counts.shape[-1]
    by_repeat, start = counts.reshape(config.repeats, -1, E), 0
    layers = dict(params["layers"])
    for group in config.layer_groups:
        if group.spec.feed_forward == "experts":
            group_counts = by_repeat[:, start : start + group.length].reshape(-1, E)
            bias = updated_router_bias(layers[group.name]["router_bias"], group_counts, rate)
            layers[group.name] = layers[group.name] | {"router_bias": bias}
            start += group.length
    return params | {"layers": layers}


def router_metrics(routers: RouterStatistics) -> dict[str, jax.Array]:
    """The metrics of the routers.

    Returns:
        `expert_load`: [layers] float32, the busiest expert's choices by an even share;
        `dead_experts`: share of all experts that nothing chose; `router_entropy`: [layers], mean
        over tokens, nats; `load_balance_loss`: 1 where the load is even.
    """
    tokens = jnp.maximum(routers.tokens, 1)
    return {
        "expert_load": jnp.max(routers.counts, -1) / jnp.maximum(jnp.mean(routers.counts, -1), 1),
        "dead_experts": jnp.mean(routers.counts == 0),
        "router_entropy": routers.entropy / tokens,
        "load_balance_loss": jnp.mean(routers.balance / tokens),
    }


def make_train_step(
    decoder: Decoder,
    optimizer: optax.GradientTransformation,
    special_tokens: SpecialTokens,
    training: TrainingConfig,
    mesh: Mesh,
    learning_rate: Callable[[jax.Array], jax.Array],
) -> Callable[[TrainState, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """Makes the update, which the caller jits with shardings and a donated state.

    `learning_rate` is the optimizer's schedule, for the metrics.
    """

    def train_step(state: TrainState, rows: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        batch = make_lm_batch(rows, special_tokens, training.document_attention)
        B, T = batch.inputs.shape
        device_rows = B // (data_parallel_size(mesh) * training.gradient_accumulation_steps)
        chunks = chunk_count(max(1, device_rows), T, training.loss_chunk)
        predicted_tokens = jnp.sum(batch.loss_mask)
        scale = 1 / jnp.maximum(predicted_tokens, 1)

        def loss(params: Params, microbatch: LMBatch) -> tuple[jax.Array, LossAux]:
            objective, aux = loss_fn(decoder, params, microbatch, chunks, training)
            return objective * scale, aux

        def gradients(params: Params, batch: LMBatch) -> tuple[Params, LossAux]:
            return accumulate_gradients(loss, params, batch, training.gradient_accumulation_steps)

        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            summed = sum_over_replicas(gradients, mesh) if sums_once(decoder, mesh) else gradients
            grads, aux = summed(state.params, batch)
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": aux.nll * scale,
            "grad_norm": optax.global_norm(grads),
            "update_norm": optax.global_norm(updates),
            "learning_rate": learning_rate(state.step),
            "predicted_tokens": predicted_tokens,
        }
        if aux.routers is not None:
            metrics |= router_metrics(aux.routers)
            if decoder.config.experts.router_bias:
                rate = training.router_bias_update_rate
                params = updated_router_biases(params, aux.routers.counts, rate, decoder.config)
        return TrainState(state.step + 1, params, optimizer_state), metrics

    return train_step
