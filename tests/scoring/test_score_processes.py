"""The score phase on several processes: killed, started again with fewer, the same bytes."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from frame_jax.run.directory import list_parts
from frame_jax.scoring import score

FOLDER = Path(__file__).parent
PARTS = 7


def start(run: Path, count: int, devices: int, dies: int | None = None) -> list:
    """Starts `count` processes on one run; number `dies` kills itself after its first part."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": str(FOLDER.parents[1])}
    worker = [sys.executable, str(FOLDER / "score_worker.py"), str(run), str(port), str(count)]
    return [
        subprocess.Popen(
            [*worker, str(i), str(devices), *(["1"] if i == dies else [])],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(count)
    ]


def contents(directory) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in list_parts(directory.scores, ".parquet")}


@pytest.mark.processes
def test_three_processes_one_of_them_killed_then_two_write_what_one_writes(
    make_run, tmp_path: Path
) -> None:
    config, alone = make_run("alone", parts=PARTS)
    score.score_corpus(config, alone)
    _, run = make_run("together", parts=PARTS)

    workers = start(run.root, count=3, devices=1, dies=1)
    workers[1].wait(timeout=300)
    time.sleep(1)  # a kill of the pod comes to the others when it comes
    for worker in workers:
        worker.kill()
        worker.communicate()
    before = contents(run)
    # Process 1 has parts 1 and 4, of which it wrote the first; the others may have written theirs.
    assert "part-00001-of-00007.parquet" in before and "part-00004-of-00007.parquet" not in before
    written = {path.name: path.stat().st_mtime_ns for path in run.scores.iterdir()}

    for worker in start(run.root, count=2, devices=2):
        output = worker.communicate(timeout=300)[0]
        assert worker.returncode == 0, output
    assert contents(run) == contents(alone)
    assert len(contents(run)) == PARTS
    for name in before:
        assert (run.scores / name).stat().st_mtime_ns == written[name]
