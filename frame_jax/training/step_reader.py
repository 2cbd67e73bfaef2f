"""What a step reports, read from the devices one step late and made into a line of metrics."""

from __future__ import annotations

import math
import time
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from frame_jax.curriculum.digest import ConsumedRows
from frame_jax.models.flops import model_flops_utilisation, training_flops_per_token
from frame_jax.training.bad_steps import BadSteps
from frame_jax.training.training_job import TrainingJob

ROWS = "rows"  # among the metrics: sums of the bytes of the digests of the step's rows, [16]


class StepReader:
    """Turns the metrics of a step into a record, one step late.

    Reading the loss of the step before, not of the one just started, keeps the device busy and
    bounds the number of steps in flight to two.

    Attributes:
        consumed: The rows of all steps whose metrics were read, and before.
    """

    def __init__(self, job: TrainingJob, bad: BadSteps, mesh: Mesh, consumed: ConsumedRows):
        self._job, self._bad, self.consumed = job, bad, consumed
        self._device_kind, self._devices = mesh.devices.flat[0].device_kind, mesh.size
        self._began, self._in_steps = time.perf_counter(), 0.0
        self._pending: tuple[int, dict[str, jax.Array], float] | None = None
        self._last_read: float | None = None

    def push(
        self, step: int, metrics: dict[str, jax.Array], waited: float
    ) -> dict[str, Any] | None:
        """Keeps the metrics of `step` and the seconds it waited for its rows; returns the record
        of the step before, if any."""
        record = self.flush()
        self._pending = (step, metrics, waited)
        return record

    def flush(self) -> dict[str, Any] | None:
        """The record of the step whose metrics were kept, waiting for it to end."""
        if self._pending is None:
            return None
        step, metrics, waited = self._pending
        self._pending = None
        arrays = {name: np.asarray(value) for name, value in metrics.items()}
        self.consumed = self.consumed.add_rows(arrays.pop(ROWS))
        values = {name: array.tolist() for name, array in arrays.items()}
        self._bad.record_step(step, values)
        now = time.perf_counter()
        # The first step of an attempt includes compilation and is not timed.
        seconds = None if self._last_read is None else now - self._last_read
        self._last_read = now
        self._in_steps += seconds or 0.0
        return self._record(step, values, seconds) | {"data_seconds": waited}

    def restart_clock(self) -> None:
        """Keeps what was done since the last step ended out of the next step's time."""
        if self._last_read is not None:
            self._last_read = time.perf_counter()

    def _record(self, step: int, values: dict[str, Any], seconds: float | None) -> dict[str, Any]:
        job, batch = self._job, self._job.training.batch_size
        tokens = batch * job.sequence_length
        schedule, first_row = job.selection.schedule, step * batch
        mixture = job.selection.mixture(first_row, first_row + batch)
        rate = None if seconds is None else tokens / seconds
        flops = training_flops_per_token(
            job.decoder.config, job.decoder.vocab_size, job.sequence_length
        )
        return {
            "step": step,
            "tokens": (step + 1) * tokens,
            # JSON has no word for what is not a number.
            **{name: without_nan(value) for name, value in values.items()},
            "stage": schedule.stages[schedule.stage_at(first_row)].name,
            "mixture": dict(zip(schedule.quadrants, mixture.tolist(), strict=True)),
            "seconds": seconds,
            "tokens_per_second": rate,
            "mfu": rate and model_flops_utilisation(flops, rate, self._device_kind, self._devices),
            # Share of the time since the start, compilation and restoring included, in steps.
            "goodput": self._in_steps / (time.perf_counter() - self._began),
            **self.consumed.as_record(),
        }


def without_nan(value: float | list[Any]) -> Any:
    """A number, or lists of them, with None for those that are not finite."""
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return value if math.isfinite(value) else None
