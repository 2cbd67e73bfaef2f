"""Prints what a run will do and cost, from its config and its finished phases; starts nothing.

Printed by `python -m frame_jax.main --config CONFIG --plan`: phases with what is done of them, and
for each arm its stages, learning rates and mixture. What it costs comes from `costs.py`.
"""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc
from rich.console import RenderableType
from rich.table import Table

from frame_jax.config.run import RunConfig
from frame_jax.corpus.inventory import compare_inventory
from frame_jax.corpus.parts import plan_parts
from frame_jax.curriculum.selection import arm_schedule
from frame_jax.curriculum.stages import DataSchedule
from frame_jax.errors import UserError
from frame_jax.evaluation.held_out import held_out_documents
from frame_jax.planning.costs import BYTES_PER_TOKEN, Corpus, cost_table
from frame_jax.quadrants.mixture import mixture_table, tokenized_mixture
from frame_jax.run import compute_dtype, markers, phases
from frame_jax.run.directory import RunDirectory, list_parts, read_json
from frame_jax.run.partition_record import Mixture, read_partition_record
from frame_jax.run.phases import PhaseStep
from frame_jax.run.progress import text_table, wide_console
from frame_jax.run.trial_record import load_trial_record
from frame_jax.training.initial_digest import recorded_digest
from frame_jax.training.optimizer import learning_rate


class PhaseStepState(NamedTuple):
    """How far a phase step has come, in words, and the share of its work that remains."""

    text: str
    fraction_left: float


def print_plan(
    config: RunConfig,
    *,
    tokens_per_second: float | None = None,
    corpus_tokens: float | None = None,
    until: str | None = None,
) -> None:
    """Prints the plan of a run up to the phase `until`; None for all phases.

    `tokens_per_second` is the training speed of the target model, for the time it will take,
    `corpus_tokens` are those of a corpus that is not tokenized, and need not be there, yet.

    Raises:
        UserError: for a corpus that is not there, and for what pretraining would refuse.
    """
    console = wide_console(highlight=False, markup=False)
    config = compute_dtype.with_recorded_types(config, RunDirectory(config.run_directory))
    corpus = read_corpus(config, corpus_tokens)
    phase_steps = phases.select_until(phases.list_phase_steps(config), until)
    states = read_states(config, phase_steps, corpus_tokens is not None)
    title = f"phases of {RunDirectory(config.run_directory).root}"
    table = Table("phase", "phase step", "state", title=title, title_justify="left")
    for phase_step in phase_steps:
        table.add_row(phase_step.phase, phase_step.name, states[phase_step.name].text)
    console.print(table)
    asked, mixture = config.partition.mixture, read_mixture(config, states)
    if mixture is not None:
        corpus = replace(corpus, read=mixture.read)
        console.print(mixture_table(mixture))
    elif asked is not None:
        corpus = replace(corpus, read=int(asked.tokens) if asked.tokens else None)
        console.print("mixture: repeats are known once the corpus is tokenized\n", style="dim")
    schedules: dict[str, DataSchedule] = {}
    for name in config.curricula:
        trials = [t.name for t in config.trials if t.arm == name and f"pretrain-{t.name}" in states]
        if trials:
            schedule, note = trial_schedule(config, corpus, name)
            schedules |= dict.fromkeys(trials, schedule)
            console.print(print_order(config, schedule, name))
            if note:
                console.print(note, style="yellow")
    left = {name: state.fraction_left for name, state in states.items()}
    console.print(cost_table(config, corpus, schedules, left, tokens_per_second))
    console.print(f"tokens: {corpus.source}", style="dim")


def read_corpus(config: RunConfig, corpus_tokens: float | None) -> Corpus:
    """Tokens of the splits: counted if tokenized, else as given or by the sizes of the files."""
    directory = RunDirectory(config.run_directory)
    marker = markers.read_complete_marker(directory, "tokenize")
    if marker is not None:
        tokens, source = marker.summary["tokens"], "counted by the tokenize phase"
        reference, train, held_out = (tokens.get(x, 0) for x in ("reference", "train", "held_out"))
        most = config.evaluation.max_documents
        documents = held_out_documents(directory, most) if held_out else {}
        measured = sum(pc.sum(part["tokens"]).as_py() for part in documents.values())
        return Corpus(reference, train, held_out, source, measured)
    if corpus_tokens is not None:
        total, source = corpus_tokens, "as given by --corpus_tokens"
    else:
        chunks = [chunk for part in plan_parts(config.corpus) for chunk in part]
        sizes = [chunk.item.size / chunk.record_slice.count for chunk in chunks]
        total = sum(sizes) / BYTES_PER_TOKEN
        source = (
            f"estimated from the files' sizes at {BYTES_PER_TOKEN:g} bytes a token, because the "
            "corpus is not tokenized yet (compressed files hold several times more: say "
            "--corpus_tokens)"
        )
    reference, held_out = config.corpus.reference_fraction, config.corpus.held_out_fraction
    train = 1 - reference - held_out
    return Corpus(int(total * reference), int(total * train), int(total * held_out), source)


