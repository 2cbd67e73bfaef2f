"""What processes do together under a version of JAX that hides its coordination client."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = """
import sys
import time

import jax
from frame_jax.config.parallel import ParallelConfig
from frame_jax.parallel import processes

port, index = map(int, sys.argv[1:])
processes.CLIENT_METHODS = ("a method of another version",)
processes.LEAVE_SECONDS = 2
settings = {"coordinator_address": f"localhost:{port}", "num_processes": 2, "process_id": index}
processes.start(ParallelConfig(distributed=True, **settings))
print(processes.broadcast_from_first(2**47 + index))
print(processes.failing_processes(index == 0, f"word of {index}"), processes.all_agree(True))
time.sleep(index)
print(processes.all_agree(False))
processes.barrier("the end")
processes.leave_without_others(3)
"""


@pytest.mark.processes
def test_processes_agree_and_leave_without_jaxs_client() -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, port, str(index)],
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    outputs = [worker.communicate(timeout=300) for worker in workers]
    expected = f"{2**47}\n{{1: 'word of 1'}} True\nFalse\n"
    for worker, (stdout, stderr) in zip(workers, outputs, strict=True):
        assert worker.returncode == 3 and stdout.endswith(expected), stdout + stderr
    notes = [stderr.count("another client of its coordination service") for _, stderr in outputs]
    assert notes == [1, 0]
