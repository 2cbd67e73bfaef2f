"""Reads the effects of orders that finished runs found, to be put side by side: `compare.json`.

Imports nothing heavy: the table comes at once.
"""

import dataclasses
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frame_jax.config.file import load
from frame_jax.config.paths import user_path
from frame_jax.errors import UserError
from frame_jax.evaluation.results import ALL, read_result
from frame_jax.report import study_results
from frame_jax.report.study_results import (
    DASH,
    FINAL,
    ComparedLine,
    Study,
    Verdict,
    number,
    si,
    verdict_cells,
)
from frame_jax.run.directory import RunDirectory, read_dataclass, read_json
from frame_jax.run.markers import read_complete_marker
from frame_jax.run.partition_record import Reliability, read_partition_record
from frame_jax.run.phases import REFERENCES
from frame_jax.run.progress import text_table

FILE = "compare.json"


@dataclass(frozen=True)
class ComparedRun:
    """What a reader must know of a run to read its effects beside those of others.

    Attributes:
        name: Of its folder.
        layers: Kinds of layers of the target model, such as `attention+dense`.
        parameters: Of the target model, embeddings included.
        tokens: Training tokens of the baseline.
        scores: The axes that cut the text into quadrants, such as `PPL, PD`.
        references: Size of the weak and the strong reference model, or the name of an imported
            one; empty where scores were made elsewhere.
        documents: Held-out documents that were measured.
        bytes: Their length in UTF-8.
        reliability: How the scores of all domains fare under other reference models.
        study: The baseline, comparisons of final weights on the whole held-out split, and the
            losses where stages begin.
    """

    name: str
    layers: str
    parameters: int
    tokens: int
    scores: str
    references: str
    documents: int
    bytes: int
    reliability: tuple[Reliability, ...]
    study: Study

    @property
    def tokens_per_parameter(self) -> float:
        """Training tokens over all parameters."""
        return self.tokens / self.parameters

    def effects(self) -> Iterator[tuple[str, Verdict]]:
        """Yields each arm's name, and what it is compared with if not the baseline; its verdict."""
        for found in self.study.comparisons:
            arm, against = found.line.arm, found.against.arm
            name = arm if against == self.study.baseline else f"{arm} minus {against}"
            yield name, found.slices[ALL]


@dataclass(frozen=True)
class ComparedRuns:
    """The content of `compare.json`."""

    runs: tuple[ComparedRun, ...]


def read_compared_runs(paths: Sequence[str]) -> ComparedRuns:
    """Reads runs from run directories, and from files that `frame_jax.compare` wrote.

    Raises:
        UserError: if one is not finished or given twice, or their units or rules differ.
    """
    runs = tuple(run for path in paths for run in read_path(path))
    name, count = Counter(run.name for run in runs).most_common(1)[0]
    if count > 1:
        raise UserError(
            f"{name} is given {count} times: give it once. Where these are runs of their own, name "
            "one by a symbolic link with another name"
        )
    if len({(run.study.unit, run.study.rule) for run in runs}) > 1:
        raise UserError(
            "the runs' differences have several units, or their verdicts several rules: have all "
            "reports made again by this release (--redo report)"
        )
    return ComparedRuns(runs)


def read_path(given: str) -> tuple[ComparedRun, ...]:
    """Reads a run directory, a `compare.json` or a folder with one; see `read_compared_runs`."""
    path = user_path(given)
    path = path / FILE if (path / FILE).is_file() else path
    if path.is_file():
        return read_dataclass(path, ComparedRuns).runs
    directory = RunDirectory(given)
    if not (directory.report / study_results.FILE).exists():
        raise UserError(
            f"{path} is no finished run (report/{study_results.FILE} is missing): give run "
            f"directories whose report is written, or a {FILE}"
        )
    return (read_run(directory),)


