"""Reads the effects of orders that finished runs found, to be put side by side: `compare.json`.

Imports nothing heavy: the table comes at once.
"""

import dataclasses
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from frame_jax.config.curriculum import CurriculumConfig
from frame_jax.config.file import load
from frame_jax.config.paths import user_path
from frame_jax.errors import UserError
from frame_jax.evaluation.results import ALL, read_result
from frame_jax.report import study_results
from frame_jax.report.study_results import (
    DASH,
    FINAL,
    SHORT,
    Verdict,
    number,
    rich_table,
    si,
    verdict_cells,
)
from frame_jax.run.directory import RunDirectory, read_dataclass, read_json
from frame_jax.run.markers import read_complete_marker
from frame_jax.run.partition_record import Reliability, read_partition_record
from frame_jax.run.phases import REFERENCES

FILE = "compare.json"
FIRST_ARMS = ("frame", "reverse", "random_again")  # shown before the others


@dataclass(frozen=True)
class ComparedArm:
    """The final weights of an arm against those of the baseline.

    Attributes:
        arm: The arm.
        against: The baseline or, for an arm with a learning rate of its own, the baseline's order
            under that rate where the run has it.
        order: The settings of the arm's curriculum that are not the defaults.
        tokens: Training tokens.
        verdict: On the whole held-out split.
    """

    arm: str
    against: str
    order: dict[str, Any]
    tokens: int
    verdict: Verdict


@dataclass(frozen=True)
class ComparedRun:
    """What a reader must know of a run to read the effects that it found beside those of others.

    Attributes:
        name: Of its folder.
        layers: Kinds of layers of the target model, such as `attention+dense`.
        parameters: Of the target model, embeddings included.
        active_parameters: Those that a token meets.
        tokens: Training tokens of the baseline.
        scores: The axes that cut the text into quadrants.
        references: Size of the weak and the strong reference model, or the name of an imported one;
            empty where scores were made elsewhere.
        documents: Held-out documents that were measured.
        bytes: Their length in UTF-8.
        baseline: The arm that the others are compared with.
        seeds: All seeds.
        arms: The arms beside the baseline.
        reliability: How the scores of all domains fare under other reference models.
    """

    name: str
    layers: tuple[str, ...]
    parameters: int
    active_parameters: int
    tokens: int
    scores: tuple[str, ...]
    references: tuple[str, ...]
    documents: int
    bytes: int
    baseline: str
    seeds: tuple[int, ...]
    arms: tuple[ComparedArm, ...]
    reliability: tuple[Reliability, ...]

    @property
    def tokens_per_parameter(self) -> float:
        """Training tokens over all parameters."""
        return self.tokens / self.parameters

    @property
    def score_names(self) -> str:
        """For a reader: `PPL, PD (121 k, 475 k)`."""
        models = f" ({', '.join(self.references)})" if self.references else ""
        return ", ".join(self.scores) + models


@dataclass(frozen=True)
class ComparedRuns:
    """Runs whose differences have one unit, and verdicts one rule."""

    unit: str
    rule: str
    runs: tuple[ComparedRun, ...]


def read_compared_runs(paths: Sequence[str]) -> ComparedRuns:
    """Reads runs from run directories, and from files that `frame_jax.compare` wrote.

    Raises:
        UserError: if one is not finished or given twice, or their units or rules differ.
    """
    found = [read_one(path) for path in paths]
    for path, one in zip(paths, found, strict=True):
        if (one.unit, one.rule) != (found[0].unit, found[0].rule):
            raise UserError(
                f"{path}: its differences have another unit, or its verdicts another rule, than "
                f"those of {paths[0]}: have its report made again by this release (--redo report)"
            )
    runs = tuple(run for one in found for run in one.runs)
    name, count = Counter(run.name for run in runs).most_common(1)[0]
    if count > 1:
        raise UserError(
            f"{name} is given {count} times: give it once. Where these are runs of their own, name "
            "one by a symbolic link with another name"
        )
    return ComparedRuns(found[0].unit, found[0].rule, runs)


