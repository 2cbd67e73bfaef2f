"""Colours and type of all figures, on light and on dark paper, as Vega-Lite configurations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
