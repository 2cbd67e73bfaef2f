"""Several processes on loopback: the same curve, a run that changes size, a process that dies."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from frame_jax import checkpoints
from frame_jax.config.parallel import ParallelConfig
from frame_jax.parallel import processes
from frame_jax.training.trainer import train
from frame_jax.training.training_job import TrainingJob
from tests.training.rows import make_job, write_rows
from tests.training.test_trainer import metrics

REPOSITORY = Path(__file__).parents[2]


def start(
    root: Path, count: int, devices: int = 1, dies: str = "", initial: dict | None = None
) -> list:
    """Starts `count` workers that train in `root`, each with `devices` devices.

    The last one kills itself at `dies`; `initial` has settings of what they start from.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "PYTHONPATH": str(REPOSITORY),
        "INITIAL": json.dumps(initial) if initial else "",
    }
    worker = [sys.executable, "-m", "tests.robustness.worker", str(root), str(port), str(count)]
    return [
        subprocess.Popen(
            [*worker, str(i), str(devices), *([dies] if dies and i == count - 1 else [])],
            cwd=REPOSITORY,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(count)
    ]


def forget_after(folder: Path, step: int) -> None:
    for saved in checkpoints.saved_steps(folder):
        if saved > step:
            shutil.rmtree(folder / str(saved))


@pytest.mark.processes
def test_a_run_of_two_processes_goes_on_with_one_and_with_four_and_another_mesh(
    trained: TrainingJob, tmp_path: Path, use_devices
) -> None:
    write_rows(tmp_path)
    run = make_job(tmp_path)
    finish(start(tmp_path, count=2))
    forget_after(run.folder / "checkpoints", 3)
    halfway = tmp_path / "halfway"
    shutil.copytree(run.folder, halfway)

    use_devices(4)
    train(make_job(tmp_path, parallel=ParallelConfig(fsdp=2, tensor=2)))
    assert_same_curve(trained, run)

    shutil.rmtree(run.folder)
    halfway.rename(run.folder)
    finish(start(tmp_path, count=4))
    assert_same_curve(trained, run)


def finish(workers: list) -> None:
    for worker in workers:
        output = worker.communicate(timeout=300)[0]
        assert worker.returncode == 0, output


def assert_same_curve(one: TrainingJob, other: TrainingJob) -> None:
    found = metrics(other)
    assert [record["step"] for record in found] == list(range(6))
    for left, right in zip(metrics(one), found, strict=True):
        assert left["loss"] == pytest.approx(right["loss"], rel=2e-5)
        assert left["order_digest"] == right["order_digest"]


@pytest.mark.processes
@pytest.mark.parametrize("dies", ["step", "end"])
def test_when_a_process_dies_the_others_end_and_name_it(dies: str, tmp_path: Path) -> None:
    write_rows(tmp_path)
    workers = start(tmp_path, count=2, dies=dies)
    assert workers[1].wait(timeout=300) == -signal.SIGKILL
    began = time.monotonic()
    output = workers[0].communicate(timeout=processes.HEARTBEAT_SECONDS + 60)[0]
    assert time.monotonic() - began < processes.HEARTBEAT_SECONDS + 30
    # Either the collective fails first, or the coordination service ends the process.
    assert workers[0].returncode in (1, -signal.SIGABRT)
    assert re.search(r"\b(process|task)\W*1\b", output, re.IGNORECASE), output


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Barrier failed: Task 3 heartbeat timeout.", "process 3 has died or did not come"),
        ("Barrier timed out.\nSome timed out task names:\n1\n2\n", "process 1, 2 has died"),
        ("UNAVAILABLE: Either the leader task was preempted", "process 0 has died"),
        ("something else", "something else"),
    ],
)
def test_the_coordination_services_words_name_the_process(
    message: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "process_index", lambda: 9)
    assert processes.missing_processes(RuntimeError(message)).startswith(expected)
