"""One of several processes of the score phase: `score_worker.py RUN PORT N I DEVICES [PARTS]`.

With PARTS this process kills itself when it has written that many parts.
"""

import itertools
import os
import signal
import sys
from pathlib import Path

import jax

from frame_jax.config.parallel import ParallelConfig
from frame_jax.parallel import processes
from frame_jax.run.directory import RunDirectory
from frame_jax.scoring import score, score_parts
from tests.scoring.scoring_helpers import run_config


def die_after(parts: int) -> None:
    written, write = itertools.count(1), score_parts.write_scores

    def write_and_die(*arguments) -> None:
        write(*arguments)
        if next(written) == parts:
            os.kill(os.getpid(), signal.SIGKILL)

    score_parts.write_scores = write_and_die


def main(run: str, port: str, count: str, index: str, devices: str, *parts: str) -> None:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", int(devices))
    parallel = ParallelConfig()
    if int(count) > 1:
        parallel = ParallelConfig(
            distributed=True,
            coordinator_address=f"localhost:{port}",
            num_processes=int(count),
            process_id=int(index),
        )
    processes.start(parallel)
    if parts:
        die_after(int(parts[0]))
    score.score_corpus(run_config(Path(run)), RunDirectory(run))


if __name__ == "__main__":
    main(*sys.argv[1:])
