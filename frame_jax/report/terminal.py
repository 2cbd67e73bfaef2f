"""The run directory in, the table that ends a run on the terminal out."""

from __future__ import annotations

from collections.abc import Collection

from rich.table import Table
from rich.text import Text

from frame_jax.report.held_out_results import BASELINE, differences, final, read_results
from frame_jax.run.directory import RunDirectory


def terminal_table(directory: RunDirectory, arms: Collection[str]) -> Table:
    """Final held-out losses of `arms`, best first, and their differences to the random order."""
    results = {arm: found for arm, found in read_results(directory).items() if arm in arms}
    against = differences(directory, results)
    table = Table(title="Held-out loss after pretraining", title_justify="left")
    table.add_column("order", style="bold")
    for name in ("training tokens", "nats / token", "bits / byte", f"minus {BASELINE}"):
        table.add_column(name, justify="right")
    for arm in sorted(results, key=lambda arm: final(results[arm])["overall"]["nll_per_token"]):
        last = final(results[arm])
        difference = against.get(arm)
        table.add_row(
            Text(arm),  # a name is no markup
            f"{last['tokens']:,}",
            f"{last['overall']['nll_per_token']:.4f}",
            f"{last['overall']['bits_per_byte']:.4f}",
            "" if difference is None else f"{difference[0]:+.4f} ± {difference[1]:.4f}",
        )
    if against:
        table.caption = "± is one standard error over held-out documents, paired"
    return table
