"""Parameters, memory, FLOPs and time of everything that a run computes: a table for `--plan`."""

from __future__ import annotations

from dataclasses import dataclass

import jax
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from frame_jax.config.run import RunConfig
from frame_jax.config.training import ReferenceModelConfig, TrainingConfig
from frame_jax.files import cached
from frame_jax.models.flops import (
    active_parameter_count,
    forward_flops_per_token,
    parameter_count,
    training_flops_per_token,
)
from frame_jax.models.functional import Decoder
from frame_jax.models.hugging_face.weights import read_decoder
from frame_jax.run.directory import RunDirectory, read_json
from frame_jax.training.optimizer import make_optimizer
from frame_jax.training.runs import padded_vocabulary

TRAINED, SCORED = 4, 2  # bytes of a weight: float32 where it is trained, bfloat16 where it scores


@dataclass(frozen=True)
class Corpus:
    """Tokens of the splits, and how sure that is.

    Attributes:
        reference: Tokens of the reference split.
        train: Tokens of the training split.
        held_out: Tokens kept for evaluation.
        source: Where the numbers are from.
    """

    reference: int
    train: int
    held_out: int
    source: str


@dataclass(frozen=True)
class Work:
    """Something that computes: a line of the cost table.

    Attributes:
        name: What it is.
        unit: The unit of a phase that does it.
        decoder: The model.
        weight_bytes: Bytes of memory for its weights.
        optimizer_bytes: Bytes of memory for the state of its optimizer.
        tokens: Tokens that go through the model.
        flops: Floating-point operations on all of them.
    """

    name: str
    unit: str
    decoder: Decoder
    weight_bytes: int
    optimizer_bytes: int
    tokens: int
    flops: float


def trained(
    name: str, unit: str, decoder: Decoder, training: TrainingConfig, steps: int, length: int
) -> Work:
    """Training a model over `steps` batches of rows that predict `length` tokens."""
    optimizer = make_optimizer(training, decoder, steps)
    state = jax.tree.leaves(jax.eval_shape(optimizer.init, decoder.shapes()))
    tokens = steps * training.batch_rows * length
    return Work(
        name,
        unit,
        decoder,
        parameter_count(decoder.config, decoder.vocab_size) * TRAINED,
        sum(leaf.size * leaf.dtype.itemsize for leaf in state),
        tokens,
        tokens * training_flops_per_token(decoder.config, decoder.vocab_size, length),
    )


def scored(name: str, unit: str, decoder: Decoder, tokens: int, length: int) -> Work:
    """One pass of a model over `tokens` tokens in rows of `length`."""
    weights = parameter_count(decoder.config, decoder.vocab_size) * SCORED
    flops = tokens * forward_flops_per_token(decoder.config, decoder.vocab_size, length)
    return Work(name, unit, decoder, weights, 0, tokens, flops)


def vocabulary(config: RunConfig) -> int:
    """Rows of the embedding: of the run's tokenizer, or of the one that is asked for."""
    special = RunDirectory(config.run_directory).tokenizer.with_name("special_tokens.json")
    size = read_json(special)["vocab_size"] if special.exists() else config.tokenizer.vocab_size
    return padded_vocabulary(size)


def reference_decoder(config: RunConfig, name: str) -> tuple[Decoder, str | None]:
    """A reference model, and a sentence on where its shape is from if it is imported.

    Raises:
        UserError: if it is imported and this project cannot compute it.
    """
    reference: ReferenceModelConfig = getattr(config.reference, name)
    assumed = Decoder(reference.model, vocabulary(config))
    if reference.checkpoint is None:
        return assumed, None
    path = cached(reference.checkpoint, lambda name: name == "config.json") / "config.json"
    if path.is_file():
        decoder = read_decoder(path.parent, longest=config.scoring.context)
        return decoder, f"reference.{name} is imported; its shape is from {path}"
    return assumed, (
        f"reference.{name} is imported, but {path} is not there; its shape is assumed to be "
        f"reference.{name}.model"
    )


