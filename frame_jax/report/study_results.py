"""Reads and writes `RUN/report/verdict.json`, the results of a study.

Imports nothing heavy: a finished run shows its table at once.
"""

from __future__ import annotations

from dataclasses import dataclass

from frame_jax.run.directory import RunDirectory
from frame_jax.run.json_dataclass import read_dataclass, write_dataclass

BETTER, WORSE = "better", "worse"
NONE, UNTESTED = "no difference that this study could see", "not tested: one seed"
FINAL = "final"  # the name of weights that are no average
FILE = "verdict.json"


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
        """For a reader: `frame`, or `frame, mean of 6` (`mean of 6 at 0.8` with a decay)."""
        if self.weights == FINAL:
            return self.arm
        last, _, decay = self.weights.removeprefix("average-last").partition("-")
        return f"{self.arm}, mean of {last}" + (f" at {decay}" if decay else "")


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
    """What a piece of the run cost.

    Attributes:
        work: What was done.
        flops: See `models.flops`; None where they are not known.
        seconds: Wall-clock time of the whole phase step.
    """

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

    def first_comparisons(self) -> dict[ComparedLine, Comparison]:
        """Each line's comparison with what is most like it."""
        found: dict[ComparedLine, Comparison] = {}
        for comparison in self.comparisons:
            found.setdefault(comparison.line, comparison)
        return found


def write_study(directory: RunDirectory, study: Study) -> None:
    """Writes the results of a run's study."""
    write_dataclass(directory.report / FILE, study)


def load_study(directory: RunDirectory) -> Study:
    """Reads the results that the report phase wrote.

    Raises:
        UserError: if the file is damaged or another release's.
    """
    return read_dataclass(directory.report / FILE, Study)
