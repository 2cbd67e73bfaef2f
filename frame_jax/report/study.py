"""Compares the evaluated arms of a run: the study that `report/verdict.json` holds.

The terminal's table, the report's first chapter and the file say the same, because all three are
made of this.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from frame_jax.config.run import RunConfig, Trial
from frame_jax.evaluation.results import (
    ALL,
    TaskScore,
    TrialResult,
    WeightsResult,
    read_results,
    scores_folder,
)
from frame_jax.report.cost import run_costs, steps_to_baseline
from frame_jax.report.paired_differences import slice_verdicts, task_verdict
from frame_jax.report.study_results import FINAL, ComparedLine, Comparison, LineResult, Study
from frame_jax.report.verdict import RULE, verdict_sentence
from frame_jax.run.directory import RunDirectory

UNIT = "bits per byte"


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
    costs = run_costs(config, directory)
    return Study(
        unit=UNIT,
        rule=RULE,
        baseline=config.baseline,
        seeds=tuple(config.all_seeds),
        comparisons_made=sum(len(c.slices) + len(c.tasks) for c in comparisons),
        lines=tuple(line_result(results, line) for line in lines),
        comparisons=tuple(comparisons),
        costs=tuple(costs),
        steps_to_baseline=tuple(steps_to_baseline(config, costs, results)),
    )


def find_lines(config: RunConfig, results: dict[Trial, TrialResult]) -> list[ComparedLine]:
    """Lists the final weights of every evaluated arm, and the averages that all its seeds have."""
    lines = []
    for arm in config.curricula:
        own = [result for trial, result in results.items() if trial.arm == arm]
        names = [[average.name for average in result.averages] for result in own]
        shared = [name for name in names[0] if all(name in n for n in names)] if names else []
        lines += [ComparedLine(arm, weights) for weights in ([FINAL, *shared] if own else [])]
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
    ones, others = (
        {trial.seed: (trial, results[trial]) for trial in results if trial.arm == compared.arm}
        for compared in (line, other)
    )
    seeds = [seed for seed in ones if seed in others]

    def document_losses(trial: Trial, result: TrialResult, compared: ComparedLine) -> Path:
        return scores_folder(directory, trial.name, line_weights(result, compared).name)

    folders = [
        (document_losses(*ones[seed], line), document_losses(*others[seed], other))
        for seed in seeds
    ]
    slices = slice_verdicts(directory, folders) if folders else {}
    if ALL not in slices:
        return None
    tasks = {}
    for task in (task.name for task in config.evaluation.tasks):
        pairs = [
            (task_score(ones[seed][1], line, task), task_score(others[seed][1], other, task))
            for seed in seeds
        ]
        items = [
            (directory.root / one.folder, directory.root / two.folder)
            for one, two in pairs
            if one is not None and two is not None
        ]
        if len(items) == len(seeds):
            tasks[task] = task_verdict(items)
    sentence = verdict_sentence(slices[ALL], line.label, other.label, UNIT)
    return Comparison(line, other, tuple(seeds), slices, tasks, sentence)


def line_weights(result: TrialResult, line: ComparedLine) -> WeightsResult:
    """The losses of a trial's weights that belong to a line: the final ones or an average."""
    if line.weights == FINAL:
        return result.final
    return next(average for average in result.averages if average.name == line.weights)


def task_score(result: TrialResult, line: ComparedLine, task: str) -> TaskScore | None:
    """The score of a trial's weights that belong to a line; None where they did not do the task."""
    weights = line_weights(result, line).name
    return next((s for s in result.tasks if (s.weights, s.task) == (weights, task)), None)


def line_result(results: dict[Trial, TrialResult], line: ComparedLine) -> LineResult:
    """Averages a line's held-out loss over its seeds."""
    own = {trial: result for trial, result in results.items() if trial.arm == line.arm}
    measured = [line_weights(result, line) for result in own.values()]
    return LineResult(
        line,
        seeds=tuple(trial.seed for trial in own),
        tokens=measured[0].tokens,
        bits_per_byte=sum(found.overall.bits_per_byte for found in measured) / len(measured),
        nll_per_token=sum(found.overall.nll_per_token for found in measured) / len(measured),
    )
