"""Writes the page that shows the effects of orders in several runs side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from frame_jax.report import figures, notes
from frame_jax.report.compared_runs import (
    FILE,
    ComparedRun,
    ComparedRuns,
    comparison_notes,
    near,
    rounded,
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
    pieces: list[Piece] = [tag("p", line, class_="lead") for line in summary_sentences(runs)]
    for name, title, panels in (
        ("effect-by-size", "By size of the model", trend_panels(runs, *WORDS)),
        ("effect-by-tokens", "By tokens a parameter", trend_panels(runs, *reversed(WORDS))),
        ("effect-by-score", "By score", score_panels(runs)),
    ):
        (folder / f"{name}.png").unlink(missing_ok=True)  # of other runs
        if panels:
            pieces += [tag("h2", title), Figure(name, panels, notes.EFFECTS)]
    pieces += [tag("h2", "All differences"), table(*table_rows(runs, whole=True))]
    pieces += [note(line) for line in (runs[0].study.rule, notes.RUNS, *comparison_notes(runs))]
    write_page(f"Effects of orders in {len(runs)} runs", pieces, folder)
    write_dataclass(folder / FILE, compared)


def trend_panels(runs: Sequence[ComparedRun], along: str, beside: str) -> list[figures.Panel]:
    """A panel an order: its effects along `along`, of runs that are alike in all else.

    `along` and `beside` are the keys of `WORDS`. Where runs have one value only there is no panel.
    """
    numbers, others = (near(getattr(run, key) for run in runs) for key in (along, beside))
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for run in sorted(runs, key=lambda run: others[getattr(run, beside)]):
        at, series = numbers[getattr(run, along)], rounded(others[getattr(run, beside)])
        series += f" {run.layers}" if run.layers != runs[0].layers else ""
        series += f" {run.scores}" if run.scores != runs[0].scores else ""
        for order, verdict in run.effects():
            about = {"run": run.name, "order": order, "series": series, "at": at}
            groups.setdefault((order, series), []).append(figures.effect_row(verdict, **about))
    trends = [own for own in groups.values() if len({row["at"] for row in own}) > 1]
    return figures.effect_trends(
        [row for own in trends for row in own],
        list(dict.fromkeys(own[0]["order"] for own in trends)),
        WORDS[along],
        WORDS[beside],
    )


def score_panels(runs: Sequence[ComparedRun]) -> list[figures.Panel]:
    """A panel for each size and number of tokens that runs of several scores share."""
    sizes, tokens = (near(getattr(run, key) for run in runs) for key in WORDS)
    groups: dict[tuple[float, float, str], dict[str, list[dict[str, Any]]]] = {}
    for run in runs:
        key = (sizes[run.parameters], tokens[run.tokens_per_parameter], run.layers)
        scores = f"{run.scores} ({run.references})" if run.references else run.scores
        groups.setdefault(key, {}).setdefault(scores, []).extend(
            figures.effect_row(verdict, run=run.name, label=f"{scores}: {order}")
            for order, verdict in run.effects()
        )
    return [
        figures.forest([row for own in by_score.values() for row in own]).properties(
            title=f"{rounded(size)} parameters, {rounded(ratio)} tokens a parameter"
        )
        for (size, ratio, _), by_score in groups.items()
        if len(by_score) > 1
    ]
