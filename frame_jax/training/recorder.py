"""Steps of a training run in; `metrics.jsonl`, trackers, bad steps and a progress bar out."""

from __future__ import annotations

import contextlib
from typing import Any

import jax
from jax.sharding import Mesh

from frame_jax.curriculum.digest import ConsumedRows
from frame_jax.parallel import processes
from frame_jax.run import progress
from frame_jax.training.bad_steps import BadSteps
from frame_jax.training.metrics import MetricsLog
from frame_jax.training.step_reader import StepReader
from frame_jax.training.training_job import TrainingJob


class Recorder:
    """Records of one attempt at a training run, from `start` on, before which the run has
    `consumed` rows; a context manager.

    Every process counts bad steps; process 0 alone writes.
    """

    def __init__(self, job: TrainingJob, mesh: Mesh, start: int, consumed: ConsumedRows):
        self._stack = contextlib.ExitStack()
        first = processes.is_first()
        self.bad = BadSteps(
            job.folder,
            job.selection,
            batch_size=job.training.batch_size,
            most=job.training.max_bad_steps,
            first_step=start,
            write=first,
        )
        self._reader = StepReader(job, self.bad, mesh, consumed)
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
        self._tokens = job.training.batch_size * job.sequence_length
        self._advance = self._stack.enter_context(
            progress.progress_bar(
                job.name,
                job.steps * self._tokens,
                "tokens",
                done=start * self._tokens,
                show=first,
            )
        )

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def push(self, step: int, metrics: dict[str, jax.Array], waited: float) -> None:
        """Takes the metrics of `step`, still being computed, and the seconds it waited for rows."""
        self._publish(self._reader.push(step, metrics, waited))

    def flush(self) -> None:
        """Waits for the step under way and puts all records on the disk."""
        self._publish(self._reader.flush())
        if self._log is not None:
            self._log.flush()

    @property
    def consumed(self) -> ConsumedRows:
        """The rows of all steps that were taken; after `flush`."""
        return self._reader.consumed

    def restart_clock(self) -> None:
        """Keeps what was done since the last step ended out of the next step's time."""
        self._reader.restart_clock()

    def _publish(self, record: dict[str, Any] | None) -> None:
        if record is not None and self._log is not None:
            self._log.write(record)
            loss = "not a number" if record["loss"] is None else f"{record['loss']:.3f}"
            self._advance(self._tokens, f"{record['stage']} loss {loss}")
