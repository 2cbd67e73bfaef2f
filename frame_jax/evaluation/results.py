"""Reads and writes `RUN/evaluation/<trial>.json`, what the evaluate phase measured of a trial."""

from dataclasses import dataclass
from pathlib import Path

from frame_jax.run.directory import RunDirectory, read_dataclass, write_dataclass
from frame_jax.run.markers import changed_input

ALL = "all"  # the slice that is the whole held-out split
# Names a slice in a query by the grouping sets (), (domain), (language) and (quadrant): `all`,
# `domain: code`, ...; NULL for documents without a domain, language or quadrant.
SLICE_SQL = f"""
    CASE 0 WHEN GROUPING(domain) THEN 'domain: ' || domain
    WHEN GROUPING(language) THEN 'language: ' || language
    WHEN GROUPING(quadrant) THEN 'quadrant: ' || quadrant
    ELSE '{ALL}' END AS slice"""


@dataclass(frozen=True)
class HeldOutLoss:
    """The loss on held-out documents, in nats where not in bits; `bytes` are those of UTF-8."""

    documents: int
    predicted_tokens: int
    bytes: int
    nll: float
    nll_per_token: float
    bits_per_byte: float


@dataclass(frozen=True)
class WeightsResult:
    """The held-out losses of a checkpoint, or of a mean of checkpoints.

    Attributes:
        name: The step of a checkpoint, `average-...` of a mean.
        steps: The checkpoints that it is made of.
        step: The last of them.
        tokens: Training tokens seen at that step.
        slices: Losses on the whole held-out split (`all`) and on each domain, language and quadrant
            (`domain: code`).
    """

    name: str
    steps: tuple[int, ...]
    step: int
    tokens: int
    slices: dict[str, HeldOutLoss]

    @property
    def overall(self) -> HeldOutLoss:
        """The loss on the whole held-out split."""
        return self.slices[ALL]


@dataclass(frozen=True)
class TaskScore:
    """The score of a multiple-choice task under a checkpoint or a mean of checkpoints.

    A standard error is that of a mean over independent items; None for a single item.

    Attributes:
        weights: Name of the weights, see `WeightsResult.name`.
        step: The last checkpoint that they are made of.
        tokens: Training tokens seen at that step.
        stages: Names of the stages that end there.
        folder: The Parquet files of single items, relative to the run directory.
        num_fewshot: Solved examples before each item.
        answer_bits_per_byte: Surprise at the right answers, bits over UTF-8 bytes, which has more
            signal in small models than any count of right ones (arXiv 2508.13144).
        chance: What a guess scores.
        blind: What the best rule scores that reads no question, see `items.blind_accuracy`.
        accuracy: Share of items whose right choice has the largest log-likelihood.
        accuracy_norm: Share of items whose right choice has the largest log-likelihood a byte.
        truncated: Items whose prompt lost its beginning.
    """

    weights: str
    step: int
    tokens: int
    stages: tuple[str, ...]
    folder: str
    task: str
    num_fewshot: int
    items: int
    answer_bits_per_byte: float
    answer_bits_per_byte_stderr: float | None
    chance: float
    blind: float
    accuracy: float
    accuracy_stderr: float | None
    accuracy_norm: float
    accuracy_norm_stderr: float | None
    truncated: int


@dataclass(frozen=True)
class TrainingRowsResult:
    """Where the final losses on a sample of training rows are.

    Attributes:
        rows: How many.
        folder: The Parquet files of single rows, relative to the run directory.
    """

    rows: int
    folder: str


@dataclass(frozen=True)
class TrialResult:
    """What was measured of a trial: losses of its kept checkpoints, by step, and of means of them.

    Attributes:
        tasks: Scores of checkpoints and means.
        training_rows: None where it was not asked for.
    """

    trial: str
    checkpoints: tuple[WeightsResult, ...]
    averages: tuple[WeightsResult, ...] = ()
    tasks: tuple[TaskScore, ...] = ()
    training_rows: TrainingRowsResult | None = None

    @property
    def final(self) -> WeightsResult:
        """The losses of the last checkpoint."""
        return self.checkpoints[-1]


def scores_folder(directory: RunDirectory, trial: str, weights: str = "") -> Path:
    """The folder of a trial's results by document, item and row, or of those of some weights."""
    return directory.evaluation(trial).with_suffix("") / weights


def write_result(directory: RunDirectory, result: TrialResult) -> None:
    """Writes the result of a trial."""
    write_dataclass(directory.evaluation(result.trial), result)


def read_result(directory: RunDirectory, trial: str) -> TrialResult:
    """Reads the result of a trial.

    Raises:
        UserError: if the file is damaged.
    """
    return read_dataclass(directory.evaluation(trial), TrialResult)


def read_results(directory: RunDirectory) -> dict[str, TrialResult]:
    """Reads the results of all evaluated trials, by name, but for those of other rows.

    A trial that was trained before the partition was made anew is left out: its quadrants, and
    perhaps its tokens, are not those of the other trials.
    """
    names = sorted(path.stem for path in directory.evaluation("any").parent.glob("*.json"))
    return {
        name: read_result(directory, name)
        for name in names
        if changed_input(directory, f"evaluate-{name}") is None
    }
