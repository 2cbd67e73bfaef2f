"""One optimizer update as a pure function: (state, rows) in, (state, metrics) out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from frame_jax.config.models import ModelConfig
from frame_jax.config.training import TrainingConfig
from frame_jax.models.cross_entropy import chunk_count, cross_entropy
from frame_jax.models.functional import Decoder
from frame_jax.models.router import Statistics, moved_bias
from frame_jax.models.transformer import Params
from frame_jax.parallel.sharding import batch_ways, constrain


class TrainState(NamedTuple):
    """Everything an update reads and writes.

    Attributes:
        step: Updates applied so far, int32.
        params: Nested dict of float32 arrays.
        optimizer: State of the optax chain.
    """

    step: jax.Array
    params: Params
    optimizer: Any


class Specials(NamedTuple):
    """Token ids that structure a row: every document is framed as `bos tokens eos`."""

    bos: int
    eos: int


class RowView(NamedTuple):
    """A batch of rows as the model and the loss see it; all [B, T], rows being [B, T + 1].

    Attributes:
        inputs: Tokens the model reads, int32.
        targets: Tokens it predicts, int32.
        segment_ids: Document number inside the row, int32.
        positions: Position inside the document, int32.
        weights: 1 where a target counts, else 0, float32.
    """

    inputs: jax.Array
    targets: jax.Array
    segment_ids: jax.Array
    positions: jax.Array
    weights: jax.Array


def view(rows: jax.Array, specials: Specials, document_attention: bool) -> RowView:
    """Derives segments, positions and loss weights from the tokens alone.

    A document begins at each BOS. A BOS that follows BOS or EOS is not predicted: which document
    comes next is not something to learn, and padding is repeated BOS.

    Args:
        rows: [B, T + 1] int32.
        specials: BOS and EOS.
        document_attention: False lets attention and positions run through the whole row.
    """
    inputs, targets = rows[:, :-1], rows[:, 1:]
    starts = inputs == specials.bos
    index = jnp.broadcast_to(jnp.arange(inputs.shape[1]), inputs.shape)
    segment_ids, positions = jnp.zeros_like(inputs), index
    if document_attention:
        segment_ids = jnp.cumsum(starts, axis=1)
        positions = index - jax.lax.cummax(jnp.where(starts, index, 0), axis=1)
    after_end = starts | (inputs == specials.eos)
    counted = ~((targets == specials.bos) & after_end)
    return RowView(inputs, targets, segment_ids, positions, counted.astype(jnp.float32))


class Sums(NamedTuple):
    """What is summed over the counted targets of a batch, so that pieces of it add up.

    Attributes:
        nll: In nats, float32.
        routers: What the routers did; None for a model without experts.
    """

    nll: jax.Array
    routers: Statistics | None


def batch_sums(
    decoder: Decoder, params: Params, batch: RowView, chunks: int, training: TrainingConfig
) -> tuple[jax.Array, Sums]:
    """The objective's sum over the counted targets, and what is reported of them."""
    module = decoder.bind(params)
    routed = decoder.config.has("experts")
    hidden, routers = module.forward(
        batch.inputs,
        batch.segment_ids,
        batch.positions,
        counted=batch.weights if routed else None,
    )
    objective, nll = cross_entropy(
        hidden, module.unembedding(), batch.targets, batch.weights, chunks, training.z_loss
    )
    if routers is not None:
        objective += training.balance_loss * jnp.mean(routers.balance)
        objective += training.router_z_loss * jnp.mean(routers.z)
    return objective, Sums(nll, routers)


def gradients(
    loss: Callable[[Params, RowView], tuple[jax.Array, Sums]],
    params: Params,
    batch: RowView,
    pieces: int,
) -> tuple[Sums, Params]:
    """The sums over a batch and the derivatives of its objective, a piece at a time.

    Sums, not means, are added, so pieces with different numbers of counted targets make exactly the
    derivative of the whole batch. Piece i is rows i, i + pieces, ...: every device has an equal
    part of each.
    """
    gradient = jax.value_and_grad(loss, has_aux=True)

    def of_piece(piece: RowView) -> tuple[Sums, Params]:
        (_, sums), grads = gradient(params, piece)
        return sums, grads

    if pieces == 1:
        return of_piece(batch)
    cut = jax.tree.map(
        lambda x: constrain(x.reshape(-1, pieces, x.shape[1]).swapaxes(0, 1), None, "batch", None),
        batch,
    )
    shapes = jax.eval_shape(of_piece, jax.tree.map(lambda x: x[0], cut))
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def add(carry: tuple[Sums, Params], piece: RowView) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, carry, of_piece(piece)), None

    return jax.lax.scan(add, zero, cut)[0]