def list_work(
    config: RunConfig, corpus: Corpus, steps: dict[str, int]
) -> tuple[list[Work], list[str]]:
    """Everything that computes, and notes on it; `steps` are those of each arm."""
    work: list[Work] = []
    notes: list[str] = []
    if config.scoring.table is not None:
        notes.append(
            f"scores are those of {config.scoring.table.path} (scoring.table): no reference model "
            "is trained and nothing is scored"
        )
    for name in ("weak", "strong") if config.scoring.table is None else ():
        decoder, note = reference_decoder(config, name)
        if note is None:
            training = getattr(config.reference, name).training
            length = config.reference.rows.sequence_length
            count = training.steps or -(-corpus.reference // (length + 1) // training.batch_rows)
            unit = f"reference-{name}"
            work.append(trained(f"reference {name}", unit, decoder, training, count, length))
        else:
            notes.append(note)
        tokens = corpus.train + corpus.held_out
        work.append(scored(f"scoring, {name}", "score", decoder, tokens, config.scoring.context))
    decoder = Decoder(config.pretrain.model, vocabulary(config))
    length = config.partition.rows.sequence_length
    for name, count in steps.items():
        training = config.arm_training(config.trial(name).arm)
        work.append(
            trained(f"pretrain {name}", f"pretrain-{name}", decoder, training, count, length)
        )
    return work, notes


def cost_table(
    config: RunConfig,
    corpus: Corpus,
    steps: dict[str, int],
    left: dict[str, float],
    tokens_per_second: float | None,
) -> RenderableType:
    """Parameters, memory and FLOPs of everything that computes, each one's share, and its time.

    Args:
        config: The run.
        corpus: Its tokens.
        steps: Steps of each arm that is to be trained.
        left: Share of the work that remains of each unit that is to run.
        tokens_per_second: Training speed of the target model. All else is taken to run at the same
            FLOPs a second.
    """
    work, notes = list_work(config, corpus, steps)
    work = [item for item in work if item.unit in left]
    table = Table(title="cost", title_justify="left")
    columns = ["parameters", "active", "weights GiB", "optimizer GiB", "tokens", "FLOPs", "share"]
    table.add_column("work")
    for column in columns + (["time left"] if tokens_per_second else []):
        table.add_column(column, justify="right", overflow="fold")
    length = config.partition.rows.sequence_length
    speed = (tokens_per_second or 1) * training_flops_per_token(
        config.pretrain.model, vocabulary(config), length
    )
    total = sum(item.flops for item in work)
    hours = [item.flops * left[item.unit] / speed / 3600 for item in work]
    for item, time in zip(work, hours, strict=True):
        shape = (item.decoder.config, item.decoder.vocab_size)
        table.add_row(
            item.name,
            f"{parameter_count(*shape):,}",
            f"{active_parameter_count(*shape):,}",
            f"{item.weight_bytes / 2**30:,.3f}",
            f"{item.optimizer_bytes / 2**30:,.3f}",
            f"{item.tokens:,}",
            f"{item.flops:.2e}",
            f"{100 * item.flops / max(total, 1):.1f}%",
            *([f"{time:,.2f} h"] if tokens_per_second else []),
        )
    end = [f"{sum(hours):,.2f} h"] if tokens_per_second else []
    table.add_row("all", "", "", "", "", "", f"{total:.2e}", "", *end)
    notes.append(
        "memory: of all devices together; gradients and activations come on top. Whether a step "
        "fits, without the devices: python tools/compile_ahead.py --config FILE --topology "
        "v5p:4x4x4 (or h100:8x8, ...)"
    )
    if any(item.decoder.config.has("experts") for item in work):
        notes.append(
            "active: parameters that a token meets, of experts its own; FLOPs are of these"
        )
    if tokens_per_second:
        notes.append(
            f"time: at {tokens_per_second:,.0f} tokens a second in pretraining, all else at the "
            "FLOPs a second that this is; small models reach fewer"
        )
    return Group(table, Text("\n".join(notes), style="dim"))
