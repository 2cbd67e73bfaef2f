"""Draws the figures as Altair charts, for the page and for PNGs alike.

Rows are dataclasses, whose fields the charts name. Charts carry no colours of ink or paper; those
come from `page.THEMES`, so that a page can follow the reader's light or dark mode. Charts of arms
read the parameters `shown_arms` and `held_out_part`, which the page sets.
"""

import itertools
from collections.abc import Sequence
from typing import Any, Literal

import altair as alt
import numpy as np

from frame_jax.report.documents import DensityTile, GroupTokens, ThresholdLine
from frame_jax.report.held_out_curves import LossPoint, TrainingRowPoint
from frame_jax.report.study_results import BETTER, WORSE, Verdict
from frame_jax.report.training_curves import CurvePoint, MixturePoint, TrainingRun
from frame_jax.report.verdict import DOCUMENT_ERRORS

Panel = alt.Chart | alt.LayerChart | alt.FacetChart

SMOOTH = 5  # points on each side that the bold line of the training loss averages
BALANCE_GROUPS = 24  # drawn; the table has them all
PRINT_WIDTH = 860  # of a PNG, before scaling
PRINT_COLUMNS = 3  # of a figure of several panels

ARM_COLOURS = (
    "#e4572e", "#7a8794", "#2e86de", "#2a9d6f", "#b45fd0", "#d19a00", "#00a5b5", "#c2185b",
    "#6b8e23", "#8d6e63",
)  # fmt: skip
QUADRANT_COLOURS = ("#2e86de", "#00a5a0", "#e0a100", "#e4572e")

IS_SHOWN = "indexof(shown_arms, datum.arm) >= 0"
TOKENS = alt.X(
    "tokens:Q",
    title="training tokens",
    axis=alt.Axis(format="~s", grid=False),
    scale=alt.Scale(nice=False, zero=True),
)
ORDER = alt.Tooltip("arm:N", title="order")
COUNTS = [alt.Tooltip(f"{name}:Q", format=",") for name in ("step", "tokens")]


def _chart(rows: Sequence[Any]) -> alt.Chart:
    """A chart of dictionaries or of dataclasses."""
    # Not alt.InlineData, which checks every value against a schema: seconds for a density.
    data: Any = {"values": [row if isinstance(row, dict) else vars(row) for row in rows]}
    return alt.Chart(data)


def _arms_chart(rows: Sequence[Any], arms: Sequence[str], shown: str = IS_SHOWN) -> alt.Chart:
    """A chart of rows of arms by training tokens, those that are not shown left out.

    The colours of arms follow from their order.
    """
    colours = [ARM_COLOURS[i % len(ARM_COLOURS)] for i in range(len(arms))]
    scale = alt.Scale(domain=list(arms), range=colours)
    colour = alt.Color("arm:N", title=None, scale=scale)
    return _chart(rows).transform_filter(shown).encode(x=TOKENS, color=colour)


def _points(size: int) -> dict[str, Any]:
    """The mark of lines with a point of this size at each value."""
    return {"strokeWidth": 2, "point": alt.OverlayMarkDef(size=size, filled=True)}


def _layer(*charts: Panel, arms: Sequence[str], height: int) -> Panel:
    """Charts of arms on top of each other."""
    shown = alt.param(name="shown_arms", value=list(arms))
    return alt.layer(*charts).add_params(shown).properties(height=height)


def _zero_line(axis: Literal["x", "y"]) -> alt.Chart:
    rule = _chart([{axis: 0}]).mark_rule(strokeDash=[4, 4])
    return rule.encode(**{axis: f"{axis}:Q"})


def _bands(run: TrainingRun) -> alt.LayerChart:
    """The stages of a run as shaded stretches with their names on top."""
    tokens = run.record.tokens_per_step
    base = _chart(
        [
            {"name": s.name, "start": s.start * tokens, "end": s.stop * tokens, "shade": index % 2}
            for index, s in enumerate(run.stages)
        ]
    )
    scale = alt.Scale(domain=[0, 1], range=[0.16, 0.06])
    shade = base.mark_rect(color="#8899aa").encode(
        x="start:Q", x2="end:Q", opacity=alt.Opacity("shade:O", legend=None, scale=scale)
    )
    names = base.transform_calculate(middle="(datum.start + datum.end) / 2").mark_text(
        baseline="top", dy=4, fontWeight="bold", opacity=0.75, clip=True
    )
    return shade + names.encode(x="middle:Q", y=alt.value(0), text="name:N")


