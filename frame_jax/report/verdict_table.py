"""The table of verdicts, for the page and for the terminal.

Imports nothing heavy: a finished run shows its table at once.
"""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from frame_jax.report.study_results import NONE, UNTESTED, Study, Verdict

DASH = "–"
SHORT = {NONE: "no difference", UNTESTED: "not tested"}


def table_rows(study: Study) -> tuple[list[str], list[list[str]]]:
    """Makes the header and the rows of the table of verdicts, lowest loss first."""
    header = ["order", "seeds", "bits / byte", "minus", "difference", "95% interval"]
    header += ["± docs", "verdict"]
    comparisons = study.first_comparisons()
    rows = []
    for result in sorted(study.lines, key=lambda result: result.bits_per_byte):
        row = [result.line.label, str(len(result.seeds)), f"{result.bits_per_byte:.4f}"]
        found = comparisons.get(result.line)
        if found is None:
            rows.append([*row, *[""] * 4, "baseline"])
        else:
            rows.append([*row, found.against.label, *verdict_cells(found.slices["all"])])
    return header, rows


def verdict_cells(verdict: Verdict) -> list[str]:
    """Difference, interval, error over documents and verdict as text."""
    low, high = verdict.low, verdict.high
    interval = DASH if low is None or high is None else f"{low:+.4f} to {high:+.4f}"
    word = SHORT.get(verdict.verdict, verdict.verdict)
    return [f"{verdict.mean:+.4f}", interval, f"{verdict.document_error:.4f}", word]


def terminal_table(study: Study) -> Table:
    """Makes the table that ends a run on the terminal: the report's first table."""
    header, rows = table_rows(study)
    table = Table(title="Held-out loss after pretraining", title_justify="left")
    for number, name in enumerate(header):
        left = name in ("order", "minus", "verdict")
        style = "bold" if number == 0 else ""
        table.add_column(name, style=style, justify="left" if left else "right")
    for row in rows:
        table.add_row(*map(Text, row))  # a name is no markup
    if len(study.seeds) == 1:
        table.caption = "one seed: nothing here tells an effect of the order from chance (seeds: 3)"
    else:
        table.caption = f"{study.comparisons_made} comparisons made; the rule is in the report"
    return table