def moved_biases(params: Params, counts: jax.Array, rate: float, config: ModelConfig) -> Params:
    """`params` with the routers' balancing biases moved by the load of this step.

    Args:
        params: The model's.
        counts: [layers with experts, E] float32, choices of the batch's counted tokens.
        rate: How far.
        config: The model's shape.
    """
    layers, done = params["layers"], 0
    with_experts = [run for run in config.runs if run.kind.feed_forward == "experts"]
    if len(config.runs) == 1:
        bias = moved_bias(layers["router_bias"], counts, rate)
        return {**params, "layers": {**layers, "router_bias": bias}}
    by_repeat = counts.reshape(config.repeats, -1, counts.shape[-1])
    new = dict(layers)
    for run in with_experts:
        of_run = by_repeat[:, done : done + run.length]
        bias = moved_bias(layers[run.name]["router_bias"], of_run, rate)
        new[run.name] = {**layers[run.name], "router_bias": bias}
        done += run.length
    return {**params, "layers": new}


def router_metrics(routers: Statistics) -> dict[str, jax.Array]:
    """What is reported of the routers.

    Returns:
        `expert_load`: [layers] float32, the busiest expert's choices by an even share;
        `dead_experts`: share of all experts that nothing chose; `router_entropy`: [layers], mean
        over tokens, nats; `balance_loss`: 1 where the load is even.
    """
    tokens = jnp.maximum(routers.tokens, 1)
    return {
        "expert_load": jnp.max(routers.counts, -1) / jnp.maximum(jnp.mean(routers.counts, -1), 1),
        "dead_experts": jnp.mean(routers.counts == 0),
        "router_entropy": routers.entropy / tokens,
        "balance_loss": jnp.mean(routers.balance / tokens),
    }


def make_train_step(
    decoder: Decoder,
    optimizer: optax.GradientTransformation,
    specials: Specials,
    training: TrainingConfig,
    mesh: Mesh,
    learning_rate: Callable[[jax.Array], jax.Array],
) -> Callable[[TrainState, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """The update, to be jitted by the caller with shardings and a donated state.

    Args:
        decoder: The model.
        optimizer: The update rule.
        specials: BOS and EOS.
        training: Document attention, z-loss, and how the batch is cut to fit in memory.
        mesh: The devices it will run on.
        learning_rate: The optimizer's schedule, for the metrics.
    """

    def train_step(state: TrainState, rows: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        batch = view(rows, specials, training.document_attention)
        B, T = batch.inputs.shape
        device_rows = B // (batch_ways(mesh) * training.accumulate)
        chunks = chunk_count(max(1, device_rows), T, training.loss_chunk)
        counted = jnp.sum(batch.weights)
        scale = 1 / jnp.maximum(counted, 1)

        def loss(params: Params, piece: RowView) -> tuple[jax.Array, Sums]:
            objective, sums = batch_sums(decoder, params, piece, chunks, training)
            return objective * scale, sums

        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            sums, grads = gradients(loss, state.params, batch, training.accumulate)
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": sums.nll * scale,
            "grad_norm": optax.global_norm(grads),
            "update_norm": optax.global_norm(updates),
            "learning_rate": learning_rate(state.step),
            "predicted_tokens": counted,
        }
        if sums.routers is not None:
            metrics |= router_metrics(sums.routers)
            if decoder.config.experts.balance_bias:
                rate = training.balance_bias_rate
                params = moved_biases(params, sums.routers.counts, rate, decoder.config)
        return TrainState(state.step + 1, params, optimizer_state), metrics

    return train_step