def read_mixture(config: RunConfig, states: dict[str, PhaseStepState]) -> Mixture | None:
    """How often each group is read, if the corpus is tokenized; by quadrant if partitioned."""
    directory = RunDirectory(config.run_directory)
    if config.partition.mixture is None or states["tokenize"].fraction_left > 0:
        return None
    if "partition" in states and states["partition"].fraction_left == 0:
        return read_partition_record(directory).mixture
    return tokenized_mixture(config.partition, directory)


def read_states(
    config: RunConfig, phase_steps: list[PhaseStep], corpus_may_be_absent: bool
) -> dict[str, PhaseStepState]:
    """Reads how far each phase step has come."""
    directory = RunDirectory(config.run_directory)
    try:
        corpus, changes = compare_inventory(config, directory)
        corpus = "changed" if changes else corpus
    except UserError:
        if not corpus_may_be_absent:
            raise
        corpus = ""
    weights = recorded_digest(config, directory)
    expected = markers.expected_markers(config, phase_steps, corpus, weights)
    states = {}
    for phase_step in phase_steps:
        marker = markers.read_marker(directory, phase_step.name)
        if marker is None:
            state = PhaseStepState("to do", 1.0)
        elif marker.fingerprint != expected[phase_step.name].fingerprint:
            stale = "made under other settings" if phase_step.phase != "report" else "to do again"
            state = PhaseStepState(stale, 1.0)
        elif marker.complete:
            state = PhaseStepState("complete", 0.0)
        else:
            state = progress_text(config, directory, phase_step)
        states[phase_step.name] = state
    return states


def progress_text(
    config: RunConfig, directory: RunDirectory, phase_step: PhaseStep
) -> PhaseStepState:
    """Describes an incomplete phase step: parts written, or the newest checkpoint."""
    folder = directory.root / phase_step.outputs[0]
    if phase_step.name in ("tokenize", "score"):
        done, total, noun = len(list_parts(folder, ".parquet")), config.corpus.parts, "parts"
    elif phase_step.name == "reference-rows":
        done, total, noun = count_row_files(folder), config.reference.rows.parts, "parts"
    elif phase_step.name == "partition":
        rows, quadrants = config.partition.rows, config.partition.axes.quadrants
        done, total, noun = count_row_files(folder), rows.parts * len(quadrants), "parts of rows"
    elif (folder / "curriculum.json").exists():
        names = [path.name for path in (folder / "checkpoints").glob("*")]
        done = max((int(name) for name in names if name.isdigit()), default=0)
        total, noun = load_trial_record(folder).steps, "steps saved"
    else:
        return PhaseStepState("begun", 1.0)
    return PhaseStepState(f"begun: {done:,} of {total:,} {noun}", 1 - done / max(total, 1))


def count_row_files(folder: Path) -> int:
    """Counts the row files under a folder of quadrants."""
    return len(list(folder.glob("*/part-*-of-*.json")))


def trial_schedule(config: RunConfig, corpus: Corpus, name: str) -> tuple[DataSchedule, str]:
    """The schedule of an arm, and a warning where the corpus looks too small for its steps.

    Rows of each quadrant are counted if partitioned, else equal shares of the tokens to be read.
    """
    training, quadrants = config.pretrain.training, config.partition.axes.quadrants
    length, note = config.partition.rows.sequence_length, ""
    directory = RunDirectory(config.run_directory)
    if markers.read_complete_marker(directory, "partition") is not None:
        counted = read_json(directory.quadrants / "rows.json")
        rows = {quadrant: counted[quadrant]["rows"] for quadrant in quadrants}
    else:
        held = (corpus.train if corpus.read is None else corpus.read) // (length + 1)
        needed = -(-(training.steps or 0) * training.batch_size // config.curricula[name].epochs)
        if needed > held:
            note = (
                f"{name}: {training.steps:,} steps of {training.batch_size:,} rows need "
                f"{needed:,} rows an epoch, and the corpus has about {held:,}: as things stand "
                "pretraining would be refused\n"
            )
        rows = dict.fromkeys(quadrants, max(1, -(-max(held, needed) // len(quadrants))))
    return arm_schedule(config, name, rows), note


def print_order(config: RunConfig, schedule: DataSchedule, name: str) -> RenderableType:
    """Formats the stages of one curriculum."""
    training, length = config.training_of_arm(name), config.partition.rows.sequence_length
    steps = schedule.steps(training.batch_size)
    header = ["stage", "rows", "tokens", "first step", "last step", "learning rate"]
    lines, stage_starts = [header], schedule.stage_starts(training.batch_size)
    for stage, start, stop in schedule.run_stages:
        first = start // training.batch_size
        last = min(steps, -(-stop // training.batch_size)) - 1
        ends = np.array([first, last])
        rates = np.asarray(learning_rate(training.lr_schedule, ends, steps, stage_starts))
        numbers = (stop - start, (stop - start) * length, first, last)
        rate = f"{rates[0]:.2e} to {rates[1]:.2e}"
        lines.append([stage, *(f"{number:,}" for number in numbers), rate])
    return text_table(f"{name}: {steps:,} steps", lines)