def training_loss(curves: Sequence[CurvePoint], shaded: TrainingRun, arms: Sequence[str]) -> Panel:
    """Training loss of every arm against tokens seen.

    The vertical axis leaves out the steep beginning: it is made for what comes after the first
    twentieth of the run.
    """
    horizon = max(point.tokens for point in curves)
    settled = [point.loss for point in curves if point.tokens >= horizon / 20]
    low, high = np.quantile(settled, [0, 0.995])  # a spike may leave the frame
    margin = 0.04 * (high - low) + 1e-3
    zoom = alt.selection_interval(
        bind="scales", name="zoom", zoom="wheel![event.shiftKey || event.ctrlKey]"
    )
    scale = alt.Scale(domain=[float(low - margin), float(high + margin)])
    title = "training loss (nats / token)"
    loss, smooth = (alt.Y(f"{n}:Q", title=title, scale=scale) for n in ("loss", "smooth"))
    base = _arms_chart(curves, arms)
    steps = base.mark_line(strokeWidth=1, opacity=0.3, clip=True).encode(y=loss).add_params(zoom)
    averaged = base.transform_window(smooth="mean(loss)", frame=[-SMOOTH, SMOOTH], groupby=["arm"])
    means = averaged.mark_line(strokeWidth=2, clip=True).encode(y=smooth)
    return _layer(_bands(shaded), steps, means, arms=arms, height=340)


def held_out(
    points: Sequence[LossPoint],
    shaded: TrainingRun,
    arms: Sequence[str],
    baseline: str | None = None,
) -> Panel:
    """Held-out loss of every arm at its kept checkpoints, on the slice that is chosen.

    With a baseline: minus the baseline's at the same checkpoint.
    """
    value, title, height = "nll", "held-out loss (nats / token)", 320
    if baseline is not None:
        value, title, height = "difference", f"minus {baseline} (nats / token)", 200
    lines = (
        _arms_chart(points, arms, f"datum.slice == held_out_part && {IS_SHOWN}")
        .mark_line(**_points(45))
        .encode(
            y=alt.Y(f"{value}:Q", title=title, scale=alt.Scale(zero=False)),
            tooltip=[
                ORDER,
                alt.Tooltip("slice:N", title="held-out part"),
                *COUNTS,
                alt.Tooltip(f"{value}:Q", title=title, format=".4f"),
                alt.Tooltip("bits_per_byte:Q", title="bits / byte", format=".4f"),
            ],
        )
        .add_params(alt.param(name="held_out_part", value="all"))
    )
    zero = [] if baseline is None else [_zero_line("y")]
    return _layer(_bands(shaded), *zero, lines, arms=arms, height=height)


def effect_row(verdict: Verdict, **about: Any) -> dict[str, Any]:
    """A row of the figures of differences: a verdict's numbers, and what it is about."""
    error, seen = DOCUMENT_ERRORS * verdict.document_error, verdict.detectable
    ends = {"least": verdict.mean - error, "most": verdict.mean + error}
    return about | vars(verdict) | ends | {"unseen": None if seen is None else -seen}


def _effects(
    rows: Sequence[dict[str, Any]], value: Literal["x", "y"], title: str, colour: Any, **where: Any
) -> Any:
    """Draws `effect_row`s along the axis `value`, placed on the other by the encodings `where`.

    A band of what would not have been seen, a thick bar over seeds, a whisker over documents, and a
    point, which is hollow unless the verdict is better or worse.
    """

    def drawn(rows: Sequence[dict[str, Any]], *names: str) -> alt.Chart:
        first = (alt.X if value == "x" else alt.Y)(f"{names[0]}:Q", title=f"{title} (bits / byte)")
        ends: dict[str, Any] = {value: first} | {f"{value}2": f"{name}:Q" for name in names[1:]}
        return _chart(rows).encode(**ends, **where)

    layers: list[Any] = [_zero_line(value)]
    if tested := [row for row in rows if row["low"] is not None]:  # an empty chart has no extent
        band, bars = drawn(tested, "unseen", "detectable"), drawn(tested, "low", "high")
        layers.append(band.mark_rule(strokeWidth=14, opacity=0.25, color=ARM_COLOURS[1]))
        layers.append(bars.mark_rule(strokeWidth=5, opacity=0.6).encode(color=colour))
    ticks = alt.MarkConfig(size=8, color=ARM_COLOURS[1])
    layers.append(drawn(rows, "least", "most").mark_errorbar(ticks=ticks))
    numbers = ("mean", "low", "high", "document_error", "detectable")
    names = [name for name in ("run", "label", "order", "minus", "verdict") if name in rows[0]]
    tooltip = [alt.Tooltip(f"{name}:N") for name in names]
    tooltip += [alt.Tooltip(f"{name}:Q", format="+.4f") for name in numbers]
    for clear in (True, False):
        if own := [row for row in rows if (row["verdict"] in (BETTER, WORSE)) == clear]:
            points = drawn(own, "mean").mark_point(filled=clear, size=70, strokeWidth=2, opacity=1)
            layers.append(points.encode(color=colour, tooltip=tooltip))
    return alt.layer(*layers)


