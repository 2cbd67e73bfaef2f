"""A study in, the lines of its table of verdicts out: for the page, and for the terminal.

Imports nothing heavy: a finished run shows its table at once.
"""

from __future__ import annotations

from typing import Any

from frame_jax.evaluation.verdict import NONE, UNTESTED

FINAL = "final"  # the name of weights that are no average
DASH = "–"
SHORT = {NONE: "no difference", UNTESTED: "not tested"}

Study = dict[str, Any]  # what `study.read_study` gives


def labels(study: Study) -> dict[tuple[str, str], str]:
    """What a reader sees of each arm and kind of weights."""
    return {(one["arm"], one["weights"]): one["label"] for one in study["lines"]}


def first_comparisons(study: Study) -> list[dict[str, Any]]:
    """Each line against what is most like it."""
    seen: dict[tuple[str, str], dict[str, Any]] = {}
    for comparison in study["comparisons"]:
        seen.setdefault((comparison["arm"], comparison["weights"]), comparison)
    return list(seen.values())


def table_rows(study: Study) -> tuple[list[str], list[list[str]]]:
    """Header and lines of the table of verdicts, best first: the page's and the terminal's."""
    header = ["order", "seeds", "bits / byte", "minus", "difference", "95% interval"]
    header += ["± docs", "verdict"]
    firsts = {(c["arm"], c["weights"]): c for c in first_comparisons(study)}
    named = labels(study)
    rows = []
    for line in sorted(study["lines"], key=lambda line: line["bits_per_byte"]):
        row = [line["label"], str(len(line["seeds"])), f"{line['bits_per_byte']:.4f}"]
        found = firsts.get((line["arm"], line["weights"]))
        if found is None:
            rows.append([*row, *[""] * 4, "baseline"])
            continue
        against = named[found["against"]["arm"], found["against"]["weights"]]
        rows.append([*row, against, *cells(found["parts"]["all"])])
    return header, rows


def cells(verdict: dict[str, Any]) -> list[str]:
    """Difference, interval, error over documents and verdict."""
    low, high = verdict["low"], verdict["high"]
    interval = DASH if low is None else f"{low:+.4f} to {high:+.4f}"
    word = SHORT.get(verdict["verdict"], verdict["verdict"])
    return [f"{verdict['mean']:+.4f}", interval, f"{verdict['document_error']:.4f}", word]
