"""Skips and records steps whose loss or gradient is not a number."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from frame_jax.errors import UserError
from frame_jax.training.metrics import keep_steps_before
from frame_jax.training.train_step import TrainState
from frame_jax.training.training_job import TrainingJob

logger = logging.getLogger(__name__)

TrainStep = Callable[[TrainState, jax.Array], tuple[TrainState, dict[str, jax.Array]]]


def skip_bad_steps(train_step: TrainStep) -> TrainStep:
    """`train_step`, but parameters and moments stay when loss or gradient is not finite.

    Counters go on, the optimizer's too: the learning rate is a function of the step.
    """

    def guarded(state: TrainState, rows: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        new, metrics = train_step(state, rows)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])

        def choose(after: jax.Array, before: jax.Array) -> jax.Array:
            is_float = jnp.issubdtype(after.dtype, jnp.floating)
            return jnp.where(finite, after, before) if is_float else after

        return jax.tree.map(choose, new, state), metrics

    return guarded


class BadSteps:
    """Writes bad steps to `bad_steps.jsonl`, and counts those in a row.

    Steps from `first_step` on run again, so their lines are dropped; `write` is false
    on all processes but one.
    """

    def __init__(self, job: TrainingJob, first_step: int, write: bool):
        self._path, self._job = job.folder / "bad_steps.jsonl", job
        self._write, self._in_a_row = write, 0
        if write:
            keep_steps_before(self._path, first_step)

    def record_step(self, step: int, values: dict[str, Any]) -> None:
        """Counts the next step, and writes its line if it is bad."""
        if math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"]):
            self._in_a_row = 0
            return
        self._in_a_row += 1
        if self._write:
            line = {
                "step": step,
                "loss": str(values["loss"]),
                "grad_norm": str(values["grad_norm"]),
                "rows": self._rows_of(step),
            }
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            logger.warning(
                "step %d is not applied (loss %s, gradient norm %s); its rows are in %s",
                *(step, line["loss"], line["grad_norm"], self._path),
            )

    def _rows_of(self, step: int) -> dict[str, list[int]]:
        """The rows of a step by quadrant, numbered across the quadrant's parts."""
        selection, batch_size = self._job.selection, self._job.training.batch_size
        first = step * batch_size
        quadrants, rows = selection.select(
            np.arange(first, min(first + batch_size, len(selection)))
        )
        names = selection.schedule.quadrants
        return {
            names[number]: sorted(rows[quadrants == number].tolist())
            for number in np.unique(quadrants)
        }

    def are_too_many(self) -> bool:
        """Whether so many steps in a row were bad that training must stop."""
        return self._in_a_row >= self._job.training.max_bad_steps

    def error(self) -> UserError:
        """The error to raise after too many."""
        return UserError(
            f"{self._in_a_row} steps in a row had a loss or gradient that is not a number; "
            f"none of them was applied, and the state is saved. {self._path} lists their rows. If "
            "training has diverged, lower training.lr_schedule.peak and start the model again "
            "(--redo); to try the rows that follow, run the same command"
        )
