"""What `study.read_study` gives in, the tables and sentences of its chapters out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from frame_jax.report.html import Html, join_html, table, tag
from frame_jax.report.sections import NONE, number, si
from frame_jax.report.training_curves import Boundary
from frame_jax.report.verdict_table import (
    FINAL,
    Study,
    cells,
    first_comparisons,
    labels,
    table_rows,
)


def headline(study: Study) -> list[Html]:
    """The outcome: a sentence for each arm's final weights, like against like."""
    if not study["lines"]:
        return [tag("p", "No curriculum has been evaluated yet.", class_="lead")]
    sentences = [c["sentence"] for c in first_comparisons(study) if c["weights"] == FINAL]
    if not sentences:
        return [tag("p", f"There is no {study['baseline']} to compare with.", class_="lead")]
    found = [tag("p", sentence, class_="lead") for sentence in sentences]
    if len(study["seeds"]) == 1:
        found.append(tag("p", ONE_SEED))
    return found


ONE_SEED = join_html(
    [
        "This run has one seed, so nothing here tells an effect of the order from chance: another "
        "seed alone moves such differences. ",
        tag("code", "seeds: 3"),
        " in the config trains every order twice more, beside what is there. This project's own "
        "studies, of models of half a million parameters under three seeds, found FRAME's order no "
        "better than random order: no difference that they could see on two corpora, and worse for "
        "Mamba-2 (docs/evidence.md). The first of them, less than two hours on two cores, is ",
        tag("code", "python -m frame_jax.main --config configs/study_cpu.yaml"),
        ".",
    ]
)


def verdict_table(study: Study) -> Html:
    """One line an arm, and one an average of its checkpoints."""
    return table(*table_rows(study))


def part_tables(study: Study) -> list[tuple[str, Html]]:
    """Titles and tables of every comparison on every part of the held-out split and every task."""
    named = labels(study)
    header = ["part", "difference", "95% interval", "± docs", "verdict", "detectable"]
    found = []
    for c in study["comparisons"]:
        against = named[c["against"]["arm"], c["against"]["weights"]]
        rows = [
            [name, *cells(verdict), number(verdict["detectable"])]
            for name, verdict in [
                *c["parts"].items(),
                *((f"task: {task}", verdict) for task, verdict in c["tasks"].items()),
            ]
        ]
        found.append((f"{named[c['arm'], c['weights']]} minus {against}", table(header, rows)))
    return found


def cost_table(study: Study) -> Html:
    """FLOPs and seconds of everything that was computed."""
    rows = [[c["work"], si(c["flops"]), f"{c['seconds']:,.0f}"] for c in study["costs"]]
    known = [c["flops"] for c in study["costs"] if c["flops"] is not None]
    rows.append(["all", si(sum(known)), f"{sum(c['seconds'] for c in study['costs']):,.0f}"])
    return table(["work", "FLOPs", "seconds"], rows)


def steps_to_baseline_table(study: Study) -> Html:
    """When each arm reaches the baseline's final loss."""
    rows = [
        [
            found["arm"],
            ", ".join(NONE if step is None else f"{step:,.0f}" for step in found["steps"]),
            number(found["share"], ".1%"),
            number(found["share_with_scoring"], ".1%"),
        ]
        for found in study["reaching"]
    ]
    header = ["order", "at step, by seed", "of the baseline's steps", "with references and scoring"]
    return table(header, rows)


def forgetting_table(lines: Sequence[dict[str, Any]]) -> Html:
    """Per arm and quadrant: lowest held-out loss on the way, final one, and what lies between."""
    rows = [
        [
            row["arm"],
            row["slice"].removeprefix("quadrant: "),
            f"{row['lowest']:.4f} ({row['at']:,})",
            f"{row['final']:.4f}",
            f"{row['final'] - row['lowest']:+.4f}",
        ]
        for row in lines
    ]
    return table(["order", "quadrant", "lowest (at step)", "at the end", "lost again"], rows)


def boundary_table(boundaries: Sequence[Boundary]) -> Html:
    """Gradient norm and size of updates before and after each stage of one arm begins."""
    rows = [
        [
            f"into {b.stage}",
            f"{b.step:,}",
            *(number(value, ".3g") for value in (*b.grad_norm, *b.update_norm)),
        ]
        for b in boundaries
    ]
    header = ["", "at step", "gradient norm before", "after", "update norm before", "after"]
    return table(header, rows)