def read_one(given: str) -> ComparedRuns:
    """Reads a run directory, a `compare.json` or a folder with one; see `read_compared_runs`."""
    path = user_path(given)
    path = path / FILE if (path / FILE).is_file() else path
    if path.is_file():
        try:
            return read_dataclass(path, ComparedRuns)
        except UserError as error:
            raise UserError(f"{path} is not a {FILE} of this release: give its runs") from error
    directory = RunDirectory(given)
    if not (directory.report / study_results.FILE).exists():
        raise UserError(
            f"{path} is no finished run (report/{study_results.FILE} is missing): give run "
            f"directories whose report is written, or a {FILE}"
        )
    study = study_results.load_study(directory)
    return ComparedRuns(study.unit, study.rule, (read_run(directory, study),))


def read_run(directory: RunDirectory, study: study_results.Study) -> ComparedRun:
    """Reads what is compared of a finished run.

    Raises:
        UserError: if it has no arm beside the baseline, or is not whole.
    """
    config = load(directory.config)
    tokens = {line.line.arm: line.tokens for line in study.lines if line.line.weights == FINAL}
    arms = [
        ComparedArm(
            line.arm,
            found.against.arm,
            changed_settings(config.curricula[line.arm]),
            tokens[line.arm],
            found.slices[ALL],
        )
        for line, found in study.first_comparisons().items()
        if line.weights == FINAL and line.arm in config.curricula
    ]
    if not arms:
        raise UserError(
            f"{directory.root}: no order has been evaluated beside its baseline {study.baseline}"
        )
    trials = [trial.name for trial in config.trials if trial.arm == study.baseline]
    trial = next(name for name in trials if directory.evaluation(name).exists())
    folder, held_out = directory.pretrain(trial), read_result(directory, trial).final.overall
    layers = tuple(dict.fromkeys(read_json(folder / "model.json")["model"]["layers"]))
    parameters = active = trained_parameters(directory, f"pretrain-{trial}")
    if any(layer.endswith("experts") for layer in layers):
        from frame_jax.models.flops import active_parameter_count  # imports JAX
        from frame_jax.models.transformer import read_description

        active = active_parameter_count(read_description(folder))
    partition, references = read_partition_record(directory), []
    for name in REFERENCES if config.scoring.table is None else ():
        imported = getattr(config.reference, name).checkpoint
        trained = imported or si(trained_parameters(directory, f"reference-{name}"))
        references.append(Path(trained).name)
    return ComparedRun(
        name=Path(os.path.abspath(directory.root)).name,  # noqa: PTH100  (a link keeps its name)
        layers=layers,
        parameters=parameters,
        active_parameters=active,
        tokens=tokens[study.baseline],
        scores=tuple(
            name
            for name, bins in zip(partition.names, partition.axes.values(), strict=True)
            if bins > 1
        ),
        references=tuple(references),
        documents=held_out.documents,
        bytes=held_out.bytes,
        baseline=study.baseline,
        seeds=study.seeds,
        arms=tuple(sorted(arms, key=lambda arm: arm_rank(arm.arm))),
        reliability=tuple(each for each in partition.reliability if each.domain is None),
    )


def changed_settings(curriculum: CurriculumConfig) -> dict[str, Any]:
    """The settings of a curriculum that are not the defaults."""
    return {
        field.name: value
        for field, value in zip(
            dataclasses.fields(curriculum), dataclasses.asdict(curriculum).values(), strict=True
        )
        if value not in (field.default, [])
    }


def trained_parameters(directory: RunDirectory, phase_step: str) -> int:
    """The parameters of the model that a phase step trained."""
    marker = read_complete_marker(directory, phase_step)
    if marker is None:
        raise UserError(f"{directory.marker(phase_step)}: {phase_step} is not finished")
    return int(marker.summary["parameters"])


def near(values: Iterable[float]) -> dict[float, float]:
    """For each value, the smallest of those that count as the same: within a quarter of it."""
    found, first = {}, 0.0
    for value in sorted(values):
        first = first if value <= 1.25 * first else value
        found[value] = first
    return found


def rounded(value: float) -> str:
    """`value` in two digits and a unit prefix, as in 20 or 120 k."""
    return si(float(f"{value:.2g}"))


def arm_rank(arm: str) -> int:
    """Where an arm stands among others: some first, the others as they come."""
    return (*FIRST_ARMS, arm).index(arm)