def forest(rows: Sequence[dict[str, Any]]) -> Panel:
    """Differences on the whole held-out split, a line each: `effect_row`s with a `label`."""
    names = list(dict.fromkeys(row["label"] for row in rows))
    order = alt.Y("label:N", title=None, sort=names, axis=alt.Axis(labelLimit=260))
    title = "\N{LEFTWARDS ARROW} better, difference"
    chart = _effects(rows, "x", title, alt.value(ARM_COLOURS[2]), y=order)
    return chart.properties(height=26 * len(names))


def effect_trends(
    rows: Sequence[dict[str, Any]], orders: Sequence[str], along: str, beside: str
) -> list[Panel]:
    """Differences of each order by a number, with a colour for each series of runs.

    `rows` are `effect_row`s with `order`, `series` and the number `at`; `along` and `beside` say
    what that number is, and what sets series apart.
    """
    series, values = list(dict.fromkeys(r["series"] for r in rows)), sorted({r["at"] for r in rows})
    gaps = [right / left for left, right in itertools.pairwise(values)]
    apart = min([gap ** (0.5 / len(series)) for gap in gaps], default=1.0)
    for row in rows:  # series stand beside each other
        row["x"] = row["at"] * apart ** (series.index(row["series"]) - (len(series) - 1) / 2)
    scale = alt.Scale(type="log", padding=24, nice=False)
    axis = alt.Axis(values=values, format=".2~s", grid=False)
    x = alt.X("x:Q", title=along, scale=scale, axis=axis)
    legend = alt.Legend(orient="top", title=beside, symbolType="square")
    colours = alt.Scale(domain=series, range=list(ARM_COLOURS[2:]))
    colour = alt.Color("series:N", scale=colours, legend=legend)
    names = ("low", "high", "least", "most", "unseen", "detectable")
    ends = [row[name] for row in rows for name in names if row[name] is not None]
    corners = [{"x": at, "y": end} for at in values for end in (min(ends), max(ends))]
    frame = _chart(corners).mark_point(opacity=0).encode(x=x, y="y:Q")  # the same for all orders
    panels: list[Panel] = []
    for order in orders:
        own = [row for row in rows if row["order"] == order]
        line = _chart(own).mark_line(opacity=0.6).encode(x=x, y="mean:Q", color=colour)
        drawn = _effects(own, "y", "minus baseline, lower is better", colour, x=x)
        panels.append(alt.layer(frame, line, drawn).properties(height=260, title=order))
    return panels


def training_rows(rows: Sequence[TrainingRowPoint], arms: Sequence[str], baseline: str) -> Panel:
    """Final loss on training rows minus the baseline's, by when they were trained on."""
    title = f"final loss minus {baseline} (nats / token)"
    x = alt.X("tokens:Q", title="trained on at (tokens)", axis=alt.Axis(format="~s"))
    lines = _arms_chart(rows, arms).mark_line(**_points(30))
    lines = lines.encode(x=x, y=alt.Y("difference:Q", title=title))
    return _layer(_zero_line("y"), lines, arms=arms, height=260)


