"""Writes the report of a run: RUN/report/index.html, its PNGs and verdict.json.

The page needs no network and has no script but its own. Everything is read from files, so the
report of a run copied from elsewhere is made the same way.
"""

import base64
import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import vl_convert

from frame_jax.config.run import RunConfig
from frame_jax.errors import UserError, printable
from frame_jax.evaluation.results import read_results
from frame_jax.parallel import processes
from frame_jax.report import chapters, figures, study_chapters, training_curves
from frame_jax.report.chapters import Piece, ReportData
from frame_jax.report.html import Html, join_html, script_json, tag
from frame_jax.report.paired_differences import training_row_differences
from frame_jax.report.study import read_study
from frame_jax.report.study_results import FILE, Study
from frame_jax.run.directory import RunDirectory, atomic_path, write_dataclass
from frame_jax.run.partition_record import read_partition_record

PNG_SCALE = 2
HERE = Path(__file__).parent
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"


def theme(ink: str, faint: str, paper: str, ramp: Sequence[str]) -> dict[str, Any]:
    """A Vega-Lite configuration."""
    axis = {
        "labelColor": ink,
        "titleColor": ink,
        "gridColor": faint,
        "domainColor": faint,
        "tickColor": faint,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "labelOverlap": True,
        "labelSeparation": 8,
    }
    return {
        "background": paper,
        "font": FONT,
        "view": {"stroke": None},
        "axis": axis,
        "legend": {"labelColor": ink, "titleColor": ink, "labelFontSize": 12, "symbolSize": 120},
        "title": {"color": ink, "fontSize": 13, "anchor": "start", "fontWeight": "normal"},
        "range": {"heatmap": list(ramp), "ramp": list(ramp)},
        "rule": {"color": ink},
        "text": {"color": ink, "fontSize": 12},
    }


THEMES = {
    "light": theme("#3d4650", "#e3e7eb", "#ffffff", ["#eaf2fb", "#7fb2e5", "#2567ad", "#0b2545"]),
    "dark": theme("#c3ccd6", "#2f3842", "#161b21", ["#1d2a3a", "#2b5f9c", "#63a8ee", "#e6f2ff"]),
}


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
    write_dataclass(directory.report / FILE, study)
    return write_page(f"FRAME report: {directory.root.name}", pieces, directory)


def read_report_data(config: RunConfig, directory: RunDirectory, study: Study) -> ReportData:
    """Reads the arms of a run under its first seed and their results.

    Raises:
        UserError: if no arm has been trained.
    """
    trials = {trial.arm: trial.name for trial in config.trials if trial.seed == config.all_seeds[0]}
    runs = [
        training_curves.read_training_run(directory.pretrain(name), arm)
        for arm, name in trials.items()
    ]
    arms = [run for run in runs if run is not None]
    if not arms:
        raise UserError(f"{directory.root / 'pretrain'}: nothing has been trained to report on")
    every = read_results(directory)
    return ReportData(
        arms,
        curves=[point for arm in arms for point in training_curves.thinned_curve(arm)],
        results={a.name: every[trials[a.name]] for a in arms if trials[a.name] in every},
        shaded=max(arms, key=lambda arm: (len(arm.stages) > 1, arm.name == "frame")),
        study=study,
        training_rows=training_row_differences(config, directory),
    )


def report_contents(config: RunConfig, directory: RunDirectory, study: Study) -> list[Piece]:
    """Makes the whole report, in order."""
    data = read_report_data(config, directory, study)
    partition = read_partition_record(directory)
    return [
        *study_chapters.verdicts_chapter(data),
        *chapters.training_loss_chapter(data),
        *chapters.held_out_loss_chapter(data),
        *study_chapters.forgetting_chapter(data),
        *chapters.tasks_chapter(data),
        *study_chapters.cost_chapter(data),
        *chapters.mixtures_chapter(data, list(partition.quadrants)),
        *chapters.quadrants_chapter(directory, partition),
        *chapters.speed_chapter(data, directory),
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
        charts = []
        for index, panel in enumerate(piece.panels):
            name = f"{piece.name}-{index}"
            # Buttons stand in for the legend of arms.
            fitted = {"width": "container", "config": {"legend": {"disable": True}}}
            specs[name] = escape_control_characters(panel.to_dict()) | fitted
            about = {"id": name, "data_figure": name, "data_renderer": piece.renderer}
            charts.append(tag("div", class_="chart", **about))  # in which `page.js` draws
        drawn = tag("div", *charts, class_="grid" if len(charts) > 1 else None)
        caption = [tag("figcaption", piece.caption)] if piece.caption else []
        body.append(tag("figure", drawn, *caption))
        sheet = escape_control_characters(figures.print_sheet(piece.panels).to_dict())
        png = vl_convert.vegalite_to_png(
            sheet, scale=PNG_SCALE, config=THEMES["light"], allowed_base_urls=[]
        )
        with atomic_path(directory.report / f"{piece.name}.png") as temporary:
            temporary.write_bytes(png)
    path = directory.report / "index.html"
    with atomic_path(path) as temporary:
        temporary.write_text(render(title, body, specs), "utf-8")
    return {
        "page": str(path.relative_to(directory.root)),
        "bytes": path.stat().st_size,
        "figures": names,
    }


def escape_control_characters(value: Any) -> Any:
    """Spells out control characters in the texts of a figure's specification.

    PNGs are made by way of XML, which cannot hold them: the renderer ends the whole program.
    """
    escape = escape_control_characters
    if isinstance(value, dict):
        return {escape(name): escape(item) for name, item in value.items()}
    if isinstance(value, list):
        return [escape(item) for item in value]
    return printable(value) if isinstance(value, str) else value


def render(title: str, body: Sequence[Html], figures: Mapping[str, dict[str, Any]]) -> str:
    """The whole page, with what the reader sees in order.

    `figures` are Vega-Lite specifications by the `data-figure` of their places in the body.
    """
    scripts = [libraries(), (HERE / "page.js").read_text("utf-8")]
    digests = (hashlib.sha256(script.encode("utf-8")).digest() for script in scripts)
    names = (f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    policy = (
        f"default-src 'none'; script-src {' '.join(names)}; "
        "style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    head = tag(
        "head",
        Html('<meta charset="utf-8">'),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Html('<link rel="icon" href="data:,">'),
        tag("title", title),
        tag("style", Html((HERE / "page.css").read_text("utf-8"))),
    )
    data = [
        tag("script", script_json(value), type="application/json", id=name)
        for name, value in (("figures", dict(figures)), ("themes", THEMES))
    ]
    code = [tag("script", Html(script)) for script in scripts]
    main = tag("main", *body)
    return "<!doctype html>\n" + tag(
        "html", head, tag("body", main, join_html(data + code)), lang="en"
    )


@functools.cache
def libraries() -> str:
    """Vega, Vega-Lite and Vega-Embed, which come with vl-convert: nothing is fetched."""
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
