"""Makes the training state on the mesh, or reads it from the newest checkpoint."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from frame_jax.parallel.sharding import param_shardings
from frame_jax.training.checkpointer import Checkpointer
from frame_jax.training.optimizer import make_optimizer, optimizer_shardings
from frame_jax.training.train_step import TrainState
from frame_jax.training.training_job import TrainingJob


class StateFactory:
    """Makes training states of a job.

    Attributes:
        optimizer: The update rule.
        shardings: A `TrainState` of the `NamedSharding` of each array.
    """

    def __init__(self, job: TrainingJob, mesh: Mesh):
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

    def initial_state(self) -> TrainState:
        """Makes the state before the first step; each device makes only its own shards."""
        return jax.jit(self._make, out_shardings=self.shardings)()

    def restore_newest(self, checkpointer: Checkpointer) -> tuple[int, TrainState]:
        """Reads the newest state that can be read, and its step; without one, the initial state."""
        like = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            jax.eval_shape(self._make),
            self.shardings,
        )
        found = checkpointer.restore_newest(like.params, like.optimizer)
        if found is None:
            return 0, self.initial_state()
        step, params, optimizer = found
        on_devices = jax.device_put(np.int32(step), self.shardings.step)
        return step, TrainState(on_devices, params, optimizer)
