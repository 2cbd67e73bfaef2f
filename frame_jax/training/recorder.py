"""Records what each training step reports: metrics, trackers, bad steps, a progress bar."""

import contextlib
import json
import math
import time
from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from frame_jax.curriculum import digest
from frame_jax.errors import UserError, print_warning
from frame_jax.models.flops import model_flops_utilisation, training_flops_per_token
from frame_jax.parallel import processes
from frame_jax.run import progress
from frame_jax.training.metrics import MetricsLog, keep_steps_before
from frame_jax.training.train_step import TrainState
from frame_jax.training.training_job import TrainingJob

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

    Steps from `first_step` on run again, so their lines are dropped; process 0 alone writes.
    """

    def __init__(self, job: TrainingJob, first_step: int):
        self._path, self._job = job.folder / "bad_steps.jsonl", job
        self._write, self._in_a_row = processes.is_first(), 0
        if self._write:
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
            }
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            print_warning(
                f"step {step} is not applied (loss {line['loss']}, gradient norm "
                f"{line['grad_norm']}); a manifest (frame_jax.export_order) names its rows"
            )

    def are_too_many(self) -> bool:
        """Whether so many steps in a row were bad that training must stop."""
        return self._in_a_row >= self._job.training.max_bad_steps

    def error(self) -> UserError:
        """The error to raise after too many."""
        return UserError(
            f"{self._in_a_row} steps in a row had a loss or gradient that is not a number; "
            f"none of them was applied, and the state is saved. {self._path} lists them. If "
            "training has diverged, lower training.lr_schedule.peak and start the model again "
            "(--redo); to try the rows that follow, run the same command"
        )


ROWS = "rows"  # among the metrics: sums of the bytes of the digests of the step's rows, [16]


class Recorder:
    """Records one attempt at a training run; a context manager.

    The metrics of a step are read from the devices when the next one has been started: that keeps
    the devices busy, and bounds the number of steps in flight to two. Every process counts bad
    steps; process 0 alone writes. The attempt begins at step `start`, on `mesh`.

    Attributes:
        bad: The steps that were not applied.
        consumed: Digest of the rows of all steps whose metrics were read, and before.
    """

    def __init__(self, job: TrainingJob, mesh: Mesh, start: int, consumed: int):
        self._job, self.consumed = job, consumed
        self._stack = contextlib.ExitStack()
        first = processes.is_first()
        self.bad = BadSteps(job, start)
        self._log: MetricsLog | None = None
        if first:
            self._log = self._stack.enter_context(
                MetricsLog(
                    job.folder,
                    start,
                    every=job.training.log_every,
                    phase=job.name.split()[0],
                    make_tracker=job.make_tracker,
                )
            )
        self._step_tokens = job.training.batch_size * job.sequence_length
        self._advance = self._stack.enter_context(
            progress.progress_bar(
                job.name,
                job.steps * self._step_tokens,
                "tokens",
                done=start * self._step_tokens,
                show=first,
            )
        )
        self._device_kind, self._devices = mesh.devices.flat[0].device_kind, mesh.size
        self._began, self._in_steps = time.perf_counter(), 0.0
        self._pending: tuple[int, dict[str, jax.Array], float] | None = None
        self._last_read: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def push(self, step: int, metrics: dict[str, jax.Array], data_seconds: float) -> None:
        """Keeps the metrics of `step`, which is still being computed, and records the step before.

        `metrics` hold under ROWS the digests of its rows, for which it waited `data_seconds`.
        """
        self._record_pending()
        self._pending = (step, metrics, data_seconds)

    def flush(self) -> None:
        """Waits for the step under way and puts all records on the disk."""
        self._record_pending()
        if self._log is not None:
            self._log.flush()

    def restart_clock(self) -> None:
        """Leaves what was done since the last step ended out of the next step's time."""
        if self._last_read is not None:
            self._last_read = time.perf_counter()

    def _record_pending(self) -> None:
        """Records the step whose metrics were kept, waiting for it to end."""
        if self._pending is None:
            return
        step, metrics, data_seconds = self._pending
        self._pending = None
        arrays = {name: np.asarray(value) for name, value in metrics.items()}
        self.consumed = (self.consumed + digest.digest_value(arrays.pop(ROWS))) % digest.MODULUS
        values = {name: array.tolist() for name, array in arrays.items()}
        self.bad.record_step(step, values)
        now = time.perf_counter()
        # The first step of an attempt includes compilation and is not timed.
        seconds = None if self._last_read is None else now - self._last_read
        self._last_read = now
        self._in_steps += seconds or 0.0
        if self._log is None:
            return
        record = self._metrics_record(step, values, seconds) | {"data_seconds": data_seconds}
        self._log.write(record)
        loss = "not a number" if record["loss"] is None else f"{record['loss']:.3f}"
        self._advance(self._step_tokens, f"{record['stage']} loss {loss}")

    def _metrics_record(
        self, step: int, values: dict[str, Any], seconds: float | None
    ) -> dict[str, Any]:
        """The line of `metrics.jsonl` for a step that took `seconds` (docs/metrics.md)."""
        job, batch_size = self._job, self._job.training.batch_size
        schedule, first_row = job.selection.schedule, step * batch_size
        mixture = job.selection.mixture(first_row, first_row + batch_size)
        rate = None if seconds is None else self._step_tokens / seconds
        flops = training_flops_per_token(job.decoder, job.sequence_length)
        return {
            "step": step,
            "tokens": (step + 1) * self._step_tokens,
            # JSON has no word for what is not a number.
            **jax.tree.map(lambda value: value if math.isfinite(value) else None, values),
            "stage": schedule.stages[schedule.stage_at(first_row)].name,
            "mixture": dict(zip(schedule.quadrants, mixture.tolist(), strict=True)),
            "seconds": seconds,
            "tokens_per_second": rate,
            "mfu": rate and model_flops_utilisation(flops, rate, self._device_kind, self._devices),
            # Share of the time since the start, compilation and restoring included, in steps.
            "goodput": self._in_steps / (time.perf_counter() - self._began),
            **digest.consumed_record(self.consumed),
        }
