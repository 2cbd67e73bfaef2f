"""One of several processes that train the tests' small model: `worker.py FOLDER PORT N I DEVICES`.

With a sixth argument this process kills itself, at `step` 3 of training or at its `exit_program`,
before the others' barrier. The variable INITIAL holds settings of a model to start from, as JSON,
if any.
"""

import dataclasses
import json
import os
import signal
import sys
import traceback
from pathlib import Path

import jax

from frame_jax.config.parallel import ParallelConfig
from frame_jax.config.training import InitialConfig
from frame_jax.parallel import processes
from frame_jax.run import preemption
from frame_jax.run.program_exit import exit_program
from frame_jax.training.trainer import train
from tests.training.rows import make_job


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main(folder: str, port: str, count: str, index: str, devices: str, dies: str = "") -> None:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", int(devices))
    processes.HEARTBEAT_SECONDS = 10
    parallel = ParallelConfig()
    if int(count) > 1:
        parallel = ParallelConfig(
            distributed=True,
            coordinator_address=f"localhost:{port}",
            num_processes=int(count),
            process_id=int(index),
        )
    processes.start(parallel)
    if dies == "step":
        preemption.stop_requested = lambda step: step == 3 and die()
    job = make_job(Path(folder), parallel=parallel)
    if initial := os.environ.get("INITIAL"):
        job = dataclasses.replace(job, initial=InitialConfig(**json.loads(initial)))
    train(job)
    assert processes.broadcast_from_first(int(index)) == 0
    assert not processes.all_agree(int(index) == 0) and processes.all_agree(True)
    if dies == "end":
        die()
    processes.barrier("the end")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Exception:
        traceback.print_exc()
        exit_program(1)
