"""Compares the evaluated arms of a run: the study that `report/verdict.json` holds.

The terminal's table, the report's first chapter and the file say the same, because all three are
made of this.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from frame_jax.config.run import RunConfig, Trial
from frame_jax.evaluation.results import (
    ALL,
    TrialResult,
    WeightsResult,
    read_results,
    scores_folder,
)
from frame_jax.models.flops import forward_flops_per_token, training_flops_per_token
from frame_jax.models.transformer import read_description
from frame_jax.report.held_out_curves import checkpoints_around
from frame_jax.report.paired_differences import baseline_trials, slice_verdicts, task_verdict
from frame_jax.report.study_results import (
    BEFORE,
    FINAL,
    ComparedLine,
    Comparison,
    Cost,
    LineResult,
    StageLosses,
    StepsToBaseline,
    Study,
)
from frame_jax.report.training_curves import StageSteps, read_training_run, training_drops
from frame_jax.report.verdict import RULE, verdict_sentence
from frame_jax.run.directory import RunDirectory
from frame_jax.run.markers import read_complete_marker
from frame_jax.run.phases import REFERENCES

UNIT = "bits per byte"
DOCUMENTS = ""  # which no task is called


def read_study(config: RunConfig, directory: RunDirectory) -> Study:
    """Compares the arms of a run with its baseline, as far as they have been evaluated."""
    every = read_results(directory)
    results = {trial: every[trial.name] for trial in config.trials if trial.name in every}
    lines = find_lines(config, results)
    comparisons = [
        found
        for line in lines
        for other in lines_to_compare_with(config, lines, line)
        if (found := compare_lines(config, directory, results, line, other)) is not None
    ]
    before = []
    if config.pretrain.initial is not None and lines:
        untouched = ComparedLine(BEFORE, FINAL)
        pairs = (compare_lines(config, directory, results, line, untouched) for line in lines)
        before = [found for found in pairs if found is not None]
        lines = [*lines, untouched]
    costs = run_costs(config, directory)
    return Study(
        unit=UNIT,
        rule=RULE,
        baseline=config.baseline,
        seeds=tuple(config.all_seeds),
        comparisons_made=sum(len(c.slices) + len(c.tasks) for c in (*comparisons, *before)),
        lines=tuple(line_result(results, line) for line in lines),
        comparisons=tuple(comparisons),
        costs=tuple(costs),
        steps_to_baseline=tuple(steps_to_baseline(config, costs, results)),
        before=tuple(before),
        stages=stage_losses(config, directory, results),
    )


def find_lines(config: RunConfig, results: dict[Trial, TrialResult]) -> list[ComparedLine]:
    """Lists the final weights of every evaluated arm, and the averages that all its seeds have."""
    lines = []
    for arm in config.curricula:
        own = [result for trial, result in results.items() if trial.arm == arm]
        names = [[FINAL, *(average.name for average in result.averages)] for result in own]
        shared = [name for name in names[0] if all(name in n for n in names)] if names else []
        lines += [ComparedLine(arm, weights) for weights in shared]
    return lines


def lines_to_compare_with(
    config: RunConfig, lines: list[ComparedLine], line: ComparedLine
) -> list[ComparedLine]:
    """Lists what a line is compared with, like for like first.

    That is the baseline's order under the line's own learning rate and with weights of the same
    kind, where the run has it: the two then differ in order alone. The baseline as it is comes
    second.
    """
    base = config.curricula.get(config.baseline)
    if base is None:
        return []
    schedule = config.curricula[line.arm].lr_schedule
    alike = dataclasses.replace(base, lr_schedule=schedule)
    twins = [arm for arm, curriculum in config.curricula.items() if curriculum == alike]
    wanted = [
        *(ComparedLine(arm, line.weights) for arm in twins),
        ComparedLine(config.baseline, FINAL),
    ]
    return [other for other in dict.fromkeys(wanted) if other in lines and other != line]


def compare_lines(
    config: RunConfig,
    directory: RunDirectory,
    results: dict[Trial, TrialResult],
    line: ComparedLine,
    other: ComparedLine,
) -> Comparison | None:
    """Compares `line` with `other` over the seeds that both have.

    None where there is none, or where they were measured on no document in common.
    """
    ones, others = (line_folders(directory, results, compared) for compared in (line, other))
    seeds = [seed for seed in ones if seed in others]

    def pairs(measurement: str) -> list[tuple[Path, Path]]:
        return [(ones[seed][measurement], others[seed][measurement]) for seed in seeds]

    slices = slice_verdicts(directory, pairs(DOCUMENTS)) if seeds else {}
    if ALL not in slices:
        return None
    tasks = {
        task.name: task_verdict(pairs(task.name))
        for task in config.evaluation.tasks
        if all(task.name in found[seed] for found in (ones, others) for seed in seeds)
    }
    sentence = verdict_sentence(slices[ALL], line.label, other.label, UNIT)
    return Comparison(line, other, tuple(seeds), slices, tasks, sentence)


def line_folders(
    directory: RunDirectory, results: dict[Trial, TrialResult], line: ComparedLine
) -> dict[int, dict[str, Path]]:
    """By seed, the folders of a line's losses by document (`DOCUMENTS`) and of its tasks' items."""
    found: dict[int, dict[str, Path]] = {}
    for trial, result in results.items():
        if line.arm in (trial.arm, BEFORE) and trial.seed not in found:
            weights = line_weights(result, line).name
            tasks = {
                s.task: directory.root / s.folder for s in result.tasks if s.weights == weights
            }
            found[trial.seed] = {DOCUMENTS: scores_folder(directory, trial.name, weights), **tasks}
    return found


def line_weights(result: TrialResult, line: ComparedLine) -> WeightsResult:
    """The losses of a trial's weights that belong to a line: final, untouched or an average."""
    if line.arm == BEFORE:
        return result.checkpoints[0]
    if line.weights == FINAL:
        return result.final
    return next(average for average in result.averages if average.name == line.weights)


