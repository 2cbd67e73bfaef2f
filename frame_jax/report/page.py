"""Sections and figures in, one HTML page out: no network, no script but its own."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import vl_convert

from frame_jax.report.figures import ARM_COLOURS, THEMES
from frame_jax.report.html import Html, join, script_json, tag

HERE = Path(__file__).parent


def figure(name: str, panels: int, caption: str = "", renderer: str = "svg") -> Html:
    """The place where `page.js` draws the panels of the figure `name`.

    Args:
        name: The figure.
        panels: Charts that it is made of.
        caption: Text below it.
        renderer: `svg`, or `canvas` for panels of thousands of marks.
    """
    places = [
        tag(
            "div",
            class_="chart",
            id=f"{name}-{index}",
            data_figure=f"{name}-{index}",
            data_renderer=renderer,
        )
        for index in range(panels)
    ]
    drawn = tag("div", *places, class_="grid") if panels > 1 else join(places)
    return tag("figure", drawn, *([tag("figcaption", caption)] if caption else []))


def zoom_buttons(name: str) -> Html:
    """Buttons that zoom the only panel of the figure `name`, for screens without a mouse."""
    buttons = (("Zoom in", "0.6"), ("Zoom out", "1.6667"), ("Reset", "0"))
    return tag(
        "p",
        *(
            tag("button", label, type="button", data_zoom=factor, data_target=f"{name}-0")
            for label, factor in buttons
        ),
        class_="controls",
    )


def arm_buttons(arms: Sequence[str]) -> Html:
    """The legend of all figures of arms; pressing a name shows or hides the arm everywhere."""
    return tag(
        "div",
        *(
            tag(
                "button",
                arm,
                type="button",
                data_arm=arm,
                aria_pressed="true",
                style=f"--arm: {ARM_COLOURS[index % len(ARM_COLOURS)]}",
            )
            for index, arm in enumerate(arms)
        ),
        class_="arms",
        role="group",
        aria_label="Show or hide orders in the figures",
    )


def render(title: str, body: Sequence[Html], figures: Mapping[str, dict[str, Any]]) -> str:
    """The whole page.

    Args:
        title: Of the window.
        body: What the reader sees, in order.
        figures: Vega-Lite specifications by the name that `figure` was given.
    """
    # Vega, Vega-Lite and Vega-Embed come with vl-convert: nothing is fetched, here or there.
    libraries = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    scripts = [libraries, (HERE / "page.js").read_text("utf-8")]
    policy = (
        f"default-src 'none'; script-src {' '.join(map(script_hash, scripts))}; "
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
    return "<!doctype html>\n" + tag("html", head, tag("body", main, join(data + code)), lang="en")


def script_hash(script: str) -> str:
    """A script's name in a content security policy."""
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
