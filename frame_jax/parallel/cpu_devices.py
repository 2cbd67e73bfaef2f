"""Makes a JAX device of every core of a CPU; this must happen before JAX starts its backends.

XLA's threads inside an operation leave cores idle between operations and at the end of each. One
device a core, each with one thread and its own part of the batch, keeps all cores at work
(docs/performance.md has the figures).
"""

import math
import os

import jax

from frame_jax.config.run import RunConfig
from frame_jax.errors import UserError
from frame_jax.parallel.host import available_cores, memory_bytes
from frame_jax.parallel.sharding import mesh_shape

AUTO_MOST = 8  # devices; more were not measured
AUTO_MEMORY = 0.25  # of this machine's, for their replicas
WAITING_THREADS = 4  # of XLA's, for each device
# Whoever sets one of these has chosen, and nothing is changed.
VARIABLE = "JAX_NUM_CPU_DEVICES"
FLAGS = ("xla_force_host_platform_device_count", "xla_cpu_multi_thread_eigen")


def use_cpu_devices(config: RunConfig, replica_bytes: int) -> list[str]:
    """Sets up this process's CPU devices by `parallel.cpu_devices`; returns what to tell the user.

    Accelerators do not notice. A device needs `replica_bytes` of memory for its copies of models.
    """
    mesh, references = config.parallel, (config.reference.weak, config.reference.strong)
    count, cores = mesh.cpu_devices, available_cores()
    if count == "auto":
        room = AUTO_MEMORY * memory_bytes() // max(replica_bytes, 1)
        count = automatic_count(config, int(min(cores, AUTO_MOST, room)))
    experts = any(part.model.has("experts") for part in (config.pretrain, *references))
    split = experts or max(mesh.fsdp, mesh.expert, mesh.tensor) > 1
    if not set_cpu_devices(count, many_collectives=split) or jax.default_backend() != "cpu":
        return []
    return [f"cpu_devices: {mesh.cpu_devices} is {count} on this CPU ({cores} cores)"]


def set_cpu_devices(count: int, *, many_collectives: bool) -> bool:
    """Makes JAX start with `count` CPU devices; returns whether that changes anything.

    With `many_collectives` devices may exchange several arrays at one time. One that waits for the
    others holds a thread of XLA's, of which there are as many as cores: more are started, so that
    some are left to end what is under way. They cost a tenth of the speed.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if count == 1 or VARIABLE in os.environ or any(flag in flags for flag in FLAGS):
        return False
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:  # JAX has started, as where several runs share a program
        return False
    if count >= available_cores():
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()
    if many_collectives:
        os.environ.setdefault("NPROC", str(WAITING_THREADS * count))
    return True


def automatic_count(config: RunConfig, most: int) -> int:
    """The largest number of devices of a process, up to `most`, that the run can be split over.

    Every batch must divide over the mesh, and the devices over copies of the scored models; 1 where
    no number does that, or where the environment alone knows the number of processes.
    """
    mesh = config.parallel
    if mesh.distributed and mesh.num_processes is None:
        return 1
    trainings = [getattr(config.reference, name).training for name in config.reference.trained]

    def fits(count: int) -> bool:
        try:
            *axes, _ = mesh_shape(mesh, count * (mesh.num_processes or 1))
        except UserError:
            return False
        parts = math.prod(axes)  # of a batch
        return count % config.scoring.fsdp == 0 and all(
            training.batch_size % (parts * training.gradient_accumulation_steps) == 0
            for training in (*trainings, config.pretrain.training)
        )

    return max(filter(fits, range(1, most + 1)), default=1)
