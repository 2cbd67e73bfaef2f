"""One optimizer update as a pure function: (state, rows) in, (state, metrics) out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from frame_jax.models.cross_entropy import chunk_count, cross_entropy
from frame_jax.models.functional import Decoder
from frame_jax.models.transformer import Params


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
    decoder: Decoder, params: Params, batch: RowView, chunks: int
) -> tuple[jax.Array, jax.Array]:
    """Mean NLL over the counted targets, in nats, and the number of them."""
    module = decoder.bind(params)
    hidden = module(batch.inputs, batch.segment_ids, batch.positions)
    total = cross_entropy(hidden, module.unembedding(), batch.targets, batch.weights, chunks)
    counted = jnp.sum(batch.weights)
    return total / jnp.maximum(counted, 1), counted


def make_train_step(
    decoder: Decoder,
    optimizer: optax.GradientTransformation,
    specials: Specials,
    *,
    learning_rate: Callable[[jax.Array], jax.Array],
    document_attention: bool,
    loss_chunk: int,
    batch_ways: int,
) -> Callable[[TrainState, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """The update, to be jitted by the caller with shardings and a donated state.

    Args:
        decoder: The model.
        optimizer: The update rule.
        specials: BOS and EOS.
        learning_rate: The optimizer's schedule, for the metrics.
        document_attention: Keep attention inside documents.
        loss_chunk: Tokens whose logits exist at one time on one device.
        batch_ways: Pieces the batch is split into over devices.
    """

    def train_step(state: TrainState, rows: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        batch = view(rows, specials, document_attention)
        B, T = batch.inputs.shape
        chunks = chunk_count(max(1, B // batch_ways), T, loss_chunk)

        def loss(params: Params) -> tuple[jax.Array, jax.Array]:
            return batch_loss(decoder, params, batch, chunks)

        (value, counted), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": value,
            "grad_norm": optax.global_norm(grads),
            "learning_rate": learning_rate(state.step),
            "predicted_tokens": counted,
        }
        return TrainState(state.step + 1, params, optimizer_state), metrics

    return train_step
