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
from frame_jax.report.chapters import Figure, Piece, ReportData
from frame_jax.report.held_out_results import read_results
from frame_jax.report.html import Html, tag
from frame_jax.report.study import read_study
from frame_jax.report.theme import THEMES
from frame_jax.report.training_curves import read_trial_curves
from frame_jax.report.training_row_differences import training_row_differences
from frame_jax.run.directory import RunDirectory, atomic_path, read_json, write_json

PNG_SCALE = 2


def write_report(config: RunConfig, directory: RunDirectory) -> dict[str, Any]:
    """Writes the report; called on every process, does its work on the first.

    Returns:
        The page's path relative to the run directory, its size in bytes, and the figures' names.

    Raises:
        UserError: if no arm has been trained.
    """
    if not processes.is_first():
        return {}
    study = read_study(config, directory)
    pieces = report_contents(config, directory, study)
    write_json(directory.report / "verdict.json", study)
    return write_page(f"FRAME report: {directory.root.name}", pieces, directory)


def read_report_data(
    config: RunConfig, directory: RunDirectory, study: dict[str, Any]
) -> ReportData:
    """The arms of a run under its first seed, their results, and the study over all seeds.

    Raises:
        UserError: if there is none.
    """
    trials = [trial for trial in config.trials if trial.seed == config.all_seeds[0]]
    folders = {trial.arm: directory.pretrain(trial.name) for trial in trials}
    found = [read_trial_curves(folder, arm) for arm, folder in folders.items()]
    arms = [arm for arm in found if arm is not None]
    if not arms:
        raise UserError(f"{directory.root / 'pretrain'}: nothing has been trained to report on")
    every = read_results(directory)
    named = {trial.arm: trial.name for trial in trials}
    results = {arm.name: every[named[arm.name]] for arm in arms if named[arm.name] in every}
    shaded = max(arms, key=lambda arm: (len(arm.stages) > 1, arm.name == "frame"))
    series = [row for arm in arms for row in training_curves.thinned_series(arm)]
    rows = training_row_differences(config, directory)
    return ReportData(arms, series, results, shaded, folders, study, rows)


def report_contents(
    config: RunConfig, directory: RunDirectory, study: dict[str, Any]
) -> list[Piece]:
    """The whole report, in order."""
    trained = read_report_data(config, directory, study)
    quadrants = list(read_json(directory.partition)["quadrants"])
    return [
        *study_chapters.verdicts_chapter(trained),
        *chapters.training_loss_chapter(trained),
        *chapters.held_out_loss_chapter(trained),
        *study_chapters.forgetting_chapter(trained),
        *chapters.tasks_chapter(trained),
        *study_chapters.cost_chapter(trained),
        *chapters.mixtures_chapter(trained, quadrants),
        *chapters.quadrants_chapter(directory),
        *chapters.speed_chapter(trained, directory),
        *chapters.settings_chapter(config),
    ]


def write_page(title: str, pieces: list[Piece], directory: RunDirectory) -> dict[str, Any]:
    """Writes the page and one PNG a figure."""
    body, specs, names = [tag("h1", title)], {}, []
    for piece in pieces:
        if isinstance(piece, Html):
            body.append(piece)
            continue
        names.append(piece.name)
        body.append(figure_container(piece))
        for index, panel in enumerate(piece.panels):
            specs[f"{piece.name}-{index}"] = page_figure(escape_control_characters(panel.to_dict()))
        sheet = figures.print_sheet(piece.panels)
        write_png(
            directory.report / f"{piece.name}.png", escape_control_characters(sheet.to_dict())
        )
    path = directory.report / "index.html"
    with atomic_path(path) as temporary:
        temporary.write_text(page.render(title, body, specs), "utf-8")
    return {
        "page": str(path.relative_to(directory.root)),
        "bytes": path.stat().st_size,
        "figures": names,
    }


def figure_container(figure: Figure) -> Html:
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


def escape_control_characters(value: Any) -> Any:
    """A figure's specification with control characters in its texts spelled out.

    PNGs are made by way of XML, which cannot hold them: the renderer ends the whole program.
    """
    if isinstance(value, dict):
        return {
            escape_control_characters(name): escape_control_characters(item)
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [escape_control_characters(item) for item in value]
    return printable(value) if isinstance(value, str) else value


def page_figure(spec: dict[str, Any]) -> dict[str, Any]:
    """The figure as wide as its place, without the legend of arms: the page's buttons are it."""
    return {**spec, "width": "container", "config": {"legend": {"disable": True}}}


def write_png(path: Path, spec: dict[str, Any]) -> None:
    """Renders a figure without a browser or a network."""
    image = vl_convert.vegalite_to_png(
        spec, scale=PNG_SCALE, config=THEMES["light"], allowed_base_urls=[]
    )
    with atomic_path(path) as temporary:
        temporary.write_bytes(image)
