"""The training loop: rows in, a trained model's checkpoints and metrics out.

The step is the whole state of data and schedule: batch s is rows [s * B, (s + 1) * B) of the
curriculum, whatever the number of processes, so any checkpoint continues exactly where it stopped.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from frame_jax import preemption, progress
from frame_jax.checkpoints import Checkpointer
from frame_jax.config import ParallelConfig, TrainingConfig
from frame_jax.curriculum.loader import make_loader
from frame_jax.curriculum.selection import SelectionMap
from frame_jax.errors import UserError
from frame_jax.models.flops import model_flops_utilisation, training_flops_per_token
from frame_jax.models.functional import Decoder, write_description
from frame_jax.parallel import processes
from frame_jax.parallel.sharding import (
    batch_sharding,
    batch_ways,
    local_rows,
    make_mesh,
    param_shardings,
)
from frame_jax.preemption import Preempted
from frame_jax.run_directory import write_json
from frame_jax.training.bad_steps import BadSteps, skip_bad
from frame_jax.training.metrics import MetricsLog
from frame_jax.training.optimizer import make_optimizer, optimizer_shardings
from frame_jax.training.profiling import Trace
from frame_jax.training.schedules import learning_rate
from frame_jax.training.step import Specials, TrainState, make_train_step

MEASURED_STEPS = 10  # steps whose mean time sets the interval between rolling checkpoints


@dataclasses.dataclass(frozen=True)
class Job:
    """One model to train.

    Attributes:
        name: Shown beside the progress bar.
        folder: Checkpoints, metrics and descriptions go here.
        decoder: The model.
        training: How it is trained.
        parallel: The mesh.
        specials: BOS and EOS of the rows.
        selection: Which row comes when.
        parts: Files of rows, by quadrant.
        sequence_length: Tokens a row predicts.
        seed: Seed of the initial weights.
        fingerprint: Identifies everything the result depends on.
        profile: Steps to trace, `START:STOP`.
    """

    name: str
    folder: Path
    decoder: Decoder
    training: TrainingConfig
    parallel: ParallelConfig
    specials: Specials
    selection: SelectionMap
    parts: dict[str, list[Path]]
    sequence_length: int
    seed: int
    fingerprint: str
    profile: str | None = None

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run; the last batch may be completed by padding."""
        return self.selection.schedule.steps(self.training.batch_rows)

    @property
    def stage_starts(self) -> list[int]:
        """The first step of each stage, rising; a stage inside a step begins with it."""
        starts = self.selection.schedule.boundaries[:-1] // self.training.batch_rows
        return sorted({0, *starts.tolist()})


