"""Plain rows in, one Altair chart a figure out: drawn in the page and rendered to PNG alike.

Charts carry no colours of ink or paper; those come from `theme.THEMES`, so that a page can follow
the reader's light or dark mode. Charts of arms read the parameters `shown_arms` and
`held_out_part`, which the page sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import altair as alt
import numpy as np

Rows = list[dict[str, Any]]
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


def _data(rows: Rows) -> Any:
    # Not alt.InlineData, which checks every value against a schema: seconds for a density.
    return {"values": rows}


def _arm_colour(arms: Sequence[str]) -> alt.Color:
    colours = [ARM_COLOURS[i % len(ARM_COLOURS)] for i in range(len(arms))]
    return alt.Color("arm:N", title=None, scale=alt.Scale(domain=list(arms), range=colours))


def _shown(arms: Sequence[str]) -> alt.Parameter:
    return alt.param(name="shown_arms", value=list(arms))


IS_SHOWN = "indexof(shown_arms, datum.arm) >= 0"
TOKENS = alt.X(
    "tokens:Q",
    title="training tokens",
    axis=alt.Axis(format="~s", grid=False),
    scale=alt.Scale(nice=False, zero=True),
)


def _bands(stages: Rows) -> alt.LayerChart:
    """The stages as shaded stretches with their names on top."""
    base = alt.Chart(_data(stages))
    shade = base.mark_rect(color="#8899aa").encode(
        x="start:Q",
        x2="end:Q",
        opacity=alt.Opacity(
            "shade:O", legend=None, scale=alt.Scale(domain=[0, 1], range=[0.16, 0.06])
        ),
    )
    names = (
        base.transform_calculate(middle="(datum.start + datum.end) / 2")
        .mark_text(baseline="top", dy=4, fontWeight="bold", opacity=0.75, clip=True)
        .encode(x="middle:Q", y=alt.value(0), text="name:N")
    )
    return shade + names


def training_loss(series: Rows, stages: Rows, arms: Sequence[str]) -> Panel:
    """Training loss of every arm against tokens seen.

    The vertical axis leaves out the steep beginning: it is made for what comes after the first
    twentieth of the run.
    """
    horizon = max(row["tokens"] for row in series)
    settled = [row["loss"] for row in series if row["tokens"] >= horizon / 20]
    low, high = np.quantile(settled, [0, 0.995])  # a spike may leave the frame
    margin = 0.04 * (high - low) + 1e-3
    zoom = alt.selection_interval(
        bind="scales", name="zoom", zoom="wheel![event.shiftKey || event.ctrlKey]"
    )
    scale = alt.Scale(domain=[float(low - margin), float(high + margin)])
    title = "training loss (nats / token)"
    base = alt.Chart(_data(series)).transform_filter(IS_SHOWN)
    steps = (
        base.mark_line(strokeWidth=1, opacity=0.3, clip=True)
        .encode(x=TOKENS, y=alt.Y("loss:Q", title=title, scale=scale), color=_arm_colour(arms))
        .add_params(zoom)
    )
    means = (
        base.transform_window(smooth="mean(loss)", frame=[-SMOOTH, SMOOTH], groupby=["arm"])
        .mark_line(strokeWidth=2, clip=True)
        .encode(x=TOKENS, y=alt.Y("smooth:Q", title=title, scale=scale), color=_arm_colour(arms))
    )
    chart = alt.layer(_bands(stages), steps, means).add_params(_shown(arms))
    return chart.properties(height=340)


def _checkpoints(rows: Rows, arms: Sequence[str], value: str, title: str) -> alt.Chart:
    """A point for each kept checkpoint of each arm, of the part of the held-out split chosen."""
    return (
        alt.Chart(_data(rows))
        .transform_filter(f"datum.slice == held_out_part && {IS_SHOWN}")
        .mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=45, filled=True))
        .encode(
            x=TOKENS,
            y=alt.Y(f"{value}:Q", title=title, scale=alt.Scale(zero=False)),
            color=_arm_colour(arms),
            tooltip=[
                alt.Tooltip("arm:N", title="order"),
                alt.Tooltip("slice:N", title="held-out part"),
                alt.Tooltip("step:Q", format=","),
                alt.Tooltip("tokens:Q", format=","),
                alt.Tooltip(f"{value}:Q", title=title, format=".4f"),
                alt.Tooltip("bits_per_byte:Q", title="bits / byte", format=".4f"),
            ],
        )
    )


def held_out_loss(curve: Rows, stages: Rows, arms: Sequence[str]) -> Panel:
    """Held-out loss of every arm at its kept checkpoints."""
    lines = _checkpoints(curve, arms, "nll", "held-out loss (nats / token)")
    choice = alt.param(name="held_out_part", value="all")
    chart = alt.layer(_bands(stages), lines).add_params(_shown(arms), choice)
    return chart.properties(height=320)


def held_out_difference(
    differences: Rows, stages: Rows, arms: Sequence[str], baseline: str
) -> Panel:
    """The same loss minus the baseline's at the same checkpoint."""
    lines = _checkpoints(differences, arms, "difference", f"minus {baseline} (nats / token)")
    zero = alt.Chart(_data([{"y": 0}])).mark_rule(strokeDash=[4, 4]).encode(y="y:Q")
    choice = alt.param(name="held_out_part", value="all")
    chart = alt.layer(_bands(stages), zero, lines).add_params(_shown(arms), choice)
    return chart.properties(height=200)


