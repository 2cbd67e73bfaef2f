"""One program in a run directory: the second is refused by name, the dead do not hold it."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from frame_jax.errors import UserError
from frame_jax.main import main
from frame_jax.run import lock
from frame_jax.run.directory import RunDirectory
from frame_jax.run.lock import hold_lock
from tests.integration.small_run import write_config, write_corpus

REPOSITORY = Path(__file__).parents[2]
HOLD = """
import sys, time
from frame_jax.run.lock import hold_lock
from frame_jax.run.directory import RunDirectory
with hold_lock(RunDirectory(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(lock, "STALE_SECONDS", 0.5)


def test_a_second_program_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    command = [sys.executable, "-c", HOLD, str(directory.root)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        name = f"process {first.pid} on {os.uname().nodename}"
        with pytest.raises(UserError, match=f"in use by {name}; wait"), hold_lock(directory):
            pass
        first.kill()
        first.wait()
    assert lock.read_holder(directory.root / "lock") == name
    with hold_lock(directory):
        pass
    assert (directory.root / "lock").read_bytes() == b""


def test_the_command_line_refuses_with_exit_code_2(tmp_path: Path, capsys) -> None:
    write_corpus(tmp_path / "corpus.jsonl")
    with hold_lock(RunDirectory(tmp_path / "run")):
        assert main(["--config", str(write_config(tmp_path)), "--until", "tokenize"]) == 2
        assert "in use by process" in capsys.readouterr().err
        assert [path.name for path in (tmp_path / "run").iterdir()] == ["lock"]


def write_elsewhere(root: Path, number: int) -> None:
    """Changes the file as its holder does: it is never empty between."""
    file = os.open(root / "lock", os.O_RDWR | os.O_CREAT)
    os.pwrite(file, f"process 7 on another-host\n{number:012d}\n".encode(), 0)
    os.close(file)


def test_a_living_program_on_another_host_is_seen_without_a_shared_lock(tmp_path: Path) -> None:
    write_elsewhere(tmp_path, 1)
    beat = threading.Timer(0.2, write_elsewhere, (tmp_path, 2))
    beat.start()
    with (
        pytest.raises(UserError, match="in use by process 7 on another-host"),
        hold_lock(RunDirectory(tmp_path)),
    ):
        pass
    beat.join()


def test_a_program_on_another_host_that_ends_meanwhile_does_not_hold_the_run(
    tmp_path: Path,
) -> None:
    write_elsewhere(tmp_path, 1)
    end = threading.Timer(0.2, os.truncate, (tmp_path / "lock", 0))
    end.start()
    with hold_lock(RunDirectory(tmp_path)):
        assert lock.read_holder(tmp_path / "lock") == lock.describe_process()
    end.join()


def test_a_dead_program_on_another_host_does_not_hold_the_run(tmp_path: Path, capsys) -> None:
    write_elsewhere(tmp_path, 1)
    with hold_lock(RunDirectory(tmp_path)):
        pass
    assert "waiting to see whether it lives" in capsys.readouterr().err


def test_the_holder_is_seen_to_live(tmp_path: Path) -> None:
    with hold_lock(RunDirectory(tmp_path)):
        assert lock.is_beating(tmp_path / "lock")