def kept_steps(job: Job) -> list[int]:
    """Steps whose checkpoints stay: every stage end, the milestones, and the last."""
    ends = {-(-int(row) // job.training.batch_rows) for row in job.selection.schedule.boundaries}
    even = {
        round(job.steps * i / job.training.milestones)
        for i in range(1, job.training.milestones + 1)
    }
    return sorted(step for step in ends | even if 0 < step <= job.steps)


class StateFactory:
    """Where each array of the training state lives on the mesh, and how a fresh one is made."""

    def __init__(self, job: Job, mesh: Mesh):
        decoder = job.decoder
        self.optimizer = make_optimizer(job.training, decoder, job.steps, job.stage_starts)
        shapes = decoder.shapes()
        params = param_shardings(decoder.axes(), shapes, mesh)
        replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        moments = optimizer_shardings(self.optimizer, shapes, params, mesh)
        self.shardings = TrainState(replicated, params, moments)  # type: ignore[arg-type]
        self._decoder, self._seed = decoder, job.seed

    def _make(self) -> TrainState:
        params = self._decoder.init(jax.random.key(self._seed))
        return TrainState(jnp.zeros((), jnp.int32), params, self.optimizer.init(params))

    def fresh(self) -> TrainState:
        """The state before the first step; each device makes only its own shards."""
        return jax.jit(self._make, out_shardings=self.shardings)()

    def newest(self, checkpointer: Checkpointer) -> tuple[int, TrainState]:
        """The newest state that can be read, and its step; a fresh one where there is none."""
        like = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            jax.eval_shape(self._make),
            self.shardings,
        )
        found = checkpointer.restore_newest(like.params, like.optimizer)
        if found is None:
            return 0, self.fresh()
        step, params, optimizer = found
        on_devices = jax.device_put(np.int32(step), self.shardings.step)
        return step, TrainState(on_devices, params, optimizer)


def batches(job: Job, mesh: Mesh, start_step: int) -> Iterator[jax.Array]:
    """Global batches [B, T + 1] int32 on the mesh, from `start_step` on."""
    sharding = batch_sharding(mesh)
    shape = (job.training.batch_rows, job.sequence_length + 1)
    loader = make_loader(
        job.parts,
        job.selection,
        batch_rows=job.training.batch_rows,
        row_offsets=local_rows(sharding, shape),
        row_tokens=shape[1],
        padding_id=job.specials.bos,
        start_step=start_step,
    )
    for rows in loader:
        yield jax.make_array_from_process_local_data(sharding, rows, shape)


class StepReader:
    """Turns the metrics of a step into a record, one step late.

    Reading the loss of the step before, not of the one just started, keeps the device busy and
    bounds the number of steps in flight to two.
    """

    def __init__(self, job: Job, bad: BadSteps, mesh: Mesh):
        self._job, self._bad = job, bad
        self._device_kind, self._devices = mesh.devices.flat[0].device_kind, mesh.size
        self._began, self._in_steps = time.perf_counter(), 0.0
        self._pending: tuple[int, dict[str, jax.Array]] | None = None
        self._last_read: float | None = None

    def push(self, step: int, metrics: dict[str, jax.Array]) -> dict[str, Any] | None:
        """Keeps the metrics of `step`; returns the record of the step before, if any."""
        record = self.flush()
        self._pending = (step, metrics)
        return record

    def flush(self) -> dict[str, Any] | None:
        """The record of the step whose metrics were kept, waiting for it to end."""
        if self._pending is None:
            return None
        step, metrics = self._pending
        self._pending = None
        values = {name: float(value) for name, value in metrics.items()}
        self._bad.see(step, values)
        now = time.perf_counter()
        # The first step of an attempt includes compilation and is not timed.
        seconds = None if self._last_read is None else now - self._last_read
        self._last_read = now
        self._in_steps += seconds or 0.0
        return self._record(step, values, seconds)

    def restart_clock(self) -> None:
        """Keeps what was done since the last step ended out of the next step's time."""
        if self._last_read is not None:
            self._last_read = time.perf_counter()

    def _record(self, step: int, values: dict[str, float], seconds: float | None) -> dict[str, Any]:
        job, batch = self._job, self._job.training.batch_rows
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
            **{name: value if math.isfinite(value) else None for name, value in values.items()},
            "stage": schedule.stages[schedule.stage_at(first_row)].name,
            "mixture": dict(zip(schedule.cells, mixture.tolist(), strict=True)),
            "seconds": seconds,
            "tokens_per_second": rate,
            "mfu": rate and model_flops_utilisation(flops, rate, self._device_kind, self._devices),
            # Share of the time since the start, compilation and restoring included, in steps.
            "goodput": self._in_steps / (time.perf_counter() - self._began),
        }


def train(job: Job) -> dict[str, Any]:
    """Trains to the last step, from the newest checkpoint if there is one.

    Returns:
        Steps, rows, tokens and parameters, for the completion marker.

    Raises:
        UserError: if the batch cannot be split over the mesh, or a checkpoint is not this run's.
    """
    mesh = make_mesh(job.parallel)
    check_batch(job, mesh)
    kept = kept_steps(job)
    if processes.is_first():
        write_description(job.folder, job.decoder)
        write_json(job.folder / "curriculum.json", description(job, kept))
    checkpointer = Checkpointer(job.folder / "checkpoints", kept, job.fingerprint)
    try:
        return _train(job, mesh, kept, checkpointer)
    finally:
        checkpointer.close()


