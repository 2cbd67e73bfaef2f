"""What a run will do and cost, from its config and the phases that have finished; starts nothing.

Printed by `python -m frame_jax.main --config CONFIG --plan`: phases with what is done of them, and
for each arm its stages, learning rates and mixture. What it costs comes from `costs.py`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from frame_jax.config.run import RunConfig
from frame_jax.config.training import TrainingConfig
from frame_jax.corpus.inventory import compare
from frame_jax.corpus.parts import plan
from frame_jax.curriculum.presets import expand
from frame_jax.curriculum.stages import Schedule, resolve
from frame_jax.errors import UserError
from frame_jax.evaluation.held_out import held_out_documents
from frame_jax.planning.costs import BYTES_PER_TOKEN, Corpus, cost_table
from frame_jax.run import compute_dtype, markers, phases
from frame_jax.run.directory import RunDirectory, list_parts, read_json
from frame_jax.run.phases import Unit
from frame_jax.training.schedules import learning_rate

SHADES, LEVELS = " ░▒▓█", " ▁▂▃▄▅▆▇█"
COLUMNS = 60
PIPED_WIDTH = 150  # of the tables where there is no terminal


@dataclass(frozen=True)
class State:
    """How far a unit has come.

    Attributes:
        text: For the reader.
        left: Share of its work that remains.
    """

    text: str
    left: float


def print_plan(
    config: RunConfig,
    *,
    tokens_per_second: float | None = None,
    corpus_tokens: float | None = None,
    until: str | None = None,
) -> None:
    """Prints the plan of a run.

    Args:
        config: The run.
        tokens_per_second: Training speed of the target model, for the time it will take.
        corpus_tokens: Tokens of a corpus that is not tokenized, and need not be there, yet.
        until: The last phase of interest; None for all.

    Raises:
        UserError: for a corpus that is not there, and for what pretraining would refuse.
    """
    console = Console(
        highlight=False, markup=False, width=None if sys.stdout.isatty() else PIPED_WIDTH
    )
    config = compute_dtype.recorded(config, RunDirectory(config.run_directory))
    corpus = read_corpus(config, corpus_tokens)
    units = phases.selected(phases.units(config), until)
    states = read_states(config, units, corpus_tokens is not None)
    console.print(phase_table(config, units, states))
    schedules: dict[str, Schedule] = {}
    for name in config.curricula:
        trials = [t.name for t in config.trials if t.arm == name and f"pretrain-{t.name}" in states]
        if trials:
            schedule, note = schedule_of(config, corpus, name)
            schedules |= dict.fromkeys(trials, schedule)
            console.print(arm(config, schedule, name))
            if note:
                console.print(note, style="yellow")
    left = {name: state.left for name, state in states.items()}
    console.print(cost_table(config, corpus, schedules, left, tokens_per_second))
    console.print(f"tokens: {corpus.source}", style="dim")


def read_corpus(config: RunConfig, corpus_tokens: float | None) -> Corpus:
    """Tokens of the splits: counted if tokenized, else as given or by the sizes of the files."""
    directory = RunDirectory(config.run_directory)
    marker = directory.marker("tokenize")
    if marker.exists() and read_json(marker)["complete"]:
        tokens = read_json(marker)["summary"]["tokens"]
        held_out = tokens.get("held_out", 0)
        return Corpus(
            tokens.get("reference", 0),
            tokens.get("train", 0),
            held_out,
            "counted by the tokenize phase",
            measured_tokens(config, directory) if held_out else 0,
        )
    if corpus_tokens is not None:
        total, source = corpus_tokens, "as given by --corpus_tokens"
    else:
        chunks = [chunk for part in plan(config.corpus) for chunk in part]
        total = sum(chunk.item.size / chunk.stripe.count for chunk in chunks) / BYTES_PER_TOKEN
        source = (
            f"estimated from the files' sizes at {BYTES_PER_TOKEN:g} bytes a token, because the "
            "corpus is not tokenized yet (compressed files hold several times more: say "
            "--corpus_tokens)"
        )
    reference, held_out = config.corpus.reference_fraction, config.corpus.held_out_fraction
    return Corpus(
        int(total * reference),
        int(total * (1 - reference - held_out)),
        int(total * held_out),
        source,
    )


def measured_tokens(config: RunConfig, directory: RunDirectory) -> int:
    """Tokens of the held-out documents that evaluation measures, of a corpus that is tokenized."""
    documents = held_out_documents(directory, config.evaluation.max_documents)
    return sum(pc.sum(part["tokens"]).as_py() for part in documents.values())


def read_states(
    config: RunConfig, units: list[Unit], corpus_may_be_absent: bool
) -> dict[str, State]:
    """How far each unit has come."""
    directory = RunDirectory(config.run_directory)
    try:
        corpus, changes = compare(config, directory)
        corpus = "changed" if changes else corpus
    except UserError:
        if not corpus_may_be_absent:
            raise
        corpus = ""
    expected = markers.expectations(config, units, corpus)
    states = {}
    for unit in units:
        marker = markers.read_marker(directory, unit)
        if marker is None:
            states[unit.name] = State("to do", 1.0)
        elif marker["fingerprint"] != expected[unit.name].fingerprint:
            stale = "made under other settings" if unit.phase != "report" else "to do again"
            states[unit.name] = State(stale, 1.0)
        elif marker["complete"]:
            states[unit.name] = State("complete", 0.0)
        else:
            states[unit.name] = begun(config, directory, unit)
    return states


def begun(config: RunConfig, directory: RunDirectory, unit: Unit) -> State:
    """How far a unit has come that is not complete: parts written, or the newest checkpoint."""
    folder = directory.root / unit.outputs[0]
    if unit.name in ("tokenize", "score"):
        done, total, noun = len(list_parts(folder, ".parquet")), config.corpus.parts, "parts"
    elif unit.name == "reference-rows":
        done, total, noun = parts_of_cells(folder), config.reference.rows.parts, "parts"
    elif unit.name == "partition":
        rows, cells = config.partition.rows, config.partition.axes.cells
        done, total, noun = parts_of_cells(folder), rows.parts * len(cells), "parts of rows"
    elif (folder / "curriculum.json").exists():
        saved = [int(path.name) for path in (folder / "checkpoints").glob("*") if is_step(path)]
        total, noun = read_json(folder / "curriculum.json")["steps"], "steps saved"
        done = max(saved, default=0)
    else:
        return State("begun", 1.0)
    return State(f"begun: {done:,} of {total:,} {noun}", 1 - done / max(total, 1))


def parts_of_cells(folder: Path) -> int:
    """Row files under a folder of cells."""
    return len(list(folder.glob("*/part-*-of-*.json")))


def is_step(path: Path) -> bool:
    return path.name.isdigit()


def phase_table(config: RunConfig, units: list[Unit], states: dict[str, State]) -> Table:
    """Every unit of every phase and how far it has come."""
    root = RunDirectory(config.run_directory).root
    table = Table(title=f"phases of {root}", title_justify="left")
    for column in ("phase", "unit", "state"):
        table.add_column(column)
    for unit in units:
        table.add_row(unit.phase, unit.name, states[unit.name].text)
    return table


def schedule_of(config: RunConfig, corpus: Corpus, name: str) -> tuple[Schedule, str]:
    """The schedule of an arm, and a warning where the corpus looks too small for its steps.

    Rows of each quadrant are counted if partitioned, else equal shares of the training tokens.
    """
    training, cells = config.pretrain.training, config.partition.axes.cells
    curriculum = expand(config.curricula[name], config.partition.axes)
    length, note = config.partition.rows.sequence_length, ""
    directory = RunDirectory(config.run_directory)
    marker = directory.marker("partition")
    if marker.exists() and read_json(marker)["complete"]:
        counted = read_json(directory.quadrants / "rows.json")
        rows = {cell: counted[cell]["rows"] for cell in cells}
    else:
        held = corpus.train // (length + 1)
        needed = -(-(training.steps or 0) * training.batch_rows // curriculum.epochs)
        if needed > held:
            note = (
                f"{name}: {training.steps:,} steps of {training.batch_rows:,} rows need "
                f"{needed:,} rows an epoch, and the corpus has about {held:,}: as things stand "
                "pretraining would be refused\n"
            )
        rows = dict.fromkeys(cells, max(1, -(-max(held, needed) // len(cells))))
    schedule = resolve(
        curriculum,
        rows,
        batch_rows=training.batch_rows,
        sequence_length=length,
        steps=training.steps,
    )
    return schedule, note


def arm(config: RunConfig, schedule: Schedule, name: str) -> RenderableType:
    """Stages and mixture of one curriculum."""
    training, length = config.arm_training(name), config.partition.rows.sequence_length
    steps = schedule.steps(training.batch_rows)
    table = Table(title=f"{name}: {steps:,} steps", title_justify="left")
    columns = ("stage", "rows", "tokens", "first step", "last step", "learning rate", "time scale")
    for column in columns:
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
            time_scale(training, first, last, steps, stage_starts),
        )
        start = stop
    table.caption = "time scale: 1 / (learning rate x weight decay), the optimizer's memory"
    table.caption_justify = "left"
    return Group(table, plot(schedule, training))


def time_scale(
    training: TrainingConfig, first: int, last: int, steps: int, stage_starts: list[int]
) -> str:
    """Over how many steps AdamW's weights forget what a step gave them, and in stages' lengths.

    The weights are a moving average of updates, each of which fades by 1 - rate * weight decay a
    step (arXiv 2509.25380 gives the same as a share of the run); the rate is the stage's mean.
    """
    places = np.linspace(first, max(first, last), 65)
    rate = float(np.mean(np.asarray(learning_rate(training.schedule, places, steps, stage_starts))))
    fading = rate * training.optimizer.weight_decay
    if fading == 0:
        return "endless"
    return f"{1 / fading:,.0f} steps, {1 / fading / max(last - first + 1, 1):.1f} stages"


def plot(schedule: Schedule, training: TrainingConfig) -> Text:
    """The run from left to right: share of each quadrant, dark where it is all of the mixture, and
    the learning rate over its highest value.
    """
    epochs, edges = np.divmod(
        np.linspace(0, schedule.rows, COLUMNS + 1).astype(np.int64), schedule.epoch_rows
    )
    asked = epochs[:, None] * schedule.cumulative(np.array([schedule.epoch_rows]))
    asked = np.diff(asked + schedule.cumulative(edges), axis=0)
    shares = asked / np.maximum(asked.sum(axis=1, keepdims=True), 1e-9)
    steps = schedule.steps(training.batch_rows)
    middles = ((np.arange(COLUMNS) + 0.5) / COLUMNS * steps).astype(np.int64)
    rates = learning_rate(
        training.schedule, middles, steps, schedule.stage_starts(training.batch_rows)
    )
    bars = np.asarray(rates) / np.max(rates)
    lines = [
        *((cell, SHADES, shares[:, c]) for c, cell in enumerate(schedule.cells)),
        ("rate", LEVELS, bars),
    ]
    text = (
        f"{name:>8} |{''.join(marks[round(v * (len(marks) - 1))] for v in values.tolist())}|"
        for name, marks, values in lines
    )
    return Text("\n".join(text) + "\n")