def forest(rows: Rows) -> Panel:
    """Differences with their intervals, a line each.

    Args:
        rows: Rows of label, against, mean, low, high (None under one seed), by_seed, verdict.
    """
    names = [row["label"] for row in rows]
    order = alt.Y("label:N", title=None, sort=names, axis=alt.Axis(labelLimit=220))
    title = "difference (bits / byte)"
    points = [{k: v for k, v in row.items() if k != "by_seed"} for row in rows]
    seeds = [{"label": r["label"], "seed": value} for r in rows for value in r["by_seed"]]
    zero = alt.Chart(_data([{"x": 0}])).mark_rule(strokeDash=[4, 4]).encode(x="x:Q")
    spans = [row for row in points if row["low"] is not None]
    base = alt.Chart(_data(spans)).mark_rule(strokeWidth=3, opacity=0.6, color=ARM_COLOURS[2])
    bars = base.encode(x=alt.X("low:Q", title=title), x2="high:Q", y=order)
    ticks = (
        alt.Chart(_data(seeds))
        .mark_tick(thickness=2, height=10, color=ARM_COLOURS[1])
        .encode(x=alt.X("seed:Q", title=title), y=order)
    )
    means = (
        alt.Chart(_data(points))
        .mark_point(filled=True, size=70, color=ARM_COLOURS[2], opacity=1)
        .encode(
            x=alt.X("mean:Q", title=title),
            y=order,
            tooltip=[
                alt.Tooltip("label:N", title="order"),
                alt.Tooltip("against:N", title="minus"),
                *(alt.Tooltip(f"{key}:Q", format="+.4f") for key in ("mean", "low", "high")),
                "verdict:N",
            ],
        )
    )
    layers = [zero, *([bars] if spans else []), ticks, means]  # a chart of nothing has no extent
    return alt.layer(*layers).properties(height=26 * len(rows))


def training_rows(rows: Rows, arms: Sequence[str], baseline: str) -> Panel:
    """Final loss on training rows minus the baseline's on the same, by when they were trained on.

    Args:
        rows: Rows of arm, tokens, difference.
        arms: Their colours follow from their order.
        baseline: Whose loss is taken away.
    """
    zero = alt.Chart(_data([{"y": 0}])).mark_rule(strokeDash=[4, 4]).encode(y="y:Q")
    lines = (
        alt.Chart(_data(rows))
        .transform_filter(IS_SHOWN)
        .mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=30, filled=True))
        .encode(
            x=alt.X("tokens:Q", title="trained on at (tokens)", axis=alt.Axis(format="~s")),
            y=alt.Y("difference:Q", title=f"final loss minus {baseline} (nats / token)"),
            color=_arm_colour(arms),
        )
    )
    return alt.layer(zero, lines).add_params(_shown(arms)).properties(height=260)


def throughput(series: Rows, arms: Sequence[str]) -> Panel:
    """Tokens a second of every arm."""
    return (
        alt.Chart(_data([row for row in series if row["tokens_per_second"] is not None]))
        .transform_filter(IS_SHOWN)
        .mark_line(strokeWidth=1.2)
        .encode(
            x=TOKENS,
            y=alt.Y("tokens_per_second:Q", title="tokens / second", axis=alt.Axis(format="~s")),
            color=_arm_colour(arms),
        )
        .add_params(_shown(arms))
        .properties(height=220)
    )


def accuracy(scores: Rows, arms: Sequence[str], task: str) -> Panel:
    """Accuracy in one task at the checkpoints that did it, over the accuracy of a guess.

    Args:
        scores: Rows as `task_results.curve_rows` gives them, of all tasks.
        arms: Their colours follow from their order.
        task: The task to draw.
    """
    own = [row for row in scores if row["task"] == task]
    base = alt.Chart(_data(own)).transform_filter(IS_SHOWN)
    axis = alt.Axis(format="%", tickCount=4)
    lines = base.mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=45, filled=True)).encode(
        x=TOKENS,
        y=alt.Y("accuracy:Q", title="accuracy", axis=axis, scale=alt.Scale(zero=False)),
        color=_arm_colour(arms),
        tooltip=[
            alt.Tooltip("arm:N", title="order"),
            alt.Tooltip("stages:N", title="end of stage"),
            alt.Tooltip("step:Q", format=","),
            *(alt.Tooltip(f"{key}:Q", format=".2%") for key in ("accuracy", "accuracy_norm")),
            alt.Tooltip("stderr:Q", title="standard error", format=".2%"),
        ],
    )
    errors = base.mark_rule(strokeWidth=1, opacity=0.6).encode(
        x=TOKENS, y="low:Q", y2="high:Q", color=_arm_colour(arms)
    )
    guess = alt.Chart(_data([{"chance": own[0]["chance"]}])).mark_rule(strokeDash=[4, 4])
    chart = alt.layer(guess.encode(y="chance:Q"), errors, lines).add_params(_shown(arms))
    return chart.properties(height=160, title=task)


