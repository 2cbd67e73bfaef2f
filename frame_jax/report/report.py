"""The report phase: a run directory in, RUN/report/index.html and its figures as PNGs out.

Everything is read from files, so the report of a run copied from elsewhere is made the same way.
"""

from __future__ import annotations

import dataclasses
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import vl_convert
import yaml

from frame_jax.config import RunConfig
from frame_jax.errors import UserError
from frame_jax.parallel import processes
from frame_jax.report import documents, figures, page, sections, training_curves
from frame_jax.report.held_out_results import curve_rows, differences, read_results
from frame_jax.report.html import Html, table, tag
from frame_jax.report.training_curves import Arm
from frame_jax.run_directory import RunDirectory, atomic_path, read_json

LIBRARIES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "array_record", "tokenizers"),
    *("numpy", "duckdb", "pyarrow", "altair", "vl-convert-python"),
)
PNG_SCALE = 2


def run(config: RunConfig, directory: RunDirectory) -> dict[str, Any]:
    """Writes the report; called on every process, does its work on the first.

    Returns:
        The page's path relative to the run directory, its size in bytes, and the figures' names.

    Raises:
        UserError: if no arm has been trained.
    """
    if not processes.is_first():
        return {}
    arms = [training_curves.read_arm(directory, name) for name in config.curricula]
    trained = [arm for arm in arms if arm is not None]
    if not trained:
        raise UserError(f"{directory.root / 'pretrain'}: nothing has been trained to report on")
    return write(config, directory, trained)


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a report shows.

    Attributes:
        title: Of the page.
        body: Its pieces, in order.
        panels: Charts by figure; a figure of several panels is a grid on the page.
    """

    title: str
    body: list[Html]
    panels: dict[str, list[figures.Panel]]


def write(config: RunConfig, directory: RunDirectory, arms: list[Arm]) -> dict[str, Any]:
    """Writes the page and one PNG a figure."""
    found = contents(config, directory, arms)
    specs = {}
    for name, panels in found.panels.items():
        for index, panel in enumerate(panels):
            specs[f"{name}-{index}"] = for_page(panel.to_dict())
        write_png(directory.report / f"{name}.png", figures.print_sheet(panels).to_dict())
    index_path = directory.report / "index.html"
    with atomic_path(index_path) as temporary:
        temporary.write_text(page.render(found.title, found.body, specs), "utf-8")
    return {
        "page": str(index_path.relative_to(directory.root)),
        "bytes": index_path.stat().st_size,
        "figures": sorted(found.panels),
    }


def for_page(spec: dict[str, Any]) -> dict[str, Any]:
    """The figure as wide as its place, without the legend of arms: the page's buttons are it."""
    return {
        **spec,
        "width": "container",
        "config": {"legend": {"disable": True}},
    }


def write_png(path: Path, spec: dict[str, Any]) -> None:
    """Renders a figure without a browser or a network."""
    image = vl_convert.vegalite_to_png(
        spec, scale=PNG_SCALE, config=figures.THEMES["light"], allowed_base_urls=[]
    )
    with atomic_path(path) as temporary:
        temporary.write_bytes(image)


def contents(config: RunConfig, directory: RunDirectory, arms: list[Arm]) -> Contents:
    """Reads the run directory and lays out the page."""
    names = [arm.name for arm in arms]
    results = {arm: r for arm, r in read_results(directory).items() if arm in names}
    results = {name: results[name] for name in names if name in results}
    against = differences(directory, results)
    speeds = {arm.name: training_curves.speed(arm) for arm in arms}
    series = [row for arm in arms for row in training_curves.series(arm)]
    staged = max(arms, key=lambda arm: (len(arm.stages) > 1, arm.name == "frame"))
    bands = training_curves.stage_bands(staged)
    cells = documents.density(directory.assignment)
    thresholds = documents.thresholds(read_json(directory.partition))
    balance = documents.balance(directory.assignment)
    quadrants = sorted({row["quadrant"] for row in balance})

    panels: dict[str, list[figures.Panel]] = {
        "training-loss": [figures.training_loss(series, bands, names)],
        "throughput": [figures.throughput(series, names)],
        "mixture": [
            figures.mixture(training_curves.mixture_series(arm), quadrants, arm.name)
            for arm in arms
        ],
        "balance": [figures.balance(balance, quadrants)],
        "density": [
            figures.density(cells, thresholds, label)
            for label in dict.fromkeys(row["label"] for row in cells)
        ],
    }
    if results:
        panels["held-out-loss"] = [figures.held_out_loss(curve_rows(results), bands, names)]

    def place(name: str, caption: str, renderer: str = "svg") -> Html:
        return page.figure(name, len(panels[name]), caption, renderer)

    title = f"FRAME report: {directory.root.name}"
    body = [
        tag("h1", title),
        sections.headline(results, against),
        sections.summary_table(results, against, speeds),
        *([tag("p", sections.ERROR_NOTE, class_="note")] if against else []),
        page.arm_buttons(names),
        tag("h2", "Training loss"),
        place("training-loss", sections.LOSS_NOTE.format(arm=staged.name)),
        page.zoom_buttons("training-loss"),
        tag("h2", "What happens when a stage begins"),
        *_drops(arms, results),
        tag("p", sections.DROPS_NOTE),
    ]
    if results:
        body += [
            tag("h2", "Held-out loss"),
            place("held-out-loss", sections.HELD_OUT_NOTE),
            sections.held_out_table(results),
        ]
    body += [
        tag("h2", "What the batches were made of"),
        place("mixture", sections.MIXTURE_NOTE),
        tag("h2", "Perplexity and perplexity difference of the documents"),
        place("density", sections.DENSITY_NOTE, "canvas"),
        tag("h2", "Balance of the quadrants"),
        place("balance", ""),
        sections.balance_table(balance, quadrants),
        tag("h2", "Example documents"),
        *sections.example_documents(documents.examples(directory), sections.meanings(quadrants)),
        tag("h2", "Speed"),
        place("throughput", ""),
        sections.speed_table(arms, speeds),
        tag("h2", "Settings and versions"),
        *_settings(config),
    ]
    return Contents(title, body, panels)


def _drops(arms: list[Arm], results: dict[str, Any]) -> list[Html]:
    found = []
    for arm in arms:
        if len(arm.stages) > 1:
            drops = sections.drops_table(training_curves.training_drops(arm), results.get(arm.name))
            found.append(drops if arm.name == "frame" else sections.folded(arm.name, drops))
    return found or [tag("p", "No order of this run has more than one stage.")]


def _settings(config: RunConfig) -> list[Html]:
    text = yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)
    versions = [["python", platform.python_version()], ["platform", platform.platform()]]
    versions += [[name, metadata.version(name)] for name in LIBRARIES]
    return [
        sections.folded("Every setting of the run", tag("pre", text)),
        sections.folded("Versions", table(["library", "version"], versions)),
    ]
