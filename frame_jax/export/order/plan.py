"""A run's settings and rows in; its curriculum as stages, in any trainer's steps, out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from frame_jax.config.run import RunConfig
from frame_jax.curriculum.presets import expand
from frame_jax.curriculum.selection import SelectionMap
from frame_jax.curriculum.stages import Schedule, resolve
from frame_jax.errors import UserError
from frame_jax.run.directory import RunDirectory, read_json


class Plan(NamedTuple):
    """A curriculum over rows that exist.

    Attributes:
        curriculum: Its name.
        schedule: Stages and exact counts.
        selection: Which row comes when.
        sequence_length: Tokens a row predicts here.
        counts: Of each cell: rows, documents, tokens, padding.
        special: bos_id, eos_id and vocab_size of the run's tokenizer.
    """

    curriculum: str
    schedule: Schedule
    selection: SelectionMap
    sequence_length: int
    counts: Mapping[str, Mapping[str, int]]
    special: Mapping[str, int]


class Trainer(NamedTuple):
    """What must be known of the other trainer.

    Attributes:
        batch_rows: Sequences in one of its steps.
        sequence_length: Tokens in one of its sequences.
        data: Folder or bucket that will hold a folder of documents for each quadrant.
        suffix: Of the files there.
    """

    batch_rows: int
    sequence_length: int
    data: str
    suffix: str

    def step(self, plan: Plan, row: int) -> int:
        """The step at which it has read as many tokens as `row` rows hold here."""
        tokens_per_step = self.batch_rows * self.sequence_length
        return round(row * plan.sequence_length / tokens_per_step)


class Span(NamedTuple):
    """Steps [first, stop) of the other trainer and the share of each quadrant in them."""

    name: str
    first: int
    stop: int
    mixture: dict[str, float]


def make_plan(config: RunConfig, directory: RunDirectory, curriculum: str) -> Plan:
    """The plan of one of the run's curricula, the same as training here follows.

    Raises:
        UserError: if there is no such curriculum, or the rows cannot fill its stages.
    """
    trial = config.trial(curriculum)
    counts = read_json(directory.quadrants / "rows.json")
    training, axes = config.pretrain.training, config.partition.axes
    sequence_length = config.partition.rows.sequence_length
    order = expand(config.curricula[trial.arm], axes)
    schedule = resolve(
        order,
        {cell: counts[cell]["rows"] for cell in axes.cells},
        batch_rows=training.batch_rows,
        sequence_length=sequence_length,
        steps=training.steps,
    )
    selection = SelectionMap(schedule, trial.seed, order.shuffle)
    special = read_json(directory.tokenizer.with_name("special_tokens.json"))
    return Plan(curriculum, schedule, selection, sequence_length, counts, special)


def stages(plan: Plan, trainer: Trainer, *, smooth: bool) -> list[Span]:
    """The stages of the whole run, epochs included, but for those shorter than a step.

    Args:
        plan: The curriculum.
        trainer: Whose steps to count.
        smooth: Whether a stage's mixture is what it gets with its transitions; otherwise it is the
            stage's own, as if all transitions were hard.

    Raises:
        UserError: if the whole run is shorter than half a step.
    """
    schedule = plan.schedule
    spans = []
    for epoch in range(schedule.epochs):
        for stage in schedule.stages:
            start, stop = (epoch * schedule.epoch_rows + row for row in (stage.start, stage.stop))
            first, last = trainer.step(plan, start), trainer.step(plan, stop)
            if first == last:
                continue
            counts = np.array(stage.cell_rows) / (stage.stop - stage.start)
            shares = schedule.mixture(stage.start, stage.stop) if smooth else counts
            spans.append(Span(stage.name, first, last, mixture(schedule, shares)))
    if not spans:
        raise UserError(
            f"the run has {schedule.rows * plan.sequence_length:,} tokens, less than a step of "
            f"{trainer.batch_rows:,} x {trainer.sequence_length:,}: lower --batch_rows"
        )
    return spans


def pieces(plan: Plan, trainer: Trainer, count: int, block: int) -> list[Span]:
    """The run cut into about `count` pieces, in which each `block` of rows has the same mixture.

    Shares are whole rows of a block. What a piece gets too much or too little of a quadrant by that
    is made up for by the pieces after it. Neighbours with the same mixture are joined.

    Args:
        plan: The curriculum.
        trainer: Whose steps to count.
        count: Pieces of a smooth curriculum; with hard transitions pieces also end with stages.
        block: Rows; divides the trainer's batch.
    """
    schedule = plan.schedule
    ends = np.concatenate([[0], schedule.boundaries])
    steps = np.array([trainer.step(plan, int(row)) for row in ends])
    edges = np.union1d(np.arange(0, steps[-1], max(1, steps[-1] // count)), steps[-1:])
    if math.isinf(schedule.steepness):
        edges = np.union1d(edges, steps)
    epochs, inside = np.divmod(np.interp(edges, steps, ends), schedule.epoch_rows)
    epoch = schedule.cumulative(np.array([schedule.epoch_rows]))
    asked = (epochs[:, None] * epoch + schedule.cumulative(inside)) / schedule.rows
    asked *= edges[-1] * trainer.batch_rows
    given = np.zeros(len(schedule.cells))
    spans: list[Span] = []
    for number, (first, stop) in enumerate(itertools.pairwise(edges.tolist())):
        blocks = (stop - first) * trainer.batch_rows // block
        rows = whole((asked[number + 1] - given) / blocks, block)
        given += rows * blocks
        shares = dict(zip(schedule.cells, (rows / block).tolist(), strict=True))
        span = Span(f"piece {number + 1}", first, stop, shares)
        if spans and spans[-1].mixture == span.mixture:
            span = spans.pop()._replace(stop=stop)
        spans.append(span)
    return spans


def whole(owed: np.ndarray, total: int) -> np.ndarray:
    """`owed`, which sums to about `total`, as whole numbers of at least 0 that sum to it: int64."""
    share = np.maximum(owed, 0)
    share *= total / share.sum()
    rows = share.astype(np.int64)
    rows[np.argsort(rows - share, kind="stable")[: total - rows.sum()]] += 1
    return rows


def mixture(schedule: Schedule, shares: np.ndarray) -> dict[str, float]:
    """Shares by quadrant, in four digits."""
    rounded = np.round(shares, 4) + 0.0  # which makes -0 a 0
    return dict(zip(schedule.cells, rounded.tolist(), strict=True))


def row_stages(plan: Plan) -> list[tuple[str, int, int]]:
    """Folder, first row and end of each stage of the run that has rows, epochs included."""
    ends = [0, *plan.schedule.boundaries.tolist()]
    return [
        (f"{number:02d}", start, stop)
        for number, (start, stop) in enumerate(itertools.pairwise(ends), 1)
        if start < stop
    ]
