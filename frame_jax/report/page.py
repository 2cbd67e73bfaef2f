"""Sections and figures in, one HTML page out: no network, no script but its own."""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import vl_convert

from frame_jax.report.html import Html, join_html, script_json, tag
from frame_jax.report.theme import THEMES

HERE = Path(__file__).parent


def render(title: str, body: Sequence[Html], figures: Mapping[str, dict[str, Any]]) -> str:
    """The whole page, with what the reader sees in order.

    `figures` are Vega-Lite specifications by the `data-figure` of their places in the body.
    """
    scripts = [libraries(), (HERE / "page.js").read_text("utf-8")]
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
    return "<!doctype html>\n" + tag(
        "html", head, tag("body", main, join_html(data + code)), lang="en"
    )


@functools.cache
def libraries() -> str:
    """Vega, Vega-Lite and Vega-Embed, which come with vl-convert: nothing is fetched."""
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")


def script_hash(script: str) -> str:
    """A script's name in a content security policy."""
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
