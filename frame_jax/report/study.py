"""The evaluated trials of a run in, its study out: what `report/verdict.json` holds.

The terminal's table, the report's first chapter and the file say the same, because all three are
made of this.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from frame_jax.config.run import RunConfig, Trial
from frame_jax.evaluation.verdict import RULE, decide_verdict, verdict_sentence
from frame_jax.report.cost import run_costs, steps_to_baseline_loss
from frame_jax.report.held_out_results import Result, read_results
from frame_jax.report.paired_differences import ALL, Differences, differences, task_differences
from frame_jax.report.verdict_table import FINAL
from frame_jax.run.directory import RunDirectory

UNIT = "bits per byte"


class ComparedLine(NamedTuple):
    """What is compared: an arm's final weights, or an average of its last checkpoints."""

    arm: str
    weights: str

    @property
    def label(self) -> str:
        """For a reader: `frame`, or `frame, mean of 6` (`mean of 6 at 0.8` with a decay)."""
        if self.weights == FINAL:
            return self.arm
        last, _, decay = self.weights.removeprefix("average-last").partition("-")
        return f"{self.arm}, mean of {last}" + (f" at {decay}" if decay else "")


def read_study(config: RunConfig, directory: RunDirectory) -> dict[str, Any]:
    """Everything that is known of a run's arms against its baseline.

    Returns:
        `unit`, `rule`, `baseline`, `seeds`, `comparisons_made` (an arm on a part or a task counts
        as one); `lines`: for each arm, and each average of its checkpoints, its seeds and its mean
        held-out loss over them; `comparisons`: a line `against` another, with a verdict (see
        `evaluation.verdict.Verdict`) for each part of the held-out split and each task, and a
        `verdict_sentence` on the whole of it; `run_costs`, see `cost.run_costs`; and
        `steps_to_baseline_loss`, see `cost.steps_to_baseline_loss`. Lines and comparisons are empty
        before anything has been evaluated.
    """
    every = read_results(directory)
    trials = [trial for trial in config.trials if trial.name in every]
    results = {trial: every[trial.name] for trial in trials}
    lines = find_lines(config, results)
    compared = [
        found
        for line in lines
        for other in lines_to_compare_with(config, lines, line)
        if (found := compare_lines(config, directory, results, line, other)) is not None
    ]
    pieces = run_costs(config, directory)
    return {
        "unit": UNIT,
        "rule": RULE,
        "baseline": config.baseline,
        "seeds": config.all_seeds,
        "comparisons_made": sum(len(c["parts"]) + len(c["tasks"]) for c in compared),
        "lines": [describe_line(results, line) for line in lines],
        "comparisons": compared,
        "costs": pieces,
        "reaching": steps_to_baseline_loss(config, pieces, results),
    }


def find_lines(config: RunConfig, results: dict[Trial, Result]) -> list[ComparedLine]:
    """Final weights of every evaluated arm, and the averages that all its seeds have."""
    lines = []
    for arm in config.curricula:
        own = [result for trial, result in results.items() if trial.arm == arm]
        names = [[mean["name"] for mean in result.get("averages", [])] for result in own]
        shared = [name for name in names[0] if all(name in n for n in names)] if names else []
        lines += [ComparedLine(arm, weights) for weights in ([FINAL, *shared] if own else [])]
    return lines


def lines_to_compare_with(
    config: RunConfig, lines: list[ComparedLine], line: ComparedLine
) -> list[ComparedLine]:
    """What a line is compared with, like for like first.

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
    results: dict[Trial, Result],
    line: ComparedLine,
    other: ComparedLine,
) -> dict[str, Any] | None:
    """Verdicts on `line` against `other`, over the seeds that both have.

    None where there is none, or where they were measured on no document in common.
    """
    by_arm = {
        arm: {trial.seed: trial for trial in results if trial.arm == arm}
        for arm in (line.arm, other.arm)
    }
    seeds = [seed for seed in by_arm[line.arm] if seed in by_arm[other.arm]]
    pairs = [(by_arm[line.arm][seed], by_arm[other.arm][seed]) for seed in seeds]

    def folders(name: str = "") -> list[tuple[Path, Path]]:
        return [
            (
                losses_folder(directory, results, one, line.weights, name),
                losses_folder(directory, results, two, other.weights, name),
            )
            for one, two in pairs
        ]

    parts = differences(directory, folders()) if pairs else {}
    if ALL not in parts:
        return None
    verdicts = {label: verdict_record(found) for label, found in parts.items()}
    tasks = {
        name: verdict_record(task_differences(folders(name)))
        for name in (task.name for task in config.evaluation.tasks)
        if all(
            task_score(results[trial], weights, name)
            for pair in pairs
            for trial, weights in zip(pair, (line.weights, other.weights), strict=True)
        )
    }
    overall = decide_verdict(parts[ALL].by_seed, parts[ALL].document_error)
    return {
        **line._asdict(),
        "against": other._asdict(),
        "seeds": seeds,
        "parts": verdicts,
        "tasks": tasks,
        "sentence": verdict_sentence(overall, line.label, other.label, UNIT),
    }


def verdict_record(found: Differences) -> dict[str, Any]:
    """For JSON."""
    return decide_verdict(found.by_seed, found.document_error).as_dict()


def losses_folder(
    directory: RunDirectory,
    results: dict[Trial, Result],
    trial: Trial,
    weights: str,
    task: str,
) -> Path:
    """The folder of a trial's losses by document, or of a task's by item."""
    result = results[trial]
    if task:
        score = task_score(result, weights, task)
        assert score is not None  # `compare` asks only for those there are
        return directory.root / score["folder"]
    name = str(result["checkpoints"][-1]["step"]) if weights == FINAL else weights
    return directory.evaluation(trial.name).with_suffix("") / name


def task_score(result: Result, weights: str, task: str) -> dict[str, Any] | None:
    """The score of a task under a trial's final weights or an average; None where there is none."""
    last = result["checkpoints"][-1]["step"]
    scores = [score for score in result.get("tasks", []) if score["step"] == last]
    if weights != FINAL:
        scores = average_result(result, weights).get("tasks", [])
    return next((s for s in scores if s["task"] == task), None)


def average_result(result: Result, weights: str) -> dict[str, Any]:
    """The measurements of an average."""
    return next(mean for mean in result["averages"] if mean["name"] == weights)


def describe_line(results: dict[Trial, Result], line: ComparedLine) -> dict[str, Any]:
    """A line's seeds, and its mean held-out loss over them."""
    own = {trial: result for trial, result in results.items() if trial.arm == line.arm}
    measured = [
        result["checkpoints"][-1] if line.weights == FINAL else average_result(result, line.weights)
        for result in own.values()
    ]
    losses = {
        key: sum(found["overall"][key] for found in measured) / len(measured)
        for key in ("bits_per_byte", "nll_per_token")
    }
    return {
        **line._asdict(),
        "label": line.label,
        "seeds": [trial.seed for trial in own],
        "tokens": measured[0]["tokens"],
        **losses,
    }
