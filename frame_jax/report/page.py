"""Writes a page of text, tables and figures: `index.html` and a PNG of each figure.

The page needs no network and has no script but its own.
"""

import base64
import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import vl_convert

from frame_jax.errors import printable
from frame_jax.report import figures
from frame_jax.report.html import Html, join_html, script_json, tag
from frame_jax.run.directory import atomic_path

PAGE = "index.html"
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


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure of a page.

    Attributes:
        name: Of its PNG, and of its elements on the page.
        panels: Its charts; several are a grid.
        caption: Text below it.
        renderer: `svg`, or `canvas` for panels of thousands of marks.
    """

    name: str
    panels: list[figures.Panel]
    caption: str = ""
    renderer: str = "svg"


Piece = Html | Figure


def write_page(title: str, pieces: Sequence[Piece], folder: Path) -> list[str]:
    """Writes the page and one PNG a figure into `folder`; returns the figures' names."""
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
        with atomic_path(folder / f"{piece.name}.png") as temporary:
            temporary.write_bytes(png)
    with atomic_path(folder / PAGE) as temporary:
        temporary.write_text(render(title, body, specs), "utf-8")
    return names


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