def line_result(results: dict[Trial, TrialResult], line: ComparedLine) -> LineResult:
    """Averages a line's held-out loss over its seeds."""
    own = {t.seed: r for t, r in results.items() if line.arm in (t.arm, BEFORE)}
    measured = [line_weights(result, line) for result in own.values()]
    return LineResult(
        line,
        seeds=tuple(own),
        tokens=measured[0].tokens,
        bits_per_byte=sum(found.overall.bits_per_byte for found in measured) / len(measured),
        nll_per_token=sum(found.overall.nll_per_token for found in measured) / len(measured),
    )


def run_costs(config: RunConfig, directory: RunDirectory) -> list[Cost]:
    """Lists the cost of each finished piece of a run: references, scoring, training."""
    of_references = config.reference.rows.sequence_length
    found = [
        training_cost(directory, f"reference {name}", directory.reference(name), of_references)
        for name in REFERENCES
    ]
    if (marker := read_complete_marker(directory, "score")) is not None:
        found.append(Cost("score", scoring_flops(config, directory), marker.seconds))
    of_trials = config.partition.rows.sequence_length
    found += [
        training_cost(directory, f"pretrain {name}", directory.pretrain(name), of_trials)
        for name in (trial.name for trial in config.trials)
    ]
    return [cost for cost in found if cost is not None]


def training_cost(
    directory: RunDirectory, work: str, folder: Path, sequence_length: int
) -> Cost | None:
    """The cost of the model trained in `folder`; None where its training has not finished."""
    marker = read_complete_marker(directory, work.replace(" ", "-", 1))
    if marker is None:
        return None
    decoder, tokens = read_description(folder), marker.summary["tokens"]
    flops = tokens * training_flops_per_token(decoder, sequence_length)
    return Cost(work, flops, marker.seconds)


