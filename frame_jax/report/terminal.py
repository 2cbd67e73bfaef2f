"""A study in, the table that ends a run on the terminal out."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from frame_jax.report.verdict_table import Study, table_rows


def terminal_table(study: Study) -> Table:
    """Final held-out losses of all arms, best first, and the verdicts: the report's first table."""
    header, rows = table_rows(study)
    table = Table(title="Held-out loss after pretraining", title_justify="left")
    for number, name in enumerate(header):
        left = name in ("order", "minus", "verdict")
        style = "bold" if number == 0 else ""
        table.add_column(name, style=style, justify="left" if left else "right")
    for row in rows:
        table.add_row(*map(Text, row))  # a name is no markup
    if len(study["seeds"]) == 1:
        table.caption = "one seed: nothing here tells an effect of the order from chance (seeds: 3)"
    else:
        table.caption = f"{study['comparisons_made']} comparisons made; the rule is in the report"
    return table