def _quadrant_colour(quadrants: Sequence[str]) -> alt.Color:
    scale = alt.Scale(domain=list(quadrants), scheme="tableau20")
    if len(quadrants) <= len(QUADRANT_COLOURS):
        scale = alt.Scale(domain=list(quadrants), range=list(QUADRANT_COLOURS[: len(quadrants)]))
    legend = alt.Legend(orient="top")
    return alt.Color("quadrant:N", title=None, scale=scale, legend=legend)


def mixture(points: Sequence[MixturePoint], quadrants: Sequence[str], arm: str) -> Panel:
    """Shares of the quadrants in the batches of one arm."""
    axis = alt.Axis(format="%", tickCount=3)
    share = alt.Y("share:Q", title="share of rows", stack="normalize", axis=axis)
    areas = _chart(points).mark_area()
    areas = areas.encode(x=TOKENS, y=share, color=_quadrant_colour(quadrants))
    return areas.properties(height=120, title=arm)


def density(
    tiles: Sequence[DensityTile],
    thresholds: Sequence[ThresholdLine],
    label: str,
    names: tuple[str, str] = ("PPL", "PD"),
    scale: Literal["log", "linear"] = "log",
) -> Panel:
    """Tokens over PPL and PD of the group `label`, with its thresholds.

    Tiles and thresholds are those of all groups, which share both axes; `names` are those of the
    axes, `scale` that of the first.
    """
    x_name, y_name = names
    left, right = min(tile.ppl for tile in tiles), max(tile.ppl_end for tile in tiles)
    low, high = min(tile.pd for tile in tiles), max(tile.pd_end for tile in tiles)
    x_scale = alt.Scale(type=scale, domain=[left, right], nice=False)
    y_scale = alt.Scale(domain=[low, high], nice=False)
    own = [{k: v for k, v in vars(t).items() if k != "label"} for t in tiles if t.label == label]
    x_axis = alt.Axis(tickCount=4, format="~g")
    cells = (
        _chart(own)
        .mark_rect()
        .encode(
            x=alt.X("ppl:Q", title=x_name, scale=x_scale, axis=x_axis),
            x2="ppl_end:Q",
            y=alt.Y("pd:Q", title=y_name, scale=y_scale, axis=alt.Axis(tickCount=4)),
            y2="pd_end:Q",
            color=alt.Color("tokens:Q", scale=alt.Scale(type="log"), legend=None),
            tooltip=[
                alt.Tooltip("ppl:Q", title=f"{x_name} from", format=".3~g"),
                alt.Tooltip("pd:Q", title=f"{y_name} from", format=".3f"),
                COUNTS[1],
            ],
        )
    )
    clipped = [
        {
            "x": left if line.x is None else max(line.x, left),
            "x2": right if line.x2 is None else min(line.x2, right),
            "y": low if line.y is None else line.y,
            "y2": high if line.y2 is None else line.y2,
        }
        for line in thresholds
        if line.label == label
    ]
    rules = _chart(clipped).mark_rule(strokeWidth=1.5, color="#e4572e", clip=True)
    lines = rules.encode(x="x:Q", x2="x2:Q", y="y:Q", y2="y2:Q")
    return alt.layer(cells, lines).properties(height=230, title=label)


def balance(groups: Sequence[GroupTokens], quadrants: Sequence[str]) -> Panel:
    """Share of each group's tokens that each quadrant has; the first `BALANCE_GROUPS` groups."""
    labels = list(dict.fromkeys(group.label for group in groups))[:BALANCE_GROUPS]
    bars = _chart([group for group in groups if group.label in labels]).mark_bar()
    percent = alt.Axis(format="%")
    return bars.encode(
        x=alt.X("tokens:Q", title="share of tokens", stack="normalize", axis=percent),
        y=alt.Y("label:N", title=None, sort=labels, axis=alt.Axis(labelLimit=150)),
        color=_quadrant_colour(quadrants),
        order=alt.Order("quadrant:O"),
        tooltip=["label:N", "quadrant:N", COUNTS[1], "documents:Q"],
    ).properties(height=26 * len(labels))


def print_sheet(panels: Sequence[Panel]) -> Panel | alt.ConcatChart:
    """One chart of all panels, as wide as a PNG."""
    if len(panels) == 1:
        return panels[0].properties(width=PRINT_WIDTH)
    columns = min(PRINT_COLUMNS, len(panels))
    width = PRINT_WIDTH // columns - 60
    return alt.concat(*(panel.properties(width=width) for panel in panels), columns=columns)
