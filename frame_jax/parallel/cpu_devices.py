"""Makes a JAX device of every core of a CPU; this must happen before JAX starts its backends.

Why, and what it gains: docs/performance.md, "A device for every core".
"""

import math
import os
import re

import jax

from frame_jax.config.run import RunConfig
from frame_jax.errors import UserError
from frame_jax.parallel.host import available_cores, memory_bytes
from frame_jax.parallel.sharding import mesh_shape

AUTO_MOST = 8  # devices; more were not measured
AUTO_MEMORY = 0.25  # of this machine's, for their replicas
THREADS = 2  # of XLA's that a device can hold: for a program that runs and one that cannot start
WAITING_THREADS = 4  # where a program's loops, too, may each wait for other devices
# Whoever sets one of these, or JAX_NUM_CPU_DEVICES, has chosen, and the devices stay.
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

    Whoever chose them, XLA gets enough threads: a device holds one while it waits for others in a
    program, and one more once 32 programs wait to run on it; with fewer, all wait for ever. What is
    started here with one sum a step is never so far ahead (`training.recorder`), and needs one: the
    second would cost a tenth of the speed.

    Raises:
        UserError: if JAX has started with several devices and too few threads.
    """
    flags, cores = os.environ.get("XLA_FLAGS", ""), available_cores()
    asked, forced = jax.config.values["jax_num_cpu_devices"], re.search(rf"{FLAGS[0]}=(\d+)", flags)
    if chosen := asked >= 0 or any(flag in flags for flag in FLAGS):
        count = asked if asked >= 0 else int(forced[1]) if forced else 1
    given = (os.environ.get(name, "") for name in ("PJRT_NPROC", "NPROC"))  # XLA takes the first
    threads = int(next(filter(str.isdigit, given), cores))
    try:
        for number in (count + 1, count):  # one of them changes it
            jax.config.update("jax_num_cpu_devices", number)
    except RuntimeError:  # JAX has started, as where several runs share a program
        count = jax.local_device_count() if jax.default_backend() == "cpu" else 1
        needed = count * (THREADS if many_collectives else 1)
        if count > 1 and threads < needed:
            raise UserError(
                f"JAX has started {count} CPU devices with {threads} threads: they could wait for "
                f"each other for ever. Take fewer, or set PJRT_NPROC={needed} before"
            ) from None
        return False
    if count == 1:
        return False
    each = WAITING_THREADS if many_collectives else THREADS if chosen else 1
    os.environ["PJRT_NPROC"] = str(max(threads, each * count))
    if not chosen and count >= cores:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()
    return not chosen


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
