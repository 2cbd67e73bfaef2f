"""The chapters of a report that are about its study: verdicts, what was forgotten, cost."""

from __future__ import annotations

from typing import Any

from frame_jax.report import figures, notes, sections, study_sections, training_curves
from frame_jax.report.chapters import Figure, Piece, Trained
from frame_jax.report.held_out_results import curve_rows
from frame_jax.report.html import tag
from frame_jax.report.verdict_table import first_comparisons, labels

FOREST_LINES = 40  # drawn; the table has them all


def verdicts(run: Trained) -> list[Piece]:
    """The outcome, and the buttons that are the legend of all that follows."""
    study = run.study
    found: list[Piece] = [*study_sections.headline(study)]
    if study["lines"]:
        found.append(study_sections.verdict_table(study))
    firsts = first_comparisons(study)
    if firsts:
        made = notes.COMPARISONS.format(count=study["comparisons_made"])
        found.append(tag("p", f"{study['rule']} {made}", class_="note"))
        named = labels(study)
        rows = [
            {
                "label": named[c["arm"], c["weights"]],
                "against": named[c["against"]["arm"], c["against"]["weights"]],
                **c["parts"]["all"],
            }
            for c in firsts[:FOREST_LINES]
        ]
        found.append(Figure("verdicts", [figures.forest(rows)], notes.FOREST))
        found += [sections.folded("By domain, language, quadrant and task", *pieces(study))]
    return [*found, sections.arm_buttons(run.names)]


def pieces(study: dict[str, Any]) -> list[str]:
    """Headings and tables of all comparisons in detail."""
    return [
        part
        for title, shown in study_sections.part_tables(study)
        for part in (tag("h3", title), shown)
    ]


def forgotten(run: Trained) -> list[Piece]:
    """What was learned on the way and lost again; nothing where no arm was evaluated."""
    if not run.results:
        return []
    rows = curve_rows(run.results)
    quadrants = [row for row in rows if row["slice"].startswith("quadrant: ")]
    kept: list[dict[str, Any]] = []
    for arm, part in dict.fromkeys((row["arm"], row["slice"]) for row in quadrants):
        own = [row for row in quadrants if (row["arm"], row["slice"]) == (arm, part)]
        lowest = min(own, key=lambda row: row["nll"])
        kept.append(
            {
                "arm": arm,
                "slice": part,
                "lowest": lowest["nll"],
                "at": lowest["step"],
                "final": own[-1]["nll"],
            }
        )
    found: list[Piece] = [
        tag("h2", "What was learned, and what was forgotten"),
        study_sections.forgotten_table(kept),
        tag("p", notes.FORGOTTEN, class_="note"),
    ]
    if run.training_rows:
        panel = figures.training_rows(run.training_rows, run.names, run.baseline)
        found.append(
            Figure("training-rows", [panel], notes.TRAINING_ROWS.format(baseline=run.baseline))
        )
    return [*found, *boundaries(run)]


def boundaries(run: Trained) -> list[Piece]:
    """Gradient norm and update size where stages begin; nothing for arms of one stage."""
    found: list[Piece] = []
    for arm in run.arms:
        lines = training_curves.boundaries(arm) if len(arm.stages) > 1 else []
        if lines:
            shown = study_sections.boundary_table(lines)
            found.append(shown if arm is run.shaded else sections.folded(arm.name, shown))
    if not found:
        return []
    note = notes.BOUNDARIES.format(window=training_curves.WINDOW)
    return [tag("h3", "Gradients and updates where a stage begins"), *found,
            tag("p", note, class_="note")]  # fmt: skip


def cost(run: Trained) -> list[Piece]:
    """What the study cost, and whether an order paid for its scoring."""
    if not run.study["costs"]:
        return []
    found: list[Piece] = [tag("h2", "Cost")]
    if run.study["reaching"]:
        found += [
            study_sections.reaching_table(run.study),
            tag("p", notes.REACHING.format(baseline=run.baseline), class_="note"),
        ]
    whole = sections.folded("FLOPs and seconds", study_sections.cost_table(run.study))
    return [*found, whole]