def _quadrant_colour(quadrants: Sequence[str]) -> alt.Color:
    scale = alt.Scale(domain=list(quadrants), scheme="tableau20")
    if len(quadrants) <= len(QUADRANT_COLOURS):
        scale = alt.Scale(domain=list(quadrants), range=list(QUADRANT_COLOURS[: len(quadrants)]))
    legend = alt.Legend(orient="top")
    return alt.Color("quadrant:N", title=None, scale=scale, legend=legend)


def mixture(rows: Rows, quadrants: Sequence[str], arm: str) -> Panel:
    """What the batches of one arm were made of."""
    return (
        alt.Chart(_data(rows), title=arm)
        .mark_area()
        .encode(
            x=TOKENS,
            y=alt.Y(
                "share:Q",
                title="share of rows",
                stack="normalize",
                axis=alt.Axis(format="%", tickCount=3),
            ),
            color=_quadrant_colour(quadrants),
        )
        .properties(height=120)
    )


def density(
    cells: Rows,
    thresholds: Rows,
    label: str,
    names: tuple[str, str] = ("PPL", "PD"),
    scale: Literal["log", "linear"] = "log",
) -> Panel:
    """Tokens over PPL and PD of one group, with its thresholds.

    Args:
        cells: Rows as `documents.token_density` gives them, of all groups: they share both axes.
        thresholds: Rows of label and x, x2, y, y2 (PPL and PD), the ends of a line.
        label: The group to draw.
        names: Of both axes.
        scale: Of the first.
    """
    x_name, y_name = names
    x_domain = [min(row["ppl"] for row in cells), max(row["ppl_end"] for row in cells)]
    y_domain = [min(row["pd"] for row in cells), max(row["pd_end"] for row in cells)]
    x_scale = alt.Scale(type=scale, domain=x_domain, nice=False)
    y_scale = alt.Scale(domain=y_domain, nice=False)
    own = [{k: v for k, v in row.items() if k != "label"} for row in cells if row["label"] == label]
    tiles = (
        alt.Chart(_data(own))
        .mark_rect()
        .encode(
            x=alt.X("ppl:Q", title=x_name, scale=x_scale, axis=alt.Axis(tickCount=4, format="~g")),
            x2="ppl_end:Q",
            y=alt.Y("pd:Q", title=y_name, scale=y_scale, axis=alt.Axis(tickCount=4)),
            y2="pd_end:Q",
            color=alt.Color("tokens:Q", scale=alt.Scale(type="log"), legend=None),
            tooltip=[
                alt.Tooltip("ppl:Q", title=f"{x_name} from", format=".3~g"),
                alt.Tooltip("pd:Q", title=f"{y_name} from", format=".3f"),
                alt.Tooltip("tokens:Q", format=","),
            ],
        )
    )
    clipped = [
        {
            "x": max(row["x"] if row["x"] is not None else x_domain[0], x_domain[0]),
            "x2": min(row["x2"] if row["x2"] is not None else x_domain[1], x_domain[1]),
            "y": row["y"] if row["y"] is not None else y_domain[0],
            "y2": row["y2"] if row["y2"] is not None else y_domain[1],
        }
        for row in thresholds
        if row["label"] == label
    ]
    lines = (
        alt.Chart(_data(clipped))
        .mark_rule(strokeWidth=1.5, color="#e4572e", clip=True)
        .encode(x="x:Q", x2="x2:Q", y="y:Q", y2="y2:Q")
    )
    return alt.layer(tiles, lines).properties(height=230, title=label)


def balance(rows: Rows, quadrants: Sequence[str]) -> Panel:
    """Share of each group's tokens that each quadrant has; the first `BALANCE_GROUPS` groups."""
    labels = list(dict.fromkeys(row["label"] for row in rows))[:BALANCE_GROUPS]
    return (
        alt.Chart(_data([row for row in rows if row["label"] in labels]))
        .mark_bar()
        .encode(
            x=alt.X(
                "tokens:Q", title="share of tokens", stack="normalize", axis=alt.Axis(format="%")
            ),
            y=alt.Y("label:N", title=None, sort=labels, axis=alt.Axis(labelLimit=150)),
            color=_quadrant_colour(quadrants),
            order=alt.Order("quadrant:O"),
            tooltip=["label:N", "quadrant:N", alt.Tooltip("tokens:Q", format=","), "documents:Q"],
        )
        .properties(height=26 * len(labels))
    )


def print_sheet(panels: Sequence[Panel]) -> Panel | alt.ConcatChart:
    """One chart of all panels, as wide as a PNG."""
    if len(panels) == 1:
        return panels[0].properties(width=PRINT_WIDTH)
    columns = min(PRINT_COLUMNS, len(panels))
    width = PRINT_WIDTH // columns - 60
    return alt.concat(*(panel.properties(width=width) for panel in panels), columns=columns)
