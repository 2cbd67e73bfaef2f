"""Reads and tabulates `RUN/report/verdict.json`, the results of a study.

Imports nothing heavy: a finished run shows its table at once.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from frame_jax.run.directory import RunDirectory, read_dataclass
from frame_jax.run.progress import text_table

BETTER, WORSE = "better", "worse"
NONE, UNTESTED = "no difference that this study could see", "not tested: one seed"
FINAL = "final"  # the name of weights that are no average
BEFORE = "before continuing"  # in an arm's place: the model that all arms were continued from
FILE = "verdict.json"
DASH = "–"
PREFIXES = ("", "k", "M", "G", "T", "P", "E")
SHORT = {NONE: "no difference", UNTESTED: "not tested"}


@dataclass(frozen=True)
class Verdict:
    """A difference of two arms, lower being better.

    Attributes:
        mean: Mean over seeds.
        low: Lower end of the 95% t interval over seeds; None under one seed.
        high: Upper end.
        document_error: Standard error over held-out documents (or a task's items).
        detectable: The smallest true difference that a study with these two errors would have
            called better or worse in four cases of five, see `verdict.detectable_difference`; None
            under one seed.
        by_seed: The difference of each seed.
        verdict: `BETTER`, `WORSE`, `NONE` or `UNTESTED`.
    """

    mean: float
    low: float | None
    high: float | None
    document_error: float
    detectable: float | None
    by_seed: tuple[float, ...]
    verdict: str


@dataclass(frozen=True)
class ComparedLine:
    """What is compared: an arm's final weights, or an average of its last checkpoints."""

    arm: str
    weights: str

    @property
    def label(self) -> str:
        """For a reader: `frame`, or `frame, mean of 6`."""
        if self.weights == FINAL:
            return self.arm
        return f"{self.arm}, mean of {self.weights.removeprefix('average-last')}"


@dataclass(frozen=True)
class LineResult:
    """The held-out loss of a line.

    Attributes:
        line: The line.
        seeds: Seeds that it was evaluated under.
        tokens: Training tokens.
        bits_per_byte: Mean over seeds.
        nll_per_token: The same in nats by token.
    """

    line: ComparedLine
    seeds: tuple[int, ...]
    tokens: int
    bits_per_byte: float
    nll_per_token: float


@dataclass(frozen=True)
class Comparison:
    """A line against another one.

    Attributes:
        line: The line.
        against: What it is compared with.
        seeds: Seeds that both have.
        slices: Verdicts on the held-out split, see `evaluation.results.WeightsResult.slices`.
        tasks: Verdicts by task.
        sentence: The verdict on the whole held-out split in words.
    """

    line: ComparedLine
    against: ComparedLine
    seeds: tuple[int, ...]
    slices: dict[str, Verdict]
    tasks: dict[str, Verdict]
    sentence: str


@dataclass(frozen=True)
class Cost:
    """What a piece of the run cost: FLOPs as in `models.flops`, None where they are not known, and
    the wall-clock time of the whole phase step."""

    work: str
    flops: float | None
    seconds: float


@dataclass(frozen=True)
class StepsToBaseline:
    """When an arm's held-out loss reaches the final one of the baseline under the same seed.

    Attributes:
        arm: The arm.
        steps: By seed; None where it never does.
        share: Mean of the steps over the baseline's; None unless every seed gets there.
        share_with_scoring: The same with the FLOPs of references and scoring on top.
    """

    arm: str
    steps: tuple[float | None, ...]
    share: float | None
    share_with_scoring: float | None


@dataclass(frozen=True)
class StageLosses:
    """Losses before and after a stage begins, at `step`: means over seeds, nats per token.

    Attributes:
        training: Of the text that the model is given.
        held_out: Of the held-out split at the last checkpoint kept until then, and at the next.
        held_out_steps: These checkpoints.
    """

    stage: str
    step: int
    training: tuple[float | None, ...]
    held_out: tuple[float | None, ...]
    held_out_steps: tuple[int | None, ...]


@dataclass(frozen=True)
class Study:
    """Everything that is known of a run's arms against its baseline.

    Attributes:
        unit: Of differences.
        rule: What verdicts follow from.
        baseline: The arm that the others are compared with.
        seeds: All seeds of the config.
        comparisons_made: A line on a slice or a task counts as one.
        lines: Every arm, and every average of its checkpoints; empty before evaluation.
        comparisons: The first of a line is with what is most like it.
        costs: Of the finished pieces of the run.
        steps_to_baseline: Of each arm but the baseline.
        before: The lines against the model that they were continued from; empty for a model that
            was trained from scratch.
        stages: Where stages begin, by arm; those of one stage are left out.
    """

    unit: str
    rule: str
    baseline: str
    seeds: tuple[int, ...]
    comparisons_made: int
    lines: tuple[LineResult, ...]
    comparisons: tuple[Comparison, ...]
    costs: tuple[Cost, ...]
    steps_to_baseline: tuple[StepsToBaseline, ...]
    before: tuple[Comparison, ...] = ()
    stages: dict[str, tuple[StageLosses, ...]] = dataclasses.field(default_factory=dict)

    def first_comparisons(self) -> dict[ComparedLine, Comparison]:
        """Each line's comparison with what is most like it."""
        found: dict[ComparedLine, Comparison] = {}
        for comparison in self.comparisons:
            found.setdefault(comparison.line, comparison)
        return found


def load_study(directory: RunDirectory) -> Study:
    """Reads the results that the report phase wrote.

    Raises:
        UserError: if the file is damaged or another release's.
    """
    return read_dataclass(directory.report / FILE, Study)


def table_rows(study: Study) -> tuple[list[str], list[list[str]]]:
    """Makes the header and the rows of the table of verdicts, lowest loss first."""
    header = ["order", "seeds", "bits / byte", "minus", "difference", "95% interval"]
    header += ["± docs", "verdict"]
    comparisons = study.first_comparisons()
    rows = []
    for result in sorted(study.lines, key=lambda result: result.bits_per_byte):
        row = [result.line.label, str(len(result.seeds)), f"{result.bits_per_byte:.4f}"]
        found = comparisons.get(result.line)
        if found is None:
            rows.append([*row, *[""] * 4, "" if result.line.arm == BEFORE else "baseline"])
        else:
            rows.append([*row, found.against.label, *verdict_cells(found.slices["all"])])
    for found in study.before:
        cells = verdict_cells(found.slices["all"])
        rows.append([found.line.label, str(len(found.seeds)), "", BEFORE, *cells])
    return header, rows


def forgetting_sentences(study: Study) -> list[str]:
    """Names the domains and languages on which continuing made each arm worse."""
    sentences = []
    for found in study.before:
        worse = [
            f"{name} ({verdict.mean:+.4f} {study.unit})"
            for name, verdict in found.slices.items()
            if name.startswith(("domain", "language")) and verdict.verdict == WORSE
        ]
        if worse and found.line.weights == FINAL:
            sentences.append(f"{found.line.label} has become worse on {', '.join(worse)}.")
    tested = any(len(found.seeds) > 1 for found in study.before)
    if tested and not sentences:
        sentences.append(f"No domain or language has become worse than {BEFORE}, as far as seen.")
    return sentences


def number(value: float | None, form: str = ".4f") -> str:
    """`value` as text; a dash where there is none."""
    return DASH if value is None else format(value, form)


def si(value: float | None) -> str:
    """`value` in three digits and a unit prefix, as in 81.4 G; a dash where there is none."""
    if value is None:
        return DASH
    power = min(max(math.floor(math.log10(value) / 3), 0), len(PREFIXES) - 1) if value else 0
    return f"{value / 1000**power:.3g} {PREFIXES[power]}".strip()


def verdict_cells(verdict: Verdict) -> list[str]:
    """Difference, interval, error over documents and verdict as text."""
    low, high = verdict.low, verdict.high
    interval = DASH if low is None or high is None else f"{low:+.4f} to {high:+.4f}"
    word = SHORT.get(verdict.verdict, verdict.verdict)
    return [f"{verdict.mean:+.4f}", interval, f"{verdict.document_error:.4f}", word]


def terminal_table(study: Study) -> Any:
    """Makes the table that ends a run on the terminal: the report's first table."""
    caption = f"{study.comparisons_made} comparisons made; the rule is in the report"
    if len(study.seeds) == 1:
        caption = "one seed: nothing here tells an effect of the order from chance (seeds: 3)"
    notes = [caption, *forgetting_sentences(study)]
    header, rows = table_rows(study)
    return text_table("Held-out loss after pretraining", [header, *rows], notes)
