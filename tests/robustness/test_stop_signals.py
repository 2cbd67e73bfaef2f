"""Stop signals at bad moments: the exit code, what is kept, and what a run comes to in the end."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from frame_jax.checkpoints import explain_restore_failure, saved_steps
from frame_jax.main import main
from frame_jax.run import preemption
from tests.programs import REPOSITORY, side_by_side

TOOL = runpy.run_path(str(REPOSITORY / "tools" / "crash_test.py"))

# SIGTERMs for each start of a run, in an order in which it comes to them, at points where an
# exception raised by a signal does harm. `tools/crash_test.py --signals` goes through all others.
STOPS = [
    [
        ("frame_jax.training.trainer:StateFactory.initial_state", 1, 0.1, "SIGTERM")
    ],  # while it compiles
    [
        ("frame_jax.training.recorder:Recorder.push", 4, 0.0, "SIGTERM"),
        (
            "frame_jax.training.checkpointer:Checkpointer.close",
            1,
            0.0,
            "SIGTERM",
        ),  # waits for the save
        ("frame_jax.training.checkpointer:Checkpointer.close", 1, 0.02, "SIGTERM"),
    ],
    [("frame_jax.checkpoints:load_arrays", 1, 0.01, "SIGTERM")],  # of that checkpoint
    [("frame_jax.checkpoints:load_mean", 1, 0.3, "SIGTERM")],
    [("frame_jax.report.report:write_report", 1, 0.05, "SIGTERM")],
]


def environment(cache: Path) -> dict[str, str]:
    return os.environ | {
        "PYTHONPATH": str(REPOSITORY),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
        # Set, so that the program does not start itself anew, without the worker's changes.
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    }


def start(config: Path, signals: list, cache: Path) -> tuple[int, str]:
    """Exit code and output of the program, to which `signals` are sent."""
    worker = [sys.executable, "-m", "tests.robustness.stop_worker", json.dumps(signals)]
    done = subprocess.run(
        [*worker, "--config", str(config)],
        cwd=REPOSITORY,
        env=environment(cache),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    return done.returncode, done.stdout


@pytest.mark.processes
def test_a_run_that_is_stopped_again_and_again_comes_to_the_same(
    tmp_path: Path,
) -> None:
    TOOL["write_corpus"](tmp_path / "corpus.jsonl")
    run, saved = tmp_path / "stopped", []
    config = TOOL["write_config"](tmp_path / "run.yaml", run, tmp_path / "corpus.jsonl")
    for signals in STOPS:
        code, output = start(config, signals, tmp_path / "cache")
        assert code == preemption.STOPPED and "stopped by SIGTERM" in output, (signals, output)
        assert "Traceback" not in output and "damaged" not in output, (signals, output)
        assert not list(run.rglob("damaged")), signals
        assert (run / "lock").read_text() == ""  # so that no other host waits for this one
        saved.append(saved_steps(run / "reference/weak/checkpoints"))
    assert max(saved[1]) >= 4 and saved[2] == saved[1]
    code, output = start(config, [], tmp_path / "cache")
    assert code == 0, output

    whole = tmp_path / "undisturbed"
    config = TOOL["write_config"](tmp_path / "run.yaml", whole, tmp_path / "corpus.jsonl")
    assert main(["--config", str(config)]) == 0
    assert TOOL["mismatches"](whole, run) == []


TRAINING = """
import os, signal, sys, time
from frame_jax.run import preemption
from frame_jax.run.program_exit import exit_program

preemption.install_handler()
try:
    with preemption.deferral():
        preemption.defer()
        for name in sys.argv[2:]:
            os.kill(os.getpid(), signal.Signals[name])
        while not preemption.stop_requested(1):
            time.sleep(0.01)
        time.sleep(float(sys.argv[1]))
        raise preemption.Preempted("all is saved")
except preemption.Preempted as state:
    exit_program(preemption.stopped(state))
"""

LONG_CALL = """
import hashlib, os, signal, threading
from frame_jax.run import preemption

preemption.install_handler()
threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
"""

BEFORE_IMPORTS = """
import os, signal, sys
from frame_jax.run import preemption

preemption.hold()
os.kill(os.getpid(), signal.SIGTERM)
os.execv(sys.executable, [sys.executable, "-m", "frame_jax.main", "--help"])
"""


def end_of(script: str, *arguments: str) -> tuple[int, str]:
    """Exit code and output of a Python script."""
    return side_by_side(["-c", script, *arguments], seconds=120)[0]


@pytest.mark.processes
@pytest.mark.parametrize(
    ("signals", "seconds", "code"),
    [(["SIGTERM"], 0, 75), (["SIGTERM", "SIGTERM"], 0.5, 75), (["SIGINT"], 0, 130)],
)
def test_training_ends_its_step_whatever_comes_meanwhile(
    signals: list[str], seconds: float, code: int
) -> None:
    found, output = end_of(TRAINING, str(seconds), *signals)
    assert found == code and output.count(f"stopped by {signals[0]}: all is saved") == 1, output


@pytest.mark.processes
def test_a_second_ctrl_c_waits_for_nothing() -> None:
    found, output = end_of(TRAINING, "3600", "SIGINT", "SIGINT")
    assert found == 130 and "saved" not in output.replace("without saving", ""), output


@pytest.mark.processes
@pytest.mark.parametrize("script", [LONG_CALL, BEFORE_IMPORTS])
def test_a_stop_waits_neither_for_a_library_nor_for_imports(script: str) -> None:
    code, output = end_of(script)
    assert code == preemption.STOPPED and "stopped by SIGTERM" in output, output


def test_an_interruption_that_orbax_swallows_is_no_damage() -> None:
    try:
        try:
            raise KeyboardInterrupt
        except BaseException as error:
            raise ValueError("incompatible handler") from error
    except ValueError as error:
        with pytest.raises(KeyboardInterrupt):
            explain_restore_failure(None, None, error)
