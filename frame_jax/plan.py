"""What a run will do and cost, from its config and the phases that have finished; starts nothing.

Printed by `python -m frame_jax.main --config CONFIG --plan`: phases, tokens of every stage,
learning rate at the boundaries, the mixture over the run, parameters, memory and FLOPs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from frame_jax import phases
from frame_jax.config import ReferenceModelConfig, RunConfig, TrainingConfig
from frame_jax.corpus.parts import plan, signature
from frame_jax.curriculum.presets import expand
from frame_jax.curriculum.stages import Schedule, resolve
from frame_jax.models.flops import (
    forward_flops_per_token,
    parameter_count,
    training_flops_per_token,
)
from frame_jax.models.functional import Decoder
from frame_jax.models.hugging_face import read_decoder
from frame_jax.run_directory import RunDirectory, read_json
from frame_jax.training.schedules import learning_rate

BYTES_PER_TOKEN = 4.0  # of a corpus that is not tokenized yet
SHADES = " ░▒▓█"
COLUMNS = 60


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


def print_plan(config: RunConfig, tokens_per_second: float | None) -> None:
    """Prints the plan of a run.

    Args:
        config: The run.
        tokens_per_second: Training speed of the target model, for the time it will take.
    """
    console = Console(highlight=False)
    corpus = read_corpus(config)
    console.print(phase_table(config))
    for name in config.curricula:
        console.print(arm(config, corpus, name))
    console.print(cost_table(config, corpus, tokens_per_second))
    console.print(f"tokens: {corpus.source}", style="dim")


def read_corpus(config: RunConfig) -> Corpus:
    """Tokens of the splits: counted if tokenized, else estimated from the sizes of the files."""
    directory = RunDirectory(config.run_directory)
    marker = directory.marker("tokenize")
    if marker.exists() and read_json(marker)["complete"]:
        tokens = read_json(marker)["summary"]["tokens"]
        return Corpus(
            tokens.get("reference", 0),
            tokens.get("train", 0),
            tokens.get("held_out", 0),
            "counted by the tokenize phase",
        )
    chunks = [chunk for part in plan(config.corpus) for chunk in part]
    total = sum(chunk.item.size / chunk.stripe.count for chunk in chunks) / BYTES_PER_TOKEN
    reference, held_out = config.corpus.reference_fraction, config.corpus.held_out_fraction
    return Corpus(
        int(total * reference),
        int(total * (1 - reference - held_out)),
        int(total * held_out),
        f"estimated from the files' sizes at {BYTES_PER_TOKEN:g} bytes a token, because the corpus "
        "is not tokenized yet (compressed files hold several times more)",
    )


def phase_table(config: RunConfig) -> Table:
    """Every unit of every phase: complete, begun or to do."""
    directory, units = RunDirectory(config.run_directory), phases.units(config)
    expected = phases.expectations(config, units, signature(config))
    table = Table(title=f"phases of {directory.root}", title_justify="left")
    for column in ("phase", "unit", "state"):
        table.add_column(column)
    for unit in units:
        marker = phases.read_marker(directory, unit)
        if marker is None:
            state = "to do"
        elif marker["fingerprint"] != expected[unit.name].fingerprint:
            state = "made under other settings" if unit.phase != "report" else "to do again"
        else:
            state = "complete" if marker["complete"] else "begun"
        table.add_row(unit.phase, unit.name, state)
    return table


def cell_rows(config: RunConfig, corpus: Corpus) -> dict[str, int]:
    """Training rows of each quadrant: counted if partitioned, else equal shares."""
    directory = RunDirectory(config.run_directory)
    marker = directory.marker("partition")
    cells = config.partition.axes.cells
    if marker.exists() and read_json(marker)["complete"]:
        rows = read_json(directory.quadrants / "rows.json")
        return {cell: rows[cell]["rows"] for cell in cells}
    training = config.pretrain.training
    rows = corpus.train // (config.partition.rows.sequence_length + 1)
    if training.steps is not None:
        rows = max(rows, training.steps * training.batch_rows)
    return {cell: max(1, rows // len(cells)) for cell in cells}


def arm(config: RunConfig, corpus: Corpus, name: str) -> RenderableType:
    """Stages and mixture of one curriculum."""
    training = config.pretrain.training
    length = config.partition.rows.sequence_length
    schedule = resolve(
        expand(config.curricula[name], config.partition.axes),
        cell_rows(config, corpus),
        batch_rows=training.batch_rows,
        sequence_length=length,
        steps=training.steps,
    )
    steps = schedule.steps(training.batch_rows)
    table = Table(title=f"{name}: {steps:,} steps", title_justify="left")
    for column in ("stage", "rows", "tokens", "first step", "last step", "learning rate"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    start = 0
    names = [stage.name for stage in schedule.stages] * schedule.epochs
    stage_starts = schedule.stage_starts(training.batch_rows)
    for stage, stop in zip(names, schedule.boundaries.tolist(), strict=True):
        first = start // training.batch_rows
        last = min(steps, -(-stop // training.batch_rows)) - 1
        ends = np.array([first, last])
        rates = np.asarray(learning_rate(training.schedule, ends, steps, stage_starts))
        table.add_row(
            stage,
            f"{stop - start:,}",
            f"{(stop - start) * length:,}",
            f"{first:,}",
            f"{last:,}",
            f"{rates[0]:.2e} to {rates[1]:.2e}",
        )
        start = stop
    return Group(table, mixture_plot(schedule))


def mixture_plot(schedule: Schedule) -> Text:
    """Share of each quadrant over an epoch, dark where it is all of the mixture."""
    edges = np.linspace(0, schedule.epoch_rows, COLUMNS + 1).astype(np.int64)
    asked = np.diff(schedule.cumulative(edges), axis=0)
    shares = asked / np.maximum(asked.sum(axis=1, keepdims=True), 1e-9)
    lines = [
        f"{cell:>8} |{''.join(SHADES[round(s * (len(SHADES) - 1))] for s in shares[:, c])}|"
        for c, cell in enumerate(schedule.cells)
    ]
    return Text("\n".join(lines) + "\n")


def trained_tokens(training: TrainingConfig, rows: int, length: int) -> int:
    """Tokens of a training run over `rows` rows."""
    steps = training.steps or -(-rows // training.batch_rows)
    return steps * training.batch_rows * length


@dataclass(frozen=True)
class Work:
    """Something that computes: a line of the cost table.

    Attributes:
        name: What it is.
        decoder: The model.
        bytes_each: Bytes of memory for each parameter.
        tokens: Tokens that go through the model.
        flops: Floating-point operations on all of them.
    """

    name: str
    decoder: Decoder
    bytes_each: int
    tokens: int
    flops: float


TRAINED, SCORED = 4 * 3, 2  # float32 weights and two moments; bfloat16 weights


def reference_decoder(config: RunConfig, name: str) -> tuple[Decoder, str | None]:
    """A reference model, and a sentence on where its shape is from if it is imported.

    Raises:
        UserError: if it is imported and this project cannot compute it.
    """
    reference: ReferenceModelConfig = getattr(config.reference, name)
    assumed = Decoder(reference.model, config.tokenizer.vocab_size)
    if reference.checkpoint is None:
        return assumed, None
    path = Path(reference.checkpoint, "config.json")
    if path.is_file():
        decoder = read_decoder(path.parent, longest=config.scoring.context)
        return decoder, f"reference.{name} is imported; its shape is from {path}"
    return assumed, (
        f"reference.{name} is imported, but {path} is not there; its shape is assumed to be "
        f"reference.{name}.model"
    )


def cost_table(
    config: RunConfig, corpus: Corpus, tokens_per_second: float | None
) -> RenderableType:
    """Parameters, memory and FLOPs of everything that computes, and each one's share."""
    work: list[Work] = []
    notes: list[str] = []
    length, context = config.reference.rows.sequence_length, config.scoring.context
    scored = corpus.train + corpus.held_out
    for name in ("weak", "strong"):
        decoder, note = reference_decoder(config, name)
        shape = (decoder.config, decoder.vocab_size)
        if note is None:
            training = getattr(config.reference, name).training
            tokens = trained_tokens(training, corpus.reference // (length + 1), length)
            flops = tokens * training_flops_per_token(*shape, length)
            work.append(Work(f"reference {name}", decoder, TRAINED, tokens, flops))
        else:
            notes.append(note)
            work.append(Work(f"reference {name}, imported", decoder, SCORED, 0, 0.0))
        flops = scored * forward_flops_per_token(*shape, context)
        work.append(Work(f"scoring, {name}", decoder, SCORED, scored, flops))
    length = config.partition.rows.sequence_length
    tokens = trained_tokens(
        config.pretrain.training, sum(cell_rows(config, corpus).values()), length
    )
    decoder = Decoder(config.pretrain.model, config.tokenizer.vocab_size)
    flops = tokens * training_flops_per_token(decoder.config, decoder.vocab_size, length)
    for name in config.curricula:
        work.append(Work(f"pretrain {name}", decoder, TRAINED, tokens, flops))

    table = Table(title="cost", title_justify="left")
    for column in ("work", "parameters", "memory", "tokens", "FLOPs", "share", "time"):
        table.add_column(column, justify="left" if column == "work" else "right")
    total = sum(item.flops for item in work)
    for item in work:
        parameters = parameter_count(item.decoder.config, item.decoder.vocab_size)
        time = ""
        if tokens_per_second and item.name.startswith("pretrain"):
            time = f"{item.tokens / tokens_per_second / 3600:,.1f} h"
        table.add_row(
            item.name,
            f"{parameters:,}",
            f"{parameters * item.bytes_each / 2**30:,.2f} GiB",
            f"{item.tokens:,}",
            f"{item.flops:.2e}",
            f"{100 * item.flops / max(total, 1):.1f}%",
            time,
        )
    return Group(table, *(Text(note, style="dim") for note in notes))