def scoring_flops(config: RunConfig, directory: RunDirectory) -> float | None:
    """FLOPs of scoring the train and held-out splits under both reference models.

    None where a reference model was imported, whose shape is not in the run directory, or scores
    were made elsewhere.
    """
    if config.scoring.table is not None:
        return None
    marker = read_complete_marker(directory, "tokenize")
    folders = [directory.reference(name) for name in REFERENCES]
    if marker is None or not all((folder / "model.json").exists() for folder in folders):
        return None
    tokens = sum(marker.summary["tokens"].get(split, 0) for split in ("train", "held_out"))
    per_token = sum(
        forward_flops_per_token(read_description(folder), config.scoring.context)
        for folder in folders
    )
    return tokens * per_token


def steps_to_baseline(
    config: RunConfig, costs: Sequence[Cost], results: dict[Trial, TrialResult]
) -> list[StepsToBaseline]:
    """Finds when each arm's held-out loss reaches the final one of the baseline, seed by seed."""
    flops = {cost.work: cost.flops for cost in costs}
    shared = [value for work, value in flops.items() if not work.startswith("pretrain")]
    overhead = None if None in shared else sum(value for value in shared if value is not None)
    pairs = baseline_trials(config, results)
    found = []
    for arm in config.curricula:
        steps, shares, with_scoring = [], [], []
        for trial, base in pairs.items():
            if trial.arm != arm:
                continue
            last = results[base].final
            step = first_step_at_loss(results[trial], last.overall.nll_per_token)
            steps.append(step)
            if step is not None:
                shares.append(step / last.step)
                whole = flops.get(f"pretrain {base.name}")
                if overhead is not None and whole:
                    with_scoring.append(step / last.step + overhead / whole)
        if steps:
            means = [
                sum(values) / len(values) if values and None not in steps else None
                for values in (shares, with_scoring)
            ]
            found.append(StepsToBaseline(arm, tuple(steps), *means))
    return found


def stage_losses(
    config: RunConfig, directory: RunDirectory, results: dict[Trial, TrialResult]
) -> dict[str, tuple[StageLosses, ...]]:
    """Averages the losses where stages begin over the seeds of each arm that has several stages."""
    found = {}
    for arm in config.curricula:
        seeds = [
            [
                losses_around(stage, losses, results.get(trial))
                for stage, losses in zip(run.stages, training_drops(run), strict=True)
            ]
            for trial in config.trials
            if trial.arm == arm
            and (run := read_training_run(directory.pretrain(trial.name), arm)) is not None
            and len(run.stages) > 1
        ]
        if seeds:
            found[arm] = tuple(map(mean_losses, zip(*seeds, strict=True)))
    return found


def losses_around(
    stage: StageSteps, training: tuple[float | None, float | None], result: TrialResult | None
) -> StageLosses:
    """The losses of one trial where one of its stages begins."""
    points = checkpoints_around(result, stage.start) if result else (None, None)
    return StageLosses(
        stage.name,
        stage.start,
        training=training,
        held_out=tuple(None if p is None else p.overall.nll_per_token for p in points),
        held_out_steps=tuple(None if p is None else p.step for p in points),
    )


def mean_losses(seeds: Sequence[StageLosses]) -> StageLosses:
    """The mean over seeds; None on a side that one of them lacks."""

    def mean(name: str) -> tuple[float | None, ...]:
        sides = zip(*(getattr(losses, name) for losses in seeds), strict=True)
        return tuple(None if None in side else sum(side) / len(side) for side in sides)

    return dataclasses.replace(seeds[0], training=mean("training"), held_out=mean("held_out"))


def first_step_at_loss(result: TrialResult, loss: float) -> float | None:
    """The step at which a held-out curve first comes down to `loss`; None if it never does.

    Between two kept checkpoints the curve is a straight line.
    """
    before: tuple[int, float] | None = None
    for checkpoint in result.checkpoints:
        step, nll = checkpoint.step, checkpoint.overall.nll_per_token
        if nll <= loss:
            if before is None or before[1] == nll:
                return float(step)
            share = (before[1] - loss) / (before[1] - nll)
            return before[0] + share * (step - before[0])
        before = step, nll
    return None