def arm_label(run: ComparedRun, arm: ComparedArm) -> str:
    """The arm's name; with what it is compared with where that is not the run's baseline."""
    return arm.arm if arm.against == run.baseline else f"{arm.arm} minus {arm.against}"


def table_rows(runs: Sequence[ComparedRun]) -> tuple[list[str], list[list[str]]]:
    """Makes the header and the rows of the table of all differences."""
    header = ["run", "parameters", "tokens a\nparameter", "scores", "order", "difference"]
    header += ["95% interval", "± docs", "would\nhave seen", "verdict"]
    rows = []
    for run in runs:
        about = [run.name, si(run.parameters), rounded(run.tokens_per_parameter)]
        about.append(", ".join(run.scores))
        for arm in run.arms:
            *numbers, verdict = verdict_cells(arm.verdict)
            numbers.append(number(arm.verdict.detectable))
            rows.append([*about, arm_label(run, arm), *numbers, verdict])
    return header, rows


def runs_table(runs: Sequence[ComparedRun]) -> tuple[list[str], list[list[str]]]:
    """Makes the header and the rows of the table of what the runs are."""
    header = ["run", "layers", "parameters", "of a token", "tokens", "reference models"]
    header += ["held-out documents", "baseline", "seeds", "PD under other references"]
    rows = [
        [
            run.name,
            ", ".join(run.layers),
            *(f"{count:,}" for count in (run.parameters, run.active_parameters, run.tokens)),
            ", ".join(run.references) or DASH,
            f"{run.documents:,}",
            run.baseline,
            ", ".join(map(str, run.seeds)),
            ", ".join(f"{r.pd.value:.2f} ({r.compared_with})" for r in run.reliability) or DASH,
        ]
        for run in runs
    ]
    return header, rows


def terminal_table(compared: ComparedRuns) -> Table:
    """Makes the table of all differences for a terminal, with what a reader must know of it."""
    baselines = ", ".join(dict.fromkeys(run.baseline for run in compared.runs))
    title = f"Held-out {compared.unit} minus those of {baselines}"
    return rich_table(title, *table_rows(compared.runs), comparison_notes(compared.runs))


def summary_sentences(compared: ComparedRuns) -> list[str]:
    """Says of each order of more than one run how often it was better, worse or neither."""
    verdicts: dict[str, list[Verdict]] = {}
    for run in compared.runs:
        for arm in run.arms:
            verdicts.setdefault(arm_label(run, arm), []).append(arm.verdict)
    sentences = []
    for label in sorted(verdicts, key=arm_rank):
        own = verdicts[label]
        words = Counter(SHORT.get(verdict.verdict, verdict.verdict) for verdict in own)
        found = ", ".join(f"{word} in {count}" for word, count in words.most_common())
        low, high = min(verdict.mean for verdict in own), max(verdict.mean for verdict in own)
        if len(own) > 1:
            line = (
                f"{label}: {found} of {len(own)} runs; {low:+.4f} to {high:+.4f} {compared.unit}."
            )
            sentences.append(line)
    return sentences


def comparison_notes(runs: Sequence[ComparedRun]) -> list[str]:
    """Says in what runs differ that no axis of a figure shows."""
    about = {
        "held-out text": {r.name: f"{r.documents:,} documents, {si(r.bytes)}B" for r in runs},
        "baseline": {r.name: r.baseline for r in runs},
        "reference models": {r.name: ", ".join(r.references) for r in runs if r.references},
    }
    for run in runs:
        for arm in run.arms:
            order = ", ".join(f"{key} {value}" for key, value in arm.order.items())
            about.setdefault(f"order called {arm.arm}", {})[run.name] = order
    found = []
    for what, values in about.items():
        groups = {v: [name for name in values if values[name] == v] for v in values.values()}
        if len(groups) > 1:
            listed = "; ".join(f"{value} ({', '.join(own)})" for value, own in groups.items())
            found.append(f"Not all runs have the same {what}: {listed}.")
    unequal = [f"{r.name} {arm.arm}" for r in runs for arm in r.arms if arm.tokens != r.tokens]
    if unequal:
        found.append(f"On another number of tokens than the baseline: {', '.join(unequal)}.")
    return found
