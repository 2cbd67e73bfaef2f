"""Makes the chapters of a report: figures, tables and notes."""

import dataclasses
import platform
from collections.abc import Callable
from importlib import metadata
from typing import Literal

from frame_jax.config.run import RunConfig
from frame_jax.config.settings import settings_as_yaml
from frame_jax.corpus.rejected import summary_messages
from frame_jax.evaluation.results import TrialResult
from frame_jax.models.transformer import read_description
from frame_jax.report import documents, figures, notes, sections, task_results, training_curves
from frame_jax.report.held_out_curves import TrainingRowPoint, difference_curves, loss_curves
from frame_jax.report.html import Html, folded_section, note, table, tag
from frame_jax.report.page import Figure, Piece
from frame_jax.report.study_results import BEFORE, Study
from frame_jax.report.training_curves import CurvePoint, TrainingRun
from frame_jax.run.directory import RunDirectory
from frame_jax.run.markers import Marker, read_marker
from frame_jax.run.partition_record import RELIABILITY_HEADER, PartitionRecord
from frame_jax.run.phases import REFERENCES

LIBRARIES = (
    *("frame-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "array_record"),
    *("tokenizers", "numpy", "duckdb", "pyarrow", "altair", "vl-convert-python"),
)
MESSAGES = {"tokenize": "tokenizer", "score": "warnings", "partition": "warnings"}  # in summaries


@dataclasses.dataclass(frozen=True)
class ReportData:
    """What the chapters share.

    Attributes:
        arms: The trained arms under the first seed, in the order of the config.
        curves: Their thinned metrics.
        results: Results of those that have been evaluated, in the same order.
        shaded: The arm whose stages are shaded in the figures.
        study: Arms against the baseline under all seeds.
        training_rows: Arms against the baseline on training rows, under all seeds.
    """

    arms: list[TrainingRun]
    curves: list[CurvePoint]
    results: dict[str, TrialResult]
    shaded: TrainingRun
    study: Study
    training_rows: list[TrainingRowPoint]

    @property
    def names(self) -> list[str]:
        """The names of the arms."""
        return [arm.name for arm in self.arms]

    @property
    def continued(self) -> bool:
        """Whether the arms were continued from a model, which was measured too."""
        return len(self.study.before) > 0


def stage_tables(data: ReportData, make_table: Callable[[TrainingRun], Html]) -> list[Piece]:
    """A table for each arm of several stages; that of the shaded arm is open."""
    tables: list[Piece] = []
    for arm in data.arms:
        if len(arm.stages) > 1:
            shown = make_table(arm)
            tables.append(shown if arm is data.shaded else folded_section(arm.name, shown))
    return tables


def training_loss_chapter(data: ReportData) -> list[Piece]:
    """The loss of all arms, and what happens to it where a stage begins."""
    points = min(training_curves.POINTS, data.shaded.record.steps)
    caption = notes.LOSS.format(arm=data.shaded.name, smooth=(2 * figures.SMOOTH + 1) / points)
    panel = figures.training_loss(data.curves, data.shaded, data.names)
    found: list[Piece] = [tag("h2", "Training loss"), Figure("training-loss", [panel], caption)]
    drops = stage_tables(data, lambda arm: sections.drops_table(data.study.stages[arm.name]))
    if drops:
        windows = notes.DROPS_WINDOWS.format(window=training_curves.WINDOW, gap=training_curves.GAP)
        found += [tag("h2", "Where a stage begins"), *drops, note(windows), tag("p", notes.DROPS)]
    return found


def held_out_loss_chapter(data: ReportData) -> list[Piece]:
    """Curves and final losses on the held-out split; nothing where no arm was evaluated."""
    if not data.results:
        return []
    curves = loss_curves(data.results, data.continued)
    panel = figures.held_out(curves, data.shaded, data.names)
    slices = dict.fromkeys(name for r in data.results.values() for name in r.final.slices)
    found: list[Piece] = [
        tag("h2", "Held-out loss"),
        sections.slice_choice(list(slices)),
        Figure("held-out-loss", [panel], notes.HELD_OUT),
    ]
    baseline = data.study.baseline
    if differences := difference_curves(curves, baseline):
        panel = figures.held_out(differences, data.shaded, data.names, baseline)
        caption = notes.DIFFERENCE.format(baseline=baseline)
        found.append(Figure("held-out-difference", [panel], caption))
    before = {BEFORE: next(iter(data.results.values())).checkpoints[0]} if data.continued else {}
    measured = {arm: result.final for arm, result in data.results.items()} | before
    return [*found, sections.held_out_table(measured), note(notes.HELD_OUT_TABLE)]


def tasks_chapter(data: ReportData) -> list[Piece]:
    """Accuracies in multiple-choice tasks; nothing where no arm did one."""
    finals = task_results.final_scores(data.results)
    if not finals:
        return []
    arms = list(data.results)
    return [
        tag("h2", "Tasks"),
        task_results.answer_table(finals, arms),
        note(notes.ANSWERS),
        task_results.task_table(finals, arms),
        note(f"{notes.TASKS} {task_results.truncated_prompts(finals)}"),
    ]


def mixtures_chapter(data: ReportData, quadrants: list[str]) -> list[Piece]:
    """The shares of the quadrants in the batches of each arm."""
    panels = [
        figures.mixture(training_curves.mixture_curve(arm), quadrants, arm.name)
        for arm in data.arms
    ]
    return [tag("h2", "What the batches were made of"), Figure("mixture", panels, notes.MIXTURE)]


def quadrants_chapter(directory: RunDirectory, partition: PartitionRecord) -> list[Piece]:
    """Where the documents lie, how many tokens each quadrant has, and what is in them."""
    columns, quadrants = partition.group_by or ("domain",), list(partition.quadrants)
    names, model = partition.names, partition.ppl_model
    scale: Literal["log", "linear"] = "linear" if model is None else "log"
    tiles = documents.token_density(directory, columns, scale)
    labels = list(dict.fromkeys(tile.label for tile in tiles))
    lines = documents.threshold_lines(partition, labels)
    balance = documents.token_balance(directory, columns)
    meanings = sections.meanings(quadrants, names)
    title, caption = "Perplexity and perplexity difference", notes.DENSITY.format(model=model)
    if model is None:
        title = f"{names[0]} and {names[1]}"
        caption = notes.DENSITY_ELSEWHERE.format(ppl=names[0], pd=names[1])
    panels = [figures.density(tiles, lines, label, names, scale) for label in labels]
    read_table: list[Piece] = []
    if partition.mixture is not None:
        header, *rows = partition.mixture.lines()
        read_table = [tag("h2", "How often documents are read"), table(header, rows)]
        read_table.append(note(notes.REPEATS))
    return [
        tag("h2", title),
        Figure("density", panels, caption + notes.DENSITY_TILES, renderer="canvas"),
        tag("h2", "The quadrants"),
        sections.quadrant_table(partition.quadrants, meanings, names),
        *reliability_tables(partition),
        Figure("balance", [figures.balance(balance, quadrants)], notes.BALANCE),
        *read_table,
    ]


def reliability_tables(partition: PartitionRecord) -> list[Piece]:
    """How far scores and quadrants depend on the reference models; nothing where it is unknown."""
    if not partition.reliability:
        return []
    lines = [each.line() for each in partition.reliability]
    title = "The same documents under other reference models"
    return [tag("h2", title), table(RELIABILITY_HEADER, lines), note(notes.RELIABILITY)]


def speed_chapter(data: ReportData, directory: RunDirectory) -> list[Piece]:
    """Tokens a second, MFU and goodput of the arms, and what the reference models were."""
    references = [
        run
        for name in REFERENCES
        if (run := training_curves.read_training_run(directory.reference(name), name)) is not None
    ]
    models = [
        (run, read_description(run.folder), training_curves.training_speed(run))
        for run in (*references, *data.arms)
    ]
    speeds = sections.models_table(models)
    return [tag("h2", "Models and speed"), speeds, note(notes.SPEED)]


def phase_messages(directory: RunDirectory) -> list[str]:
    """The messages of the phases on what they decided or rejected, as on the terminal."""
    tokenized = read_marker(directory, "tokenize")
    lines = [] if tokenized is None else summary_messages(tokenized.summary, directory)
    for phase_step, key in MESSAGES.items():
        marker = read_marker(directory, phase_step) or Marker()
        lines += [line for line in marker.summary.get(key, []) if line not in lines]
    return lines


def settings_chapter(config: RunConfig) -> list[Piece]:
    """Everything that is needed to make the run again."""
    versions = [["python", platform.python_version()], ["platform", platform.platform()]]
    versions += [[name, metadata.version(name)] for name in LIBRARIES]
    return [
        tag("h2", "Settings and versions"),
        *(tag("p", line) for line in phase_messages(RunDirectory(config.run_directory))),
        folded_section("Every setting of the run", tag("pre", settings_as_yaml(config))),
        folded_section("Versions", table(["library", "version"], versions)),
    ]
