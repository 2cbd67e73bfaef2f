"""Makes the chapters of a report that are about its study: verdicts, forgetting, cost."""

from frame_jax.report import figures, notes, sections
from frame_jax.report.chapters import ReportData
from frame_jax.report.held_out_curves import LossPoint, loss_curves
from frame_jax.report.html import folded_section, note, table, tag
from frame_jax.report.page import Figure, Piece
from frame_jax.report.study_results import (
    FINAL,
    forgetting_sentences,
    number,
    si,
    table_rows,
    verdict_cells,
)

FOREST_LINES = 40  # drawn; the table has them all


def verdicts_chapter(data: ReportData) -> list[Piece]:
    """The outcome, like against like, and the buttons that are the legend of all that follows."""
    study, firsts = data.study, data.study.first_comparisons()
    compared = [*firsts.values(), *study.before]
    sentences = [found.sentence for found in compared if found.line.weights == FINAL]
    sentences += forgetting_sentences(study)
    nothing = f"There is no {study.baseline} to compare with."
    if not study.lines:
        nothing = "No curriculum has been evaluated yet."
    found: list[Piece] = [tag("p", line, class_="lead") for line in sentences or [nothing]]
    if sentences and len(study.seeds) == 1:
        found.append(tag("p", notes.ONE_SEED))
    if study.lines:
        found.append(table(*table_rows(study)))
    if compared:
        details = []
        for comparison in (*study.comparisons, *study.before):
            tasks = {f"task: {task}": verdict for task, verdict in comparison.tasks.items()}
            rows = [
                [name, *verdict_cells(verdict), number(verdict.detectable)]
                for name, verdict in (comparison.slices | tasks).items()
            ]
            title = f"{comparison.line.label} minus {comparison.against.label}"
            header = ["part", "difference", "95% interval", "± docs", "verdict", "detectable"]
            details += [tag("h3", title), table(header, rows)]
        count_note = notes.COMPARISONS.format(count=study.comparisons_made)
        kinds = (list(firsts.values()), list(study.before))
        panels = [
            figures.forest(
                [
                    figures.effect_row(c.slices["all"], label=c.line.label, minus=c.against.label)
                    for c in own[:FOREST_LINES]
                ]
            )
            for own in kinds
            if own
        ]
        found += [
            note(f"{study.rule} {count_note}"),
            Figure("verdicts", panels, notes.FOREST),
            folded_section("By domain, language, quadrant and task", *details),
        ]
    return [*found, sections.arm_buttons(data.names)]


def forgetting_chapter(data: ReportData) -> list[Piece]:
    """What was learned on the way and lost again; nothing where no arm was evaluated.

    Per arm and quadrant: lowest held-out loss on the way, final one, and what lies between.
    """
    if not data.results:
        return []
    groups: dict[tuple[str, str], list[LossPoint]] = {}
    for point in loss_curves(data.results, data.continued):
        dimension, _, quadrant = point.slice.partition(": ")
        if dimension == "quadrant":
            groups.setdefault((point.arm, quadrant), []).append(point)
    rows = []
    for (arm, quadrant), points in groups.items():
        lowest, final = min(points, key=lambda point: point.nll), points[-1]
        at_step = f"{lowest.nll:.4f} ({lowest.step:,})"
        rows.append([arm, quadrant, at_step, f"{final.nll:.4f}", f"{final.nll - lowest.nll:+.4f}"])
    found: list[Piece] = [
        tag("h2", "What was learned, and what was forgotten"),
        table(["order", "quadrant", "lowest (at step)", "at the end", "lost again"], rows),
        note(notes.FORGOTTEN),
    ]
    if data.training_rows:
        baseline = data.study.baseline
        panel = figures.training_rows(data.training_rows, data.names, baseline)
        caption = notes.TRAINING_ROWS.format(baseline=baseline)
        found.append(Figure("training-rows", [panel], caption))
    return found


def cost_chapter(data: ReportData) -> list[Piece]:
    """What the study cost, and whether an order paid for its scoring.

    That is: when each arm reaches the baseline's final loss.
    """
    study = data.study
    if not study.costs:
        return []
    found: list[Piece] = [tag("h2", "Cost")]
    if study.steps_to_baseline:
        header = ["order", "at step, by seed", "of the baseline's steps"]
        rows = [
            [
                arm.arm,
                ", ".join(number(step, ",.0f") for step in arm.steps),
                number(arm.share, ".1%"),
                number(arm.share_with_scoring, ".1%"),
            ]
            for arm in study.steps_to_baseline
        ]
        found.append(table([*header, "with references and scoring"], rows))
        found.append(note(notes.REACHING.format(baseline=study.baseline)))
    rows = [[cost.work, si(cost.flops), f"{cost.seconds:,.0f}"] for cost in study.costs]
    known = sum(cost.flops for cost in study.costs if cost.flops is not None)
    rows.append(["all", si(known), f"{sum(cost.seconds for cost in study.costs):,.0f}"])
    costs = table(["work", "FLOPs", "seconds"], rows)
    return [*found, folded_section("FLOPs and seconds", costs)]
