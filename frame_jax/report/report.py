"""The report phase: a run directory in, RUN/report/index.html and its figures as PNGs out.

Everything is read from files, so the report of a run copied from elsewhere is made the same way.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import vl_convert

from frame_jax.config.run import RunConfig
from frame_jax.errors import UserError, printable
from frame_jax.parallel import processes
from frame_jax.report import chapters, figures, page, training_curves
from frame_jax.report.chapters import Figure, Piece, Trained
from frame_jax.report.held_out_results import differences, read_results
from frame_jax.report.html import Html, tag
from frame_jax.report.theme import THEMES
from frame_jax.report.training_curves import read_arm
from frame_jax.run.directory import RunDirectory, atomic_path, read_json

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
    return write(f"FRAME report: {directory.root.name}", contents(config, directory), directory)


def read(config: RunConfig, directory: RunDirectory) -> Trained:
    """The arms of a run and their results.

    Raises:
        UserError: if there is none.
    """
    found = [read_arm(directory.pretrain(name), name) for name in config.curricula]
    arms = [arm for arm in found if arm is not None]
    if not arms:
        raise UserError(f"{directory.root / 'pretrain'}: nothing has been trained to report on")
    every = read_results(directory)
    results = {arm.name: every[arm.name] for arm in arms if arm.name in every}
    shaded = max(arms, key=lambda arm: (len(arm.stages) > 1, arm.name == "frame"))
    series = [row for arm in arms for row in training_curves.series(arm)]
    return Trained(arms, series, results, differences(directory, results), shaded)


def contents(config: RunConfig, directory: RunDirectory) -> list[Piece]:
    """The whole report, in order."""
    trained = read(config, directory)
    cells = list(read_json(directory.partition)["cells"])
    return [
        *chapters.overview(trained),
        *chapters.training_loss(trained),
        *chapters.held_out_loss(trained),
        *chapters.tasks(trained),
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
