"""The chapters of a report that are about its study: verdicts, what was forgotten, cost."""

from __future__ import annotations

from typing import Any

from frame_jax.report import figures, notes, sections, study_sections, training_curves
from frame_jax.report.chapters import Figure, Piece, ReportData
from frame_jax.report.held_out_results import curve_rows
from frame_jax.report.html import tag
from frame_jax.report.verdict_table import first_comparisons, labels

FOREST_LINES = 40  # drawn; the table has them all


def verdicts_chapter(data: ReportData) -> list[Piece]:
    """The outcome, and the buttons that are the legend of all that follows."""
    study = data.study
    found: list[Piece] = [*study_sections.headline(study)]
    if study["lines"]:
        found.append(study_sections.verdict_table(study))
    firsts = first_comparisons(study)
    if firsts:
        comparisons = notes.COMPARISONS.format(count=study["comparisons_made"])
        found.append(tag("p", f"{study['rule']} {comparisons}", class_="note"))
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
        found += [
            sections.folded_section(
                "By domain, language, quadrant and task", *comparison_sections(study)
            )
        ]
    return [*found, sections.arm_buttons(data.names)]


def comparison_sections(study: dict[str, Any]) -> list[str]:
    """Headings and tables of all comparisons in detail."""
    return [
        part
        for title, shown in study_sections.part_tables(study)
        for part in (tag("h3", title), shown)
    ]


def forgetting_chapter(data: ReportData) -> list[Piece]:
    """What was learned on the way and lost again; nothing where no arm was evaluated."""
    if not data.results:
        return []
    rows = curve_rows(data.results)
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
        study_sections.forgetting_table(kept),
        tag("p", notes.FORGOTTEN, class_="note"),
    ]
    if data.training_rows:
        panel = figures.training_rows(data.training_rows, data.names, data.baseline)
        found.append(
            Figure("training-rows", [panel], notes.TRAINING_ROWS.format(baseline=data.baseline))
        )
    return [*found, *boundaries_chapter(data)]


def boundaries_chapter(data: ReportData) -> list[Piece]:
    """Gradient norm and update size where stages begin; nothing for arms of one stage."""
    found: list[Piece] = []
    for arm in data.arms:
        lines = training_curves.boundary_norms(arm) if len(arm.stages) > 1 else []
        if lines:
            shown = study_sections.boundary_table(lines)
            found.append(shown if arm is data.shaded else sections.folded_section(arm.name, shown))
    if not found:
        return []
    note = notes.BOUNDARIES.format(window=training_curves.WINDOW)
    return [tag("h3", "Gradients and updates where a stage begins"), *found,
            tag("p", note, class_="note")]  # fmt: skip


def cost_chapter(data: ReportData) -> list[Piece]:
    """What the study cost, and whether an order paid for its scoring."""
    if not data.study["costs"]:
        return []
    found: list[Piece] = [tag("h2", "Cost")]
    if data.study["reaching"]:
        found += [
            study_sections.steps_to_baseline_table(data.study),
            tag("p", notes.REACHING.format(baseline=data.baseline), class_="note"),
        ]
    whole = sections.folded_section("FLOPs and seconds", study_sections.cost_table(data.study))
    return [*found, whole]
