"""What has been read of a run in, its report out, chapter by chapter: figures, tables, notes."""

from __future__ import annotations

import dataclasses
import platform
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import yaml

from frame_jax.config.run import RunConfig
from frame_jax.corpus.summary_messages import read_summary_messages
from frame_jax.models.functional import read_description
from frame_jax.report import (
    documents,
    figures,
    notes,
    sections,
    task_results,
    training_curves,
)
from frame_jax.report.held_out_results import (
    Result,
    curve_rows,
    difference_rows,
    slice_labels,
)
from frame_jax.report.html import Html, table, tag
from frame_jax.report.training_curves import TrialCurves
from frame_jax.run.directory import RunDirectory, axis_names, read_json

LIBRARIES = (
    *("frame-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "array_record"),
    *("tokenizers", "numpy", "duckdb", "pyarrow", "altair", "vl-convert-python"),
)


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure of the report.

    Attributes:
        name: Of its PNG, and of its place on the page.
        panels: Its charts; several are a grid.
        caption: Text below it.
        renderer: `svg`, or `canvas` for panels of thousands of marks.
    """

    name: str
    panels: list[figures.Panel]
    caption: str = ""
    renderer: str = "svg"


Piece = Html | Figure

TASK_PANELS = 12  # drawn; the table has them all
SPEED_POINTS = 120  # of a curve: speed jitters more than it says


@dataclasses.dataclass(frozen=True)
class ReportData:
    """What the chapters share.

    Attributes:
        arms: The trained arms, in the order of the config.
        series: Their thinned metrics, see `training_curves.thinned_series`.
        results: Held-out results of those that have been evaluated, in the same order.
        shaded: The arm whose stages are shaded in the figures.
        folders: Where each arm was trained.
        study: Arms against the baseline, of all seeds, see `study.read_study`; all else is of one.
        training_rows: Final loss on training rows minus the baseline's, by when they were trained
            on: rows of arm, tokens, difference.
    """

    arms: list[TrialCurves]
    series: list[dict[str, Any]]
    results: dict[str, Result]
    shaded: TrialCurves
    folders: dict[str, Path]
    study: dict[str, Any]
    training_rows: list[dict[str, Any]]

    @property
    def baseline(self) -> str:
        return str(self.study["baseline"])

    @property
    def names(self) -> list[str]:
        return [arm.name for arm in self.arms]


def training_loss_chapter(data: ReportData) -> list[Piece]:
    """The loss of all arms, and what happens to it where a stage begins."""
    bands = training_curves.stage_bands(data.shaded)
    points = min(training_curves.POINTS, data.shaded.steps)
    note = notes.LOSS.format(arm=data.shaded.name, smooth=(2 * figures.SMOOTH + 1) / points)
    loss = Figure("training-loss", [figures.training_loss(data.series, bands, data.names)], note)
    drops: list[Piece] = []
    for arm in data.arms:
        if len(arm.stages) > 1:
            lines = training_curves.training_drops(arm)
            shown = sections.drops_table(lines, data.results.get(arm.name))
            drops.append(shown if arm is data.shaded else sections.folded_section(arm.name, shown))
    if drops:
        windows = notes.DROPS_WINDOWS.format(window=training_curves.WINDOW, gap=training_curves.GAP)
        drops = [
            tag("h2", "Where a stage begins"),
            *drops,
            tag("p", windows, class_="note"),
            tag("p", notes.DROPS),
        ]
    return [tag("h2", "Training loss"), loss, sections.zoom_buttons("training-loss"), *drops]


def held_out_loss_chapter(data: ReportData) -> list[Piece]:
    """Curves and final losses on the held-out split; nothing where no arm was evaluated."""
    if not data.results:
        return []
    bands = training_curves.stage_bands(data.shaded)
    curve = curve_rows(data.results)
    averaged = any(result["ema"] for result in data.results.values())
    found: list[Piece] = [
        tag("h2", "Held-out loss"),
        sections.slice_choice(slice_labels(data.results)),
        Figure(
            "held-out-loss",
            [figures.held_out_loss(curve, bands, data.names)],
            notes.HELD_OUT + (notes.AVERAGE if averaged else ""),
        ),
    ]
    differences = difference_rows(curve, data.baseline)
    if differences:
        panel = figures.held_out_difference(differences, bands, data.names, data.baseline)
        found.append(
            Figure("held-out-difference", [panel], notes.DIFFERENCE.format(baseline=data.baseline))
        )
    table_note = tag("p", notes.HELD_OUT_TABLE, class_="note")
    return [*found, sections.held_out_table(data.results), table_note]


def tasks_chapter(data: ReportData) -> list[Piece]:
    """Accuracies in multiple-choice tasks; nothing where no arm did one."""
    finals = task_results.final_scores(data.results)
    if not finals:
        return []
    note = " ".join([notes.TASKS, task_results.truncated_prompts(finals)])
    found: list[Piece] = [tag("h2", "Tasks")]
    answers = task_results.answer_table(finals, list(data.results))
    if answers is not None:
        found += [answers, tag("p", notes.ANSWERS, class_="note")]
    found += [
        task_results.task_table(finals, list(data.results)),
        tag("p", note, class_="note"),
    ]
    rows = task_results.curve_rows(data.results)
    drawn = list(dict.fromkeys(row["task"] for row in rows))[:TASK_PANELS]
    if drawn:
        panels = [figures.accuracy(rows, data.names, task) for task in drawn]
        found.append(Figure("tasks", panels, notes.TASK_CURVES))
    return found


def mixtures_chapter(data: ReportData, quadrants: list[str]) -> list[Piece]:
    """What each arm was fed."""
    panels = [
        figures.mixture(training_curves.mixture_series(arm), quadrants, arm.name)
        for arm in data.arms
    ]
    return [tag("h2", "What the batches were made of"), Figure("mixture", panels, notes.MIXTURE)]


def quadrants_chapter(directory: RunDirectory) -> list[Piece]:
    """Where the documents lie, how many tokens each quadrant has, and what is in them."""
    partition = read_json(directory.partition)
    columns, quadrants = documents.label_columns(partition), list(partition["quadrants"])
    names, model = axis_names(directory), partition["ppl_model"]
    scale: Literal["log", "linear"] = "linear" if model is None else "log"
    tiles = documents.token_density(directory.assignment, columns, scale)
    labels = list(dict.fromkeys(row["label"] for row in tiles))
    lines = documents.threshold_lines(partition, labels)
    balance = documents.token_balance(directory.assignment, columns)
    meanings = sections.meanings(quadrants, names)
    title, note = "Perplexity and perplexity difference", notes.DENSITY.format(model=model)
    if model is None:
        title = f"{names[0]} and {names[1]}"
        note = notes.DENSITY_ELSEWHERE.format(ppl=names[0], pd=names[1])
    return [
        tag("h2", title),
        Figure(
            "density",
            [figures.density(tiles, lines, label, names, scale) for label in labels],
            note,
            renderer="canvas",
        ),
        tag("h2", "The quadrants"),
        sections.quadrant_table(partition["quadrants"], meanings, names),
        Figure("balance", [figures.balance(balance, quadrants)], notes.BALANCE),
        sections.folded_section("Tokens by group", sections.balance_table(balance, quadrants)),
        tag("h2", "Example documents"),
        tag("p", notes.EXAMPLES, class_="note"),
        *sections.example_documents(documents.choose_examples(directory, columns), meanings, names),
    ]


def speed_chapter(data: ReportData, directory: RunDirectory) -> list[Piece]:
    """Tokens a second, MFU and goodput of the arms, and what the reference models were."""
    references = [
        arm
        for name in ("weak", "strong")
        if (arm := training_curves.read_trial_curves(directory.reference(name), name)) is not None
    ]
    folders = [
        *(directory.reference(arm.name) for arm in references),
        *(data.folders[arm.name] for arm in data.arms),
    ]
    models = [
        (arm, read_description(folder), training_curves.training_speed(arm))
        for arm, folder in zip([*references, *data.arms], folders, strict=True)
    ]
    series = [row for arm in data.arms for row in training_curves.thinned_series(arm, SPEED_POINTS)]
    return [
        tag("h2", "Models and speed"),
        Figure("throughput", [figures.throughput(series, data.names)]),
        sections.models_table(models),
        tag("p", notes.SPEED, class_="note"),
    ]


def phase_messages(directory: RunDirectory) -> list[str]:
    """What the phases decided, rejected or doubted, as on the terminal."""
    lines = read_summary_messages(directory)
    for phase_step, key in (
        ("tokenize", "tokenizer"),
        ("score", "warnings"),
        ("partition", "warnings"),
    ):
        marker = directory.marker(phase_step)
        found = read_json(marker).get("summary", {}).get(key, []) if marker.exists() else []
        lines += [line for line in found if line not in lines]
    return lines


def settings_chapter(config: RunConfig) -> list[Piece]:
    """Everything that is needed to make the run again."""
    text = yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)
    versions = [["python", platform.python_version()], ["platform", platform.platform()]]
    versions += [[name, metadata.version(name)] for name in LIBRARIES]
    return [
        tag("h2", "Settings and versions"),
        *(tag("p", line) for line in phase_messages(RunDirectory(config.run_directory))),
        sections.folded_section("Every setting of the run", tag("pre", text)),
        sections.folded_section("Versions", table(["library", "version"], versions)),
    ]
