"""Makes the tables and sentences on a study."""

from __future__ import annotations

from collections.abc import Sequence

from frame_jax.report.held_out_curves import LossPoint
from frame_jax.report.html import Html, join_html, table, tag
from frame_jax.report.sections import number, si
from frame_jax.report.study_results import FINAL, Study
from frame_jax.report.training_curves import StageBoundary
from frame_jax.report.verdict_table import verdict_cells

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


def headline(study: Study) -> list[Html]:
    """The outcome: a sentence for each arm's final weights, like against like."""
    if not study.lines:
        return [tag("p", "No curriculum has been evaluated yet.", class_="lead")]
    firsts = study.first_comparisons()
    sentences = [found.sentence for line, found in firsts.items() if line.weights == FINAL]
    if not sentences:
        return [tag("p", f"There is no {study.baseline} to compare with.", class_="lead")]
    found = [tag("p", sentence, class_="lead") for sentence in sentences]
    return [*found, tag("p", ONE_SEED)] if len(study.seeds) == 1 else found


def slice_tables(study: Study) -> list[tuple[str, Html]]:
    """Titles and tables of every comparison on every slice of the held-out split and every task."""
    header = ["part", "difference", "95% interval", "± docs", "verdict", "detectable"]
    found = []
    for comparison in study.comparisons:
        tasks = {f"task: {task}": verdict for task, verdict in comparison.tasks.items()}
        rows = [
            [name, *verdict_cells(verdict), number(verdict.detectable)]
            for name, verdict in (comparison.slices | tasks).items()
        ]
        title = f"{comparison.line.label} minus {comparison.against.label}"
        found.append((title, table(header, rows)))
    return found


def cost_table(study: Study) -> Html:
    """FLOPs and seconds of everything that was computed."""
    rows = [[cost.work, si(cost.flops), f"{cost.seconds:,.0f}"] for cost in study.costs]
    known = sum(cost.flops for cost in study.costs if cost.flops is not None)
    rows.append(["all", si(known), f"{sum(cost.seconds for cost in study.costs):,.0f}"])
    return table(["work", "FLOPs", "seconds"], rows)


def steps_to_baseline_table(study: Study) -> Html:
    """When each arm reaches the baseline's final loss."""
    rows = [
        [
            found.arm,
            ", ".join(number(step, ",.0f") for step in found.steps),
            number(found.share, ".1%"),
            number(found.share_with_scoring, ".1%"),
        ]
        for found in study.steps_to_baseline
    ]
    header = ["order", "at step, by seed", "of the baseline's steps", "with references and scoring"]
    return table(header, rows)


def forgetting_table(curves: Sequence[LossPoint]) -> Html:
    """Per arm and quadrant: lowest held-out loss on the way, final one, and what lies between."""
    groups: dict[tuple[str, str], list[LossPoint]] = {}
    for point in curves:
        dimension, _, quadrant = point.slice.partition(": ")
        if dimension == "quadrant":
            groups.setdefault((point.arm, quadrant), []).append(point)
    rows = []
    for (arm, quadrant), points in groups.items():
        lowest, final = min(points, key=lambda point: point.nll), points[-1]
        at_step = f"{lowest.nll:.4f} ({lowest.step:,})"
        rows.append([arm, quadrant, at_step, f"{final.nll:.4f}", f"{final.nll - lowest.nll:+.4f}"])
    return table(["order", "quadrant", "lowest (at step)", "at the end", "lost again"], rows)


def boundary_table(boundaries: Sequence[StageBoundary]) -> Html:
    """Gradient norm and size of updates before and after each stage of one arm begins."""
    rows = [
        [
            f"into {b.stage}",
            f"{b.step:,}",
            *(number(side.grad_norm, ".3g") for side in (b.before, b.after)),
            *(number(side.update_norm, ".3g") for side in (b.before, b.after)),
        ]
        for b in boundaries
    ]
    header = ["", "at step", "gradient norm before", "after", "update norm before", "after"]
    return table(header, rows)