def _train(job: Job, mesh: Mesh, kept: list[int], checkpointer: Checkpointer) -> dict[str, Any]:
    factory = StateFactory(job, mesh)
    start, state = factory.newest(checkpointer)
    train_step = jax.jit(
        skip_bad(
            make_train_step(
                job.decoder,
                factory.optimizer,
                job.specials,
                job.training,
                mesh,
                lambda step: learning_rate(
                    job.training.schedule, step, job.steps, job.stage_starts
                ),
            )
        ),
        in_shardings=(factory.shardings, batch_sharding(mesh)),
        out_shardings=(factory.shardings, factory.shardings.step),
        donate_argnums=0,
    )
    first = processes.is_first()
    log = MetricsLog(job.folder, start, job.training.log_every) if first else None
    bad = BadSteps(
        job.folder,
        job.selection,
        batch_rows=job.training.batch_rows,
        most=job.training.max_bad_steps,
        first_step=start,
        write=first,
    )
    reader = StepReader(job, bad, mesh)
    trace = Trace(job.folder / "profile", job.profile)
    tokens = job.training.batch_rows * job.sequence_length
    interval = job.steps  # until the steps have been timed
    timer = time.perf_counter()

    with (
        preemption.deferred(),
        progress.bar(
            job.name, job.steps * tokens, "tokens", done=start * tokens, show=first
        ) as advance,
    ):

        def publish(record: dict[str, Any] | None) -> None:
            if record is not None and log is not None:
                log.write(record)
                loss = "not a number" if record["loss"] is None else f"{record['loss']:.3f}"
                advance(tokens, f"{record['stage']} loss {loss}")

        for step, rows in zip(range(start, job.steps), batches(job, mesh, start), strict=True):
            trace.before(step, state)
            state, metrics = train_step(state, rows)
            publish(reader.push(step, metrics))
            done = step + 1
            if done == start + 1:
                timer = time.perf_counter()
            elif done == start + 1 + MEASURED_STEPS:
                seconds = (time.perf_counter() - timer) / MEASURED_STEPS
                interval = processes.agree(
                    max(1, round(job.training.checkpoint_seconds / max(seconds, 1e-9)))
                )
            stop = preemption.requested(done)
            if stop or bad.too_many() or done in kept or (done - start) % interval == 0:
                publish(reader.flush())
                if log is not None:
                    log.flush()
                checkpointer.save(done, state.params, state.optimizer)
                reader.restart_clock()
            if bad.too_many():
                raise bad.error()
            if stop:
                raise Preempted(f"{job.name} is saved at step {done}")
        trace.close(state)
    if log is not None:
        log.close()
    return {
        "steps": job.steps,
        "rows": job.selection.schedule.rows,
        "tokens": job.steps * tokens,
        "parameters": job.decoder.parameter_count(),
    }


def check_batch(job: Job, mesh: Mesh) -> None:
    """Refuses a batch that does not divide over the mesh."""
    ways = batch_ways(mesh) * job.training.accumulate
    if job.training.batch_rows % ways:
        raise UserError(
            f"training.batch_rows ({job.training.batch_rows}) must be a multiple of slice x data x "
            f"fsdp x accumulate ({ways}); change it, or the mesh under `parallel`"
        )


def description(job: Job, kept: list[int]) -> dict[str, Any]:
    """What evaluation and report need to know of the order: `curriculum.json`."""
    schedule, batch = job.selection.schedule, job.training.batch_rows
    starts = np.concatenate([[0], schedule.boundaries[:-1]]).tolist()
    names = [stage.name for stage in schedule.stages] * schedule.epochs
    return {
        "steps": job.steps,
        "batch_rows": batch,
        "sequence_length": job.sequence_length,
        "rows": dict(zip(schedule.cells, schedule.available, strict=True)),
        "kept_steps": kept,
        "stages": [
            {
                "name": name,
                "first_row": start,
                "last_row": stop,
                "first_step": start // batch,
                "last_step": -(-stop // batch),
            }
            for name, start, stop in zip(names, starts, schedule.boundaries.tolist(), strict=True)
        ],
    }
