"""Numbers and texts of a run in, pieces of the page out: tables, sentences, example documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from frame_jax.report.documents import Example
from frame_jax.report.held_out_results import (
    BASELINE,
    Result,
    around,
    final,
    slices,
)
from frame_jax.report.html import Html, join, table, tag
from frame_jax.report.training_curves import Arm, TrainingDrop

NONE = "–"

ERROR_NOTE = (
    "± is one standard error over the held-out documents, the two arms compared document by "
    "document. It does not cover the seed of the training runs."
)
LOSS_NOTE = (
    "Shaded: the stages of {arm}. Drag to move; zoom with the buttons, or with shift and the "
    "wheel; double-click to reset. The steep beginning lies above the upper edge."
)
HELD_OUT_NOTE = (
    "Every order is measured on the same held-out documents, none of which was trained on. They "
    "belong to quadrants by the same thresholds as the training documents."
)
MIXTURE_NOTE = "Share of each quadrant in the rows of every batch."
DENSITY_NOTE = (
    "Training tokens of each group; darker (in dark mode, brighter) cells hold more, on a "
    "logarithmic scale. Lines: the thresholds between quadrants. Documents beyond the axes are "
    "counted in the outermost cells."
)


def number(value: float | None, form: str = ".4f") -> str:
    """`value` as text; a dash where there is none."""
    return NONE if value is None else format(value, form)


def headline(results: dict[str, Result], against: dict[str, tuple[float, float]]) -> Html:
    """The outcome in a sentence."""
    if not results:
        return tag("p", "No curriculum has been evaluated yet.", class_="lead")
    losses = {arm: final(r)["overall"]["nll_per_token"] for arm, r in results.items()}
    best = min(losses, key=lambda arm: losses[arm])
    text = [
        tag("strong", best),
        f" ends with the lowest held-out loss, {losses[best]:.4f} nats per token",
    ]
    shown = best if best in against else next(iter(against), None)
    if shown is not None:
        mean, error = against[shown]
        who = "" if shown == best else f"; {shown} is"
        side = "below" if mean < 0 else "above"
        text.append(f"{who}, {abs(mean):.4f} ± {error:.4f} {side} {BASELINE}")
    return tag("p", *text, ".", class_="lead")


def summary_table(
    results: dict[str, Result],
    against: dict[str, tuple[float, float]],
    speeds: dict[str, dict[str, float]],
) -> Html:
    """One line an arm, best first."""
    rows = []
    for arm in sorted(results, key=lambda arm: final(results[arm])["overall"]["nll_per_token"]):
        last, speed = final(results[arm]), speeds.get(arm, {})
        difference = against.get(arm)
        rows.append(
            [
                arm,
                number(last["overall"]["nll_per_token"]),
                number(last["overall"]["bits_per_byte"]),
                NONE if difference is None else f"{difference[0]:+.4f} ± {difference[1]:.4f}",
                f"{last['tokens']:,}",
                number(speed.get("tokens_per_second"), ",.0f"),
            ]
        )
    header = [
        "order",
        "held-out loss (nats / token)",
        "bits / byte",
        f"minus {BASELINE}",
        "training tokens",
        "tokens / s (median step)",
    ]
    return table(header, rows)


def drops_table(drops: Sequence[TrainingDrop], result: Result | None) -> Html:
    """The training and the held-out loss before and after each stage of one arm begins."""
    rows = []
    for drop in drops:
        before, after = around(result, drop.step) if result else (None, None)
        rows.append(
            [
                f"{drop.stage} begins",
                f"{drop.step:,}",
                number(drop.before, ".3f"),
                number(drop.after, ".3f"),
                _fall(drop.before, drop.after),
                _at_step(before),
                _at_step(after),
                _fall(_loss(before), _loss(after)),
            ]
        )
    header = [
        "",
        "at step",
        "training loss before",
        "after",
        "drop",
        "held-out loss before (step)",
        "after (step)",
        "drop",
    ]
    return table(header, rows)


def _loss(checkpoint: dict[str, Any] | None) -> float | None:
    return checkpoint["overall"]["nll_per_token"] if checkpoint else None


def _fall(before: float | None, after: float | None) -> str:
    return NONE if before is None or after is None else f"{before - after:+.3f}"


def _at_step(checkpoint: dict[str, Any] | None) -> str:
    return f"{_loss(checkpoint):.4f} ({checkpoint['step']:,})" if checkpoint else NONE


DROPS_NOTE = (
    "The two drops differ because they measure different texts. The training loss is that of "
    "whatever the stage feeds the model, so it falls when an easier stage begins and rises when a "
    "harder one does, whether or not the model has become better. The held-out documents are the "
    "same mixture for every order and at every step: only their loss can compare orders."
)


def held_out_table(results: dict[str, Result]) -> Html:
    """Final losses of every arm on every slice of the held-out split; the best in bold."""
    finals = {arm: slices(final(result)) for arm, result in results.items()}
    labels = list(dict.fromkeys(label for found in finals.values() for label in found))
    rows: list[list[str]] = []
    for label in labels:
        measured = {arm: found[label] for arm, found in finals.items() if label in found}
        best = min(measured, key=lambda arm: measured[arm]["nll_per_token"])
        any_arm = measured[best]
        cells: list[str] = [label, f"{any_arm['documents']:,}", f"{any_arm['predicted_tokens']:,}"]
        for arm in finals:
            cells.append(_measured(measured.get(arm), arm == best))
        rows.append(cells)
    return table(["held-out part", "documents", "tokens", *finals], rows)


def _measured(measured: dict[str, Any] | None, best: bool) -> str:
    if measured is None:
        return NONE
    loss = tag("span", f"{measured['nll_per_token']:.4f}", class_="best" if best else None)
    return join([loss, f" ({measured['bits_per_byte']:.3f})"])


def balance_table(rows: Sequence[dict[str, Any]], quadrants: Sequence[str]) -> Html:
    """Training tokens of every group in every quadrant, and how far the quadrants are apart."""
    groups: dict[str, dict[str, int]] = {}
    for row in rows:
        groups.setdefault(row["label"], {})[row["quadrant"]] = row["tokens"]
    totals = {q: sum(cells.get(q, 0) for cells in groups.values()) for q in quadrants}
    lines = []
    for label, cells in [("all", totals), *groups.items()]:
        tokens = [cells.get(q, 0) for q in quadrants]
        spread = (max(tokens) - min(tokens)) / (sum(tokens) / len(tokens))
        lines.append([label, *(f"{t:,}" for t in tokens), f"{spread:.2%}"])
    return table(["group", *quadrants, "largest minus smallest"], lines)


def example_documents(examples: Sequence[Example], meanings: dict[str, str]) -> list[Html]:
    """The beginnings of a few documents of each quadrant."""
    found = []
    for quadrant in dict.fromkeys(example.quadrant for example in examples):
        found.append(tag("h3", f"{quadrant}{meanings.get(quadrant, '')}"))
        found += [_example(example) for example in examples if example.quadrant == quadrant]
    return found


def _example(example: Example) -> Html:
    title = (
        f"{example.doc_id} · {example.label} · {example.source} · PPL {example.ppl:.1f} · "
        f"PD {example.pd:+.3f} · {example.tokens:,} tokens"
    )
    text = example.text + (" […]" if example.cut else "")
    return folded(title, tag("pre", text, dir="auto"))


def speed_table(arms: Sequence[Arm], speeds: dict[str, dict[str, float]]) -> Html:
    """Steps, tokens and time of every arm."""
    rows = [
        [
            arm.name,
            f"{speeds[arm.name]['steps']:,}",
            f"{speeds[arm.name]['tokens']:,}",
            number(speeds[arm.name]["seconds"], ",.0f"),
            number(speeds[arm.name]["tokens_per_second"], ",.0f"),
        ]
        for arm in arms
    ]
    return table(["order", "steps", "tokens", "seconds in steps", "tokens / s (median)"], rows)


def meanings(quadrants: Sequence[str]) -> dict[str, str]:
    """What the paper's four quadrants are; nothing for other grids."""
    if list(quadrants) != ["Q1", "Q2", "Q3", "Q4"]:
        return {}
    levels = [f": {ppl} PPL, {pd} PD" for ppl in ("low", "high") for pd in ("low", "high")]
    return dict(zip(quadrants, levels, strict=True))


def folded(title: str, *children: str) -> Html:
    """Something long that opens on demand."""
    return tag("details", tag("summary", title), *children, class_="fold")
