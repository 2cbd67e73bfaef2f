"""The order of a trial as stages and mixtures, in the steps of any trainer."""

import contextlib
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from frame_jax.config.run import RunConfig
from frame_jax.curriculum.selection import SelectionMap, trial_selection
from frame_jax.curriculum.stages import DataSchedule
from frame_jax.errors import UserError
from frame_jax.records import TokenReader
from frame_jax.run.directory import RunDirectory, list_parts, read_json
from frame_jax.run.special_tokens import SpecialTokens, read_special_tokens


class TrialOrder(NamedTuple):
    """The order of a trial over rows that exist.

    Attributes:
        sequence_length: Tokens a row predicts here.
        counts: Of each quadrant: rows, documents, tokens, padding.
    """

    trial: str
    schedule: DataSchedule
    selection: SelectionMap
    sequence_length: int
    counts: Mapping[str, Mapping[str, int]]
    special_tokens: SpecialTokens


class Trainer(NamedTuple):
    """What an export must know about the other trainer.

    Attributes:
        data: Folder or bucket that will hold a folder of documents for each quadrant.
        suffix: Of the files there.
    """

    batch_size: int
    sequence_length: int
    data: str
    suffix: str

    def step(self, trial_order: TrialOrder, row: int) -> int:
        """The step at which the other trainer has read as many tokens as `row` rows hold here."""
        tokens_per_step = self.batch_size * self.sequence_length
        return round(row * trial_order.sequence_length / tokens_per_step)


class Span(NamedTuple):
    """Steps [first, stop) of the other trainer and the share of each quadrant in them."""

    name: str
    first: int
    stop: int
    mixture: dict[str, float]


def make_trial_order(config: RunConfig, directory: RunDirectory, trial_name: str) -> TrialOrder:
    """The order of one of the run's trials, the same as training follows.

    Raises:
        UserError: if there is no such curriculum, or the rows cannot fill its stages.
    """
    trial = config.trial(trial_name)
    counts = read_json(directory.quadrants / "rows.json")
    selection = trial_selection(
        config, trial, {quadrant: count["rows"] for quadrant, count in counts.items()}
    )
    length, special_tokens = config.partition.rows.sequence_length, read_special_tokens(directory)
    return TrialOrder(trial_name, selection.schedule, selection, length, counts, special_tokens)


def stage_spans(trial_order: TrialOrder, trainer: Trainer, *, smooth: bool) -> list[Span]:
    """The stages of the whole run, epochs included, in the other trainer's steps.

    With `smooth`, a stage's mixture is what it gets with its transitions; otherwise it is the
    stage's own, as if all transitions were hard.

    Raises:
        UserError: if the whole run is shorter than half a step.
    """
    schedule = trial_order.schedule
    spans = []
    stages = schedule.stages * schedule.epochs
    for stage, (name, start, stop) in zip(stages, schedule.run_stages, strict=True):
        first, last = trainer.step(trial_order, start), trainer.step(trial_order, stop)
        if first == last:
            continue
        counts = np.array(stage.quadrant_rows) / (stage.stop - stage.start)
        shares = schedule.mixture(stage.start, stage.stop) if smooth else counts
        rounded = np.round(shares, 4) + 0.0  # which makes -0 a 0
        mixture = dict(zip(schedule.quadrants, rounded.tolist(), strict=True))
        spans.append(Span(name, first, last, mixture))
    if not spans:
        raise UserError(
            f"the run has {schedule.rows * trial_order.sequence_length:,} tokens, less than a "
            f"step of {trainer.batch_size:,} x {trainer.sequence_length:,}: lower --batch_size"
        )
    return spans


def mixture_spans(trial_order: TrialOrder, trainer: Trainer, count: int, block: int) -> list[Span]:
    """Cuts the run into about `count` spans in which each `block` of rows has the same mixture.

    Shares are whole rows of a block. What a piece gets too much or too little of a quadrant by that
    is made up for by the pieces after it. Neighbours with the same mixture are joined. With hard
    transitions pieces also end with stages. `block` divides the trainer's batch.
    """
    schedule = trial_order.schedule
    ends = np.concatenate([[0], schedule.boundaries])
    steps = np.array([trainer.step(trial_order, int(row)) for row in ends])
    edges = np.union1d(np.arange(0, steps[-1], max(1, steps[-1] // count)), steps[-1:])
    if math.isinf(schedule.steepness):
        edges = np.union1d(edges, steps)
    epochs, inside = np.divmod(np.interp(edges, steps, ends), schedule.epoch_rows)
    epoch = schedule.cumulative(np.array([schedule.epoch_rows]))
    asked = (epochs[:, None] * epoch + schedule.cumulative(inside)) / schedule.rows
    asked *= edges[-1] * trainer.batch_size
    given = np.zeros(len(schedule.quadrants))
    spans: list[Span] = []
    for number, (first, stop) in enumerate(itertools.pairwise(edges.tolist())):
        blocks = (stop - first) * trainer.batch_size // block
        rows = round_to_total((asked[number + 1] - given) / blocks, block)
        given += rows * blocks
        shares = dict(zip(schedule.quadrants, (rows / block).tolist(), strict=True))
        span = Span(f"piece {number + 1}", first, stop, shares)
        if spans and spans[-1].mixture == span.mixture:
            span = spans.pop()._replace(stop=stop)
        spans.append(span)
    return spans


def round_to_total(owed: np.ndarray, total: int) -> np.ndarray:
    """Rounds `owed` (sum about `total`) to whole numbers of at least 0 with that sum: int64."""
    share = np.maximum(owed, 0)
    share *= total / share.sum()
    rows = share.astype(np.int64)
    rows[np.argsort(rows - share, kind="stable")[: total - rows.sum()]] += 1
    return rows


def row_stages(trial_order: TrialOrder) -> list[tuple[str, int, int]]:
    """Folder, first row and end of each stage of the run that has rows, epochs included."""
    return [
        (f"{number:02d}", start, stop)
        for number, (_, start, stop) in enumerate(trial_order.schedule.run_stages, 1)
        if start < stop
    ]


ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class RowFile:
    """One file of a quadrant's rows; `first` are the rows of the quadrant before it."""

    quadrant: int
    quadrant_name: str
    part: int
    path: Path
    first: int
    rows: int


def list_row_files(directory: RunDirectory, schedule: DataSchedule) -> list[RowFile]:
    """Lists the row files of all quadrants, in order.

    Raises:
        UserError: if they do not hold the rows that the schedule was made for.
    """
    files = []
    for quadrant, name in enumerate(schedule.quadrants):
        first = 0
        for part, path in enumerate(list_parts(directory.quadrants / name, ".arrayrecord")):
            with contextlib.closing(TokenReader(path)) as reader:
                files.append(RowFile(quadrant, name, part, path, first, len(reader)))
            first += files[-1].rows
        if first != schedule.available[quadrant]:
            raise UserError(
                f"{directory.quadrants / name} holds {first:,} rows, and the order is of "
                f"{schedule.available[quadrant]:,}: a part is missing or has changed; redo the "
                "partition phase"
            )
    return files


def read_rows(row_file: RowFile) -> Iterator[tuple[int, np.ndarray]]:
    """Yields the rows of a file from its beginning: the index of the first, and uint32 [n, ids]."""
    with contextlib.closing(TokenReader(row_file.path)) as reader:
        for first in range(0, row_file.rows, ROWS_AT_ONCE):
            indices = range(first, min(first + ROWS_AT_ONCE, row_file.rows))
            yield first, np.stack(reader.read(indices))
