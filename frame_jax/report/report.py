"""The report phase: a run directory in, RUN/report/index.html, its PNGs and verdict.json out.

Everything is read from files, so the report of a run copied from elsewhere is made the same way.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import vl_convert

from frame_jax.config.run import RunConfig
from frame_jax.errors import UserError, printable
from frame_jax.parallel import processes
from frame_jax.report import chapters, figures, page, study_chapters, training_curves
from frame_jax.report.chapters import Figure, Piece, Trained
from frame_jax.report.forgotten import forgotten_rows
from frame_jax.report.held_out_results import read_results
from frame_jax.report.html import Html, tag
from frame_jax.report.study import read_study
from frame_jax.report.theme import THEMES
from frame_jax.report.training_curves import read_arm
from frame_jax.run.directory import RunDirectory, atomic_path, read_json, write_json

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
    study = read_study(config, directory)
    pieces = contents(config, directory, study)
    write_json(directory.report / "verdict.json", study)
    return write(f"FRAME report: {directory.root.name}", pieces, directory)


def read(config: RunConfig, directory: RunDirectory, study: dict[str, Any]) -> Trained:
    """The arms of a run under its first seed, their results, and the study over all seeds.

    Raises:
        UserError: if there is none.
    """
    trials = [trial for trial in config.trials if trial.seed == config.all_seeds[0]]
    folders = {trial.arm: directory.pretrain(trial.name) for trial in trials}
    found = [read_arm(folder, arm) for arm, folder in folders.items()]
    arms = [arm for arm in found if arm is not None]
    if not arms:
        raise UserError(f"{directory.root / 'pretrain'}: nothing has been trained to report on")
    every = read_results(directory)
    named = {trial.arm: trial.name for trial in trials}
    results = {arm.name: every[named[arm.name]] for arm in arms if named[arm.name] in every}
    shaded = max(arms, key=lambda arm: (len(arm.stages) > 1, arm.name == "frame"))
    series = [row for arm in arms for row in training_curves.series(arm)]
    rows = forgotten_rows(config, directory)
    return Trained(arms, series, results, shaded, folders, study, rows)


def contents(config: RunConfig, directory: RunDirectory, study: dict[str, Any]) -> list[Piece]:
    """The whole report, in order."""
    trained = read(config, directory, study)
    cells = list(read_json(directory.partition)["cells"])
    return [
        *study_chapters.verdicts(trained),
        *chapters.training_loss(trained),
        *chapters.held_out_loss(trained),
        *study_chapters.forgotten(trained),
        *chapters.tasks(trained),
        *study_chapters.cost(trained),
        *chapters.mixtures(trained, cells),
        *chapters.quadrants(directory),
        *chapters.speed(trained, directory),
        *chapters.settings(config),
    ]


def write(title: str, pieces: list[Piece], directory: RunDirectory) -> dict[str, Any]:
    """Writes the page and one PNG a figure."""
    body, specs, names = [tag("h1", title)], {}, []
    for piece in pieces:
        if isinstance(piece, Html):
            body.append(piece)
            continue
        names.append(piece.name)
        body.append(place(piece))
        for index, panel in enumerate(piece.panels):
            specs[f"{piece.name}-{index}"] = for_page(drawable(panel.to_dict()))
        sheet = figures.print_sheet(piece.panels)
        write_png(directory.report / f"{piece.name}.png", drawable(sheet.to_dict()))
    path = directory.report / "index.html"
    with atomic_path(path) as temporary:
        temporary.write_text(page.render(title, body, specs), "utf-8")
    return {
        "page": str(path.relative_to(directory.root)),
        "bytes": path.stat().st_size,
        "figures": names,
    }


def place(figure: Figure) -> Html:
    """Where `page.js` draws the panels of a figure."""
    panels = [
        tag(
            "div",
            class_="chart",
            id=f"{figure.name}-{index}",
            data_figure=f"{figure.name}-{index}",
            data_renderer=figure.renderer,
        )
        for index in range(len(figure.panels))
    ]
    drawn = tag("div", *panels, class_="grid" if len(panels) > 1 else None)
    return tag("figure", drawn, *([tag("figcaption", figure.caption)] if figure.caption else []))


def drawable(value: Any) -> Any:
    """A figure's specification with control characters in its texts spelled out.

    PNGs are made by way of XML, which cannot hold them: the renderer ends the whole program.
    """
    if isinstance(value, dict):
        return {drawable(name): drawable(item) for name, item in value.items()}
    if isinstance(value, list):
        return [drawable(item) for item in value]
    return printable(value) if isinstance(value, str) else value


def for_page(spec: dict[str, Any]) -> dict[str, Any]:
    """The figure as wide as its place, without the legend of arms: the page's buttons are it."""
    return {**spec, "width": "container", "config": {"legend": {"disable": True}}}


def write_png(path: Path, spec: dict[str, Any]) -> None:
    """Renders a figure without a browser or a network."""
    image = vl_convert.vegalite_to_png(
        spec, scale=PNG_SCALE, config=THEMES["light"], allowed_base_urls=[]
    )
    with atomic_path(path) as temporary:
        temporary.write_bytes(image)
