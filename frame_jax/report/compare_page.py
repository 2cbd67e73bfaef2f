"""Writes the page that shows the effects of orders in several runs side by side."""

import itertools
from collections.abc import Sequence
from pathlib import Path

from frame_jax.report import figures, notes
from frame_jax.report.compared_runs import (
    FILE,
    ComparedRun,
    ComparedRuns,
    arm_label,
    arm_rank,
    comparison_notes,
    near,
    rounded,
    runs_table,
    summary_sentences,
    table_rows,
)
from frame_jax.report.html import note, table, tag
from frame_jax.report.page import Figure, Piece, write_page
from frame_jax.run.directory import write_dataclass

WORDS = {"parameters": "parameters", "tokens_per_parameter": "tokens a parameter"}


def write_comparison(compared: ComparedRuns, folder: Path) -> None:
    """Writes `index.html`, its figures and `compare.json` into `folder`."""
    runs = compared.runs
    pieces: list[Piece] = [tag("p", line, class_="lead") for line in summary_sentences(compared)]
    for name, title, panels in (
        ("effect-by-size", "By size of the model", trend_panels(runs, *WORDS)),
        ("effect-by-tokens", "By tokens a parameter", trend_panels(runs, *reversed(WORDS))),
        ("effect-by-score", "By score", score_panels(runs)),
    ):
        (folder / f"{name}.png").unlink(missing_ok=True)  # that other runs had
        if panels:
            pieces += [tag("h2", title), Figure(name, panels, notes.EFFECTS)]
    pieces += [tag("h2", "All differences"), table(*table_rows(runs)), note(compared.rule)]
    pieces += [tag("p", line) for line in comparison_notes(runs)]
    pieces += [tag("h2", "The runs"), table(*runs_table(runs)), note(notes.RUNS)]
    write_page(f"Effects of orders in {len(runs)} runs", pieces, folder)
    write_dataclass(folder / FILE, compared)


def trend_panels(runs: Sequence[ComparedRun], along: str, beside: str) -> list[figures.Panel]:
    """A panel an order: its effects along `along`, of runs that are alike in all else.

    `along` and `beside` are the keys of `WORDS`. Where runs have one value only there is no panel.
    """
    numbers, others = (near(getattr(run, key) for run in runs) for key in (along, beside))
    rows, found = [], dict[tuple[str, ...], set[float]]()
    for run in sorted(runs, key=lambda run: others[getattr(run, beside)]):
        kind = rounded(others[getattr(run, beside)]), ", ".join(run.layers), ", ".join(run.scores)
        at = numbers[getattr(run, along)]
        for arm in run.arms:
            about = {"run": run.name, "order": arm_label(run, arm), "minus": arm.against}
            rows.append(figures.effect_row(arm.verdict, at=at, kind=kind, **about))
            found.setdefault((about["order"], *kind), set()).add(at)
    rows = [row for row in rows if len(found[row["order"], *row["kind"]]) > 1]
    if not rows:
        return []
    differ = [True, *(len({row["kind"][i] for row in rows}) > 1 for i in (1, 2))]
    for row in rows:
        row["series"] = ", ".join(itertools.compress(row["kind"], differ))
    orders = sorted({row["order"] for row in rows}, key=arm_rank)
    return figures.effect_trends(rows, orders, WORDS[along], WORDS[beside])


def score_panels(runs: Sequence[ComparedRun]) -> list[figures.Panel]:
    """A panel for each size and number of tokens that runs of several scores share."""
    sizes, tokens = (near(getattr(run, key) for run in runs) for key in WORDS)
    groups: dict[tuple[str, ...], list[ComparedRun]] = {}
    for run in runs:
        size, per_parameter = sizes[run.parameters], tokens[run.tokens_per_parameter]
        key = rounded(size), rounded(per_parameter), *run.layers
        groups.setdefault(key, []).append(run)
    panels = []
    for (size, per_parameter, *_), own in groups.items():
        rows = [
            figures.effect_row(
                arm.verdict, run=run.name, label=f"{run.score_names}: {arm_label(run, arm)}"
            )
            for run in own
            for arm in run.arms
        ]
        if len({run.score_names for run in own}) > 1:
            title = f"{size} parameters, {per_parameter} tokens a parameter"
            panels.append(figures.forest(rows).properties(title=title))
    return panels
