"""The training loop: batches of rows to updates, checkpoints and metrics.

The step is the whole state of data and schedule: batch s is rows [s * B, (s + 1) * B) of the
curriculum, whatever the number of processes, so any checkpoint continues exactly where it stopped.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from frame_jax.curriculum import digest
from frame_jax.curriculum.loader import BatchSource, make_loader
from frame_jax.models.transformer import write_description
from frame_jax.parallel import processes
from frame_jax.parallel.sharding import batch_sharding, local_rows, make_mesh, param_shardings
from frame_jax.run import preemption
from frame_jax.run.preemption import Preempted
from frame_jax.run.trial_record import write_trial_record
from frame_jax.training import training_job
from frame_jax.training.checkpointer import Checkpointer
from frame_jax.training.initial import initial_params, keep_files
from frame_jax.training.optimizer import learning_rate, make_optimizer, optimizer_shardings
from frame_jax.training.recorder import ROWS, Recorder, skip_bad_steps
from frame_jax.training.train_step import TrainState, make_train_step

MEASURED_STEPS = 10  # steps whose mean time sets the interval between rolling checkpoints


@contextlib.contextmanager
def step_trace(folder: Path, steps: str | None) -> Iterator[Callable[[int, Any], None]]:
    """Traces the steps of a range, `START:STOP` in steps of the run, STOP not included; None traces
    nothing. The trace goes into `plugins/profile/` under `folder`, for XProf and TensorBoard.

    Yields a function to call before each step, with the step and the state that it reads.
    """
    first, stop = (-1, -1) if steps is None else map(int, steps.split(":"))
    with contextlib.ExitStack() as running:

        def before_step(step: int, state: Any) -> None:
            if step in (first, stop):
                jax.block_until_ready(state)  # the steps in flight are done
                running.close()
            if step == first:
                running.enter_context(jax.profiler.trace(folder))

        yield before_step


class StateFactory:
    """Makes training states of a job on a mesh, or reads them from the newest checkpoint.

    Weights are random ones or those of the model that the job starts from.

    Attributes:
        shardings: A `TrainState` of the `NamedSharding` of each array.
    """

    def __init__(self, job: training_job.TrainingJob, mesh: Mesh):
        decoder = job.decoder
        self.optimizer = make_optimizer(job.training, decoder, job.steps, job.stage_starts)
        shapes = decoder.shapes()
        params = param_shardings(decoder.axes(), shapes, mesh)
        replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        moments = optimizer_shardings(self.optimizer, shapes, params, mesh)
        self.shardings = TrainState(replicated, params, moments)  # type: ignore[arg-type]
        self._decoder, self._seed, self._initial = decoder, job.selection.seed, job.initial

    def _make(self) -> TrainState:
        params = self._decoder.init(jax.random.key(self._seed))
        return TrainState(jnp.zeros((), jnp.int32), params, self.optimizer.init(params))

    def initial_state(self) -> TrainState:
        """Makes the state before the first step; each device makes only its own shards.

        Raises:
            UserError: if the weights to start from cannot be read.
        """
        if self._initial is None:
            return jax.jit(self._make, out_shardings=self.shardings)()
        params = initial_params(self._initial, self._decoder, self.shardings.params)
        state = jax.jit(self.optimizer.init, out_shardings=self.shardings.optimizer)(params)
        return TrainState(jax.device_put(np.int32(0), self.shardings.step), params, state)

    def restore_newest(self, checkpointer: Checkpointer) -> tuple[int, TrainState, int]:
        """Reads the newest state that can be read: its step, itself and the digest of the rows that
        led there; without one, the initial state."""
        like = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            jax.eval_shape(self._make),
            self.shardings,
        )
        found = checkpointer.restore_newest(like.params, like.optimizer)
        if found is None:
            return 0, self.initial_state(), 0
        step, params, optimizer, noted = found
        on_devices = jax.device_put(np.int32(step), self.shardings.step)
        consumed = digest.read_consumed_rows(noted)
        return step, TrainState(on_devices, params, optimizer), consumed


def global_batches(
    job: training_job.TrainingJob, mesh: Mesh, start_step: int
) -> Iterator[tuple[jax.Array, jax.Array]]:
    """Yields global batches on the mesh, from `start_step` on, and the digests of their rows.

    Every process makes the digests of the rows that it reads; the devices add them up, as they do
    with gradients, so that a row that several of them hold counts once and every process knows the
    sum.

    Yields:
        int32 [B, T + 1], and uint32 [16]: the sums by byte of the digests of the rows and their
        positions in the order (`curriculum/digest.py`). Padding rows count for nothing.
    """
    sharding = batch_sharding(mesh)
    shape = (job.training.batch_size, job.sequence_length + 1)
    offsets = local_rows(sharding, shape)
    join = functools.partial(jax.make_array_from_process_local_data, sharding)
    add = jax.jit(
        lambda digests: digests.sum(0), out_shardings=NamedSharding(mesh, PartitionSpec())
    )
    loader = make_loader(
        BatchSource(
            job.parts,
            job.selection,
            batch_size=job.training.batch_size,
            row_offsets=offsets,
            row_tokens=shape[1],
            padding_id=job.special_tokens.bos_id,
        ),
        start_step=start_step,
    )
    for step, rows in enumerate(loader, start_step):
        row_indices = step * shape[0] + offsets
        real = row_indices < len(job.selection)
        digests = np.zeros((len(rows), digest.BYTES), np.uint32)
        digests[real] = digest.ordered_row_digests(
            row_indices[real], digest.row_digests(rows[real])
        )
        yield join(rows, shape), add(join(digests, (shape[0], digest.BYTES)))


def train(job: training_job.TrainingJob) -> dict[str, Any]:
    """Trains to the last step, from the newest checkpoint if there is one.

    Returns:
        Steps, rows, tokens and parameters, for the completion marker.

    Raises:
        UserError: if the batch cannot be split over the mesh, or a checkpoint is not this run's.
    """
    mesh = make_mesh(job.parallel)
    training_job.check_batch(job, mesh)
    kept = training_job.kept_steps(job.selection.schedule, job.training, job.initial is not None)
    if processes.is_first():
        if job.initial is not None:
            keep_files(job.initial, job.decoder, job.folder)
        write_description(job.folder, job.decoder)
        write_trial_record(job.folder, training_job.trial_record(job, kept))
    saved = sorted({*kept, *training_job.tail_steps(job), *job.further_steps})
    checkpointer = Checkpointer(job.folder / "checkpoints", saved, job.fingerprint)
    with preemption.deferral(), contextlib.closing(checkpointer):
        return _train(job, mesh, saved, checkpointer)


class RollingSaves:
    """Decides which steps end with a rolling checkpoint: one every so many seconds, in steps.

    The steps are timed once, after the first, which compiles, and process 0 decides for all.
    """

    def __init__(self, seconds: float, start: int):
        self._seconds, self._start = seconds, start
        self._interval: int | None = None
        self._timer = 0.0

    def is_due(self, done: int) -> bool:
        """Whether to save after `done` steps; called after each."""
        timed = done - self._start - 1
        if timed == 0:
            self._timer = time.perf_counter()
        elif timed == MEASURED_STEPS:
            seconds = (time.perf_counter() - self._timer) / MEASURED_STEPS
            self._interval = processes.broadcast_from_first(
                max(1, round(self._seconds / max(seconds, 1e-9)))
            )
        return self._interval is not None and (done - self._start) % self._interval == 0


def compile_step(job: training_job.TrainingJob, mesh: Mesh, factory: StateFactory) -> Any:
    """Jits the update of a job: (state, rows) to (state, metrics); the state is donated."""

    def rate(step: jax.Array) -> jax.Array:
        return learning_rate(job.training.lr_schedule, step, job.steps, job.stage_starts)

    step = make_train_step(
        job.decoder, factory.optimizer, job.special_tokens, job.training, mesh, rate
    )
    return jax.jit(
        skip_bad_steps(step),
        in_shardings=(factory.shardings, batch_sharding(mesh)),
        out_shardings=(factory.shardings, factory.shardings.step),
        donate_argnums=0,
    )


def _train(
    job: training_job.TrainingJob, mesh: Mesh, kept: list[int], checkpointer: Checkpointer
) -> dict[str, Any]:
    factory = StateFactory(job, mesh)
    start, state, consumed = factory.restore_newest(checkpointer)
    if 0 in kept and checkpointer.latest() is None:
        checkpointer.save(0, state.params, state.optimizer, digest.consumed_record(0))
    train_step = compile_step(job, mesh, factory)
    rolling = RollingSaves(job.training.checkpoint_seconds, start)
    with (
        step_trace(job.folder / "profile", job.profile) as before_step,
        Recorder(job, mesh, start, consumed) as recorder,
    ):
        loader = global_batches(job, mesh, start)
        for step in range(start, job.steps):
            asked = time.perf_counter()
            rows, digests = next(loader)
            waited = time.perf_counter() - asked
            before_step(step, state)
            state, metrics = train_step(state, rows)
            preemption.defer()  # until here nothing was done that is not saved
            recorder.push(step, {**metrics, ROWS: digests}, waited)
            done = step + 1
            due = rolling.is_due(done)
            stop = preemption.stop_requested(done)
            if stop or recorder.bad.are_too_many() or done in kept or due:
                recorder.flush()
                noted = digest.consumed_record(recorder.consumed)
                checkpointer.save(done, state.params, state.optimizer, noted)
                recorder.restart_clock()
            if recorder.bad.are_too_many():
                raise recorder.bad.error()
            if stop:
                raise Preempted(f"{job.name} is saved at step {done}")
    return {
        "steps": job.steps,
        "rows": job.selection.schedule.rows,
        "tokens": job.steps * job.training.batch_size * job.sequence_length,
        "parameters": job.decoder.parameter_count(),
    }
