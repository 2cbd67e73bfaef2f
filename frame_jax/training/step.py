"""One optimizer update as a pure function: (state, rows) in, (state, metrics) out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from frame_jax.config.training import TrainingConfig
from frame_jax.models.cross_entropy import chunk_count, cross_entropy
from frame_jax.models.functional import Decoder
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


def batch_loss(
    decoder: Decoder, params: Params, batch: RowView, chunks: int, z_loss: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """Sums over the counted targets of the objective and of the NLL, in nats."""
    module = decoder.bind(params)
    hidden = module(batch.inputs, batch.segment_ids, batch.positions)
    return cross_entropy(hidden, module.unembedding(), batch.targets, batch.weights, chunks, z_loss)


def gradients(
    loss: Callable[[Params, RowView], tuple[jax.Array, jax.Array]],
    params: Params,
    batch: RowView,
    pieces: int,
) -> tuple[jax.Array, Params]:
    """The sum of NLL over a batch and the derivatives of its objective, a piece at a time.

    Sums, not means, are added, so pieces with different numbers of counted targets make exactly the
    derivative of the whole batch. Piece i is rows i, i + pieces, ...: every device has an equal
    part of each.
    """
    gradient = jax.value_and_grad(loss, has_aux=True)
    if pieces == 1:
        (_, nll_sum), grads = gradient(params, batch)
        return nll_sum, grads

    def add(carry: tuple[jax.Array, Params], piece: RowView) -> tuple[Any, None]:
        (_, nll_sum), grads = gradient(params, piece)
        return jax.tree.map(jnp.add, carry, (nll_sum, grads)), None

    cut = jax.tree.map(
        lambda x: constrain(x.reshape(-1, pieces, x.shape[1]).swapaxes(0, 1), None, "batch", None),
        batch,
    )
    zero = jax.tree.map(jnp.zeros_like, params)
    return jax.lax.scan(add, (jnp.zeros((), jnp.float32), zero), cut)[0]


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

        def loss(params: Params, piece: RowView) -> tuple[jax.Array, jax.Array]:
            objective, nll_sum = batch_loss(decoder, params, piece, chunks, training.z_loss)
            return objective * scale, nll_sum

        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            nll_sum, grads = gradients(loss, state.params, batch, training.accumulate)
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": nll_sum * scale,
            "grad_norm": optax.global_norm(grads),
            "update_norm": optax.global_norm(updates),
            "learning_rate": learning_rate(state.step),
            "predicted_tokens": counted,
        }
        return TrainState(state.step + 1, params, optimizer_state), metrics

    return train_step