def read_run(directory: RunDirectory) -> ComparedRun:
    """Reads what is compared of a finished run.

    Raises:
        UserError: if it has no arm beside the baseline, or is not whole.
    """
    config, study = load(directory.config), study_results.load_study(directory)
    compared = [
        dataclasses.replace(found, slices={ALL: found.slices[ALL]}, tasks={})
        for line, found in study.first_comparisons().items()
        if line.weights == FINAL
    ]
    names = [trial.name for trial in config.trials if trial.arm == study.baseline]
    trial = next((name for name in names if directory.evaluation(name).exists()), None)
    if not compared or trial is None:
        raise UserError(
            f"{directory.root}: no order has been evaluated beside its baseline {study.baseline}"
        )
    baseline, folder = read_result(directory, trial).final, directory.pretrain(trial)
    layers = ", ".join(dict.fromkeys(read_json(folder / "model.json")["model"]["layers"]))
    references = []
    for name in REFERENCES if config.scoring.table is None else ():
        imported = getattr(config.reference, name).checkpoint
        size = "" if imported else si(trained_parameters(directory, f"reference-{name}"))
        references.append(size or Path(imported).name)
    partition = read_partition_record(directory)
    axes = zip(partition.names, partition.axes.values(), strict=True)
    return ComparedRun(
        name=Path(os.path.abspath(directory.root)).name,  # noqa: PTH100  (a link keeps its name)
        layers=layers,
        parameters=trained_parameters(directory, f"pretrain-{trial}"),
        tokens=baseline.tokens,
        scores=", ".join(name for name, bins in axes if bins > 1),
        references=", ".join(references),
        documents=baseline.overall.documents,
        bytes=baseline.overall.bytes,
        reliability=tuple(each for each in partition.reliability if each.domain is None),
        study=dataclasses.replace(
            study,
            lines=tuple(e for e in study.lines if e.line == ComparedLine(study.baseline, FINAL)),
            comparisons=tuple(compared),
            costs=(),
            steps_to_baseline=(),
            before=(),
        ),
    )


def trained_parameters(directory: RunDirectory, phase_step: str) -> int:
    """The number of parameters of the model that a phase step trained."""
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


def table_rows(
    runs: Sequence[ComparedRun], whole: bool = False
) -> tuple[list[str], list[list[str]]]:
    """Makes the header and the rows of the table of all differences; `whole` has all columns."""
    header = ["run", "parameters", "tokens a\nparameter", "scores", "order", "difference"]
    header += ["95% interval", "± docs", "verdict", "would\nhave seen"]
    more = ["minus", "seeds", "layers", "tokens", "reference models", "held-out documents"]
    more += ["PD under other references"]
    rows = []
    for run in runs:
        about = [run.name, si(run.parameters), rounded(run.tokens_per_parameter), run.scores]
        again = ", ".join(f"{r.pd.value:.2f} ({r.compared_with})" for r in run.reliability)
        last = [run.study.baseline, str(len(run.study.seeds)), run.layers, f"{run.tokens:,}"]
        last += [run.references or DASH, f"{run.documents:,}", again or DASH]
        for order, verdict in run.effects():
            row = [*about, order, *verdict_cells(verdict), number(verdict.detectable)]
            rows.append(row + last if whole else row)
    return header + more if whole else header, rows


def terminal_table(runs: Sequence[ComparedRun]) -> Any:
    """Makes the table of all differences for a terminal, with what a reader must know of it."""
    baselines = ", ".join(dict.fromkeys(run.study.baseline for run in runs))
    title = f"Held-out {runs[0].study.unit} minus those of {baselines}"
    header, rows = table_rows(runs)
    return text_table(title, [header, *rows], comparison_notes(runs))


def summary_sentences(runs: Sequence[ComparedRun]) -> list[str]:
    """Says of each order how often it was better, worse or neither."""
    words: dict[str, Counter[str]] = {}
    for *_, order, _, _, _, verdict, _ in table_rows(runs)[1]:
        words.setdefault(order, Counter())[verdict] += 1
    found = {
        order: ", ".join(f"{word} in {count}" for word, count in counts.most_common())
        for order, counts in words.items()
    }
    return [f"{order}: {text} of {words[order].total()} runs." for order, text in found.items()]


def comparison_notes(runs: Sequence[ComparedRun]) -> list[str]:
    """Says in what runs differ that no figure shows."""
    about: dict[str, dict[str, list[str]]] = {}
    for run in runs:
        for what, value in (
            ("held-out text", f"{run.documents:,} documents of {si(run.bytes)}B"),
            ("baseline", run.study.baseline),
            ("reference models", run.references),
        ):
            if value:
                about.setdefault(what, {}).setdefault(value, []).append(run.name)
    return [
        f"Not all runs have the same {what}: "
        + "; ".join(f"{value} ({', '.join(names)})" for value, names in groups.items())
        for what, groups in about.items()
        if len(groups) > 1
    ]
