"""A run's settings and rows in; its curriculum as stages, in any trainer's steps, out."""

from __future__ import annotations

import itertools
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
    """

    curriculum: str
    schedule: Schedule
    selection: SelectionMap
    sequence_length: int


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
    return Plan(curriculum, schedule, selection, sequence_length)


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


def pieces(plan: Plan, trainer: Trainer, count: int) -> list[Span]:
    """The run cut into about `count` pieces of equally many steps, each with its mean mixture.

    Neighbours with the same mixture are joined.
    """
    schedule = plan.schedule
    steps = max(trainer.step(plan, schedule.rows), 1)
    edges = [*range(0, steps, max(1, steps // count)), steps]
    rows = [round(edge * schedule.rows / steps) for edge in edges]
    epochs, inside = np.divmod(rows, schedule.epoch_rows)
    epoch = schedule.cumulative(np.array([schedule.epoch_rows]))
    asked = epochs[:, None] * epoch + schedule.cumulative(inside)
    shares = np.diff(asked, axis=0) / np.maximum(np.diff(rows), 1)[:, None]
    spans: list[Span] = []
    for number, (first, stop) in enumerate(itertools.pairwise(edges)):
        span = Span(f"piece {number + 1}", first, stop, mixture(schedule, shares[number]))
        if spans and spans[-1].mixture == span.mixture:
            span = spans.pop()._replace(stop=stop)
        spans.append(span)
    return spans


def mixture(schedule: Schedule, shares: np.ndarray) -> dict[str, float]:
    """Shares by quadrant, in four digits."""
    return {
        cell: round(float(share), 4) for cell, share in zip(schedule.cells, shares, strict=True)
    }
