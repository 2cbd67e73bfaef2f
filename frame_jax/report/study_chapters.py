"""Makes the chapters of a report that are about its study: verdicts, forgetting, cost."""

from __future__ import annotations

from frame_jax.report import figures, notes, sections, study_sections, training_curves
from frame_jax.report.chapters import Figure, Piece, ReportData
from frame_jax.report.held_out_curves import loss_curves
from frame_jax.report.html import table, tag
from frame_jax.report.verdict_table import table_rows

FOREST_LINES = 40  # drawn; the table has them all


def verdicts_chapter(data: ReportData) -> list[Piece]:
    """The outcome, and the buttons that are the legend of all that follows."""
    study = data.study
    found: list[Piece] = [*study_sections.headline(study)]
    if study.lines:
        found.append(table(*table_rows(study)))
    if firsts := list(study.first_comparisons().values()):
        count_note = notes.COMPARISONS.format(count=study.comparisons_made)
        details = [
            part
            for title, shown in study_sections.slice_tables(study)
            for part in (tag("h3", title), shown)
        ]
        found += [
            tag("p", f"{study.rule} {count_note}", class_="note"),
            Figure("verdicts", [figures.forest(firsts[:FOREST_LINES])], notes.FOREST),
            sections.folded_section("By domain, language, quadrant and task", *details),
        ]
    return [*found, sections.arm_buttons(data.names)]


def forgetting_chapter(data: ReportData) -> list[Piece]:
    """What was learned on the way and lost again; nothing where no arm was evaluated."""
    if not data.results:
        return []
    found: list[Piece] = [
        tag("h2", "What was learned, and what was forgotten"),
        study_sections.forgetting_table(loss_curves(data.results)),
        tag("p", notes.FORGOTTEN, class_="note"),
    ]
    if data.training_rows:
        baseline = data.study.baseline
        panel = figures.training_rows(data.training_rows, data.names, baseline)
        note = notes.TRAINING_ROWS.format(baseline=baseline)
        found.append(Figure("training-rows", [panel], note))
    return [*found, *boundaries_chapter(data)]


def boundaries_chapter(data: ReportData) -> list[Piece]:
    """Gradient norm and update size where stages begin; nothing for arms of one stage."""
    found: list[Piece] = []
    for arm in data.arms:
        if len(arm.stages) > 1:
            shown = study_sections.boundary_table(training_curves.boundary_norms(arm))
            found.append(shown if arm is data.shaded else sections.folded_section(arm.name, shown))
    if not found:
        return []
    title = tag("h3", "Gradients and updates where a stage begins")
    note = notes.BOUNDARIES.format(window=training_curves.WINDOW)
    return [title, *found, tag("p", note, class_="note")]


def cost_chapter(data: ReportData) -> list[Piece]:
    """What the study cost, and whether an order paid for its scoring."""
    if not data.study.costs:
        return []
    found: list[Piece] = [tag("h2", "Cost")]
    if data.study.steps_to_baseline:
        found += [
            study_sections.steps_to_baseline_table(data.study),
            tag("p", notes.REACHING.format(baseline=data.study.baseline), class_="note"),
        ]
    whole = sections.folded_section("FLOPs and seconds", study_sections.cost_table(data.study))
    return [*found, whole]
