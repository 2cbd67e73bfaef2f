"""Parts by workers: the same files whoever makes them, errors, deaths and stops."""

import functools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from frame_jax.config.workers import WorkersConfig
from frame_jax.errors import UserError
from frame_jax.parallel import host
from frame_jax.run import map_parts
from tests.programs import REPOSITORY
from tests.run import part_makers

LARGE = map_parts.WORTH_BYTES
NAMES = [f"part-{number}" for number in range(5)]


def run(folder: Path, function: map_parts.Function, count: int | None, unit: str = "parts") -> None:
    folder.mkdir(exist_ok=True)
    map_parts.map_parts(
        function,
        {NAMES[i]: folder / NAMES[i] for i in map_parts.missing(folder / name for name in NAMES)},
        WorkersConfig(count=count),
        name="test",
        unit=unit,
        work_bytes=LARGE,
    )


def contents(folder: Path) -> dict[str, str]:
    return {name: (folder / name).read_text() for name in NAMES if (folder / name).exists()}


def makers(folder: Path) -> set[str]:
    """The processes that began parts."""
    return {line for log in folder.glob("*.log") for line in log.read_text().split()}


@pytest.mark.processes
def test_workers_make_what_one_process_makes(tmp_path: Path) -> None:
    for count in (1, 2, 3):
        run(tmp_path / str(count), part_makers.make, count)
    found = [contents(tmp_path / str(count)) for count in (1, 2, 3)]
    assert list(found[0]) == NAMES and found[0] == found[1] == found[2]
    assert makers(tmp_path / "1") == {str(os.getpid())}
    assert str(os.getpid()) not in makers(tmp_path / "3")


@pytest.mark.processes
def test_what_is_made_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "part-1").write_text("from before")
    run(tmp_path, part_makers.make, 2)
    assert contents(tmp_path)["part-1"] == "from before"
    assert not (tmp_path / "part-1.log").exists() and len(contents(tmp_path)) == 5


@pytest.mark.processes
@pytest.mark.parametrize("count", [1, 2])
def test_progress_is_that_of_all_workers(
    count: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "parts", part_makers.make, count)
    assert "test: 100% 5 parts" in capsys.readouterr().err
    run(tmp_path / "pieces", part_makers.make, count, unit="pieces")
    assert "test: 15 pieces" in capsys.readouterr().err


@pytest.mark.processes
def test_the_first_error_of_a_worker_is_the_message(tmp_path: Path) -> None:
    for count in (1, 2):
        with pytest.raises(UserError, match=r"/data/x.jsonl line 7: is broken; mend it"):
            run(tmp_path / str(count), part_makers.make_but_refuse, count)
    assert "part-4" not in contents(tmp_path / "1")


@pytest.mark.processes
def test_an_error_of_the_program_keeps_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"part_makers.py(?s:.*)ZeroDivisionError: of a program"):
        run(tmp_path, part_makers.make_but_fail, 2)


@pytest.mark.processes
def test_a_part_whose_worker_dies_is_made_by_another(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(tmp_path, part_makers.die_once, 2)
    assert list(contents(tmp_path)) == NAMES
    assert re.search(r"test: the worker that made part-2 died \(-9\)", caplog.text)


@pytest.mark.processes
def test_a_part_that_kills_two_workers_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"made part-2 died \(-9\), as one before.*workers.count"):
        run(tmp_path, part_makers.die_always, 2)


@pytest.mark.processes
def test_a_worker_is_light_and_knows_its_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, part_makers.tell, 2)
    assert set(contents(tmp_path).values()) == {"[] 2"}
    whole = host.memory_bytes()
    monkeypatch.setenv(host.SHARING, "2")
    assert (host.available_cores(), host.memory_bytes()) == (1, whole // 2)


def test_a_container_has_the_memory_that_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(host, "MEMORY_LIMIT", limit)
    limit.write_text("max\n")
    assert host.memory_bytes() > 1 << 20
    limit.write_text(f"{1 << 20}\n")
    assert host.memory_bytes() == 1 << 20


def test_workers_are_as_many_as_are_of_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_parts, "available_cores", lambda: 208)
    monkeypatch.setattr(map_parts, "memory_bytes", lambda: 100 * map_parts.WORKER_BYTES)
    count = functools.partial(map_parts.worker_count, WorkersConfig())
    assert count(4096, LARGE) == 100 and count(7, LARGE) == 7 and count(4096, LARGE - 1) == 1
    assert count(0, LARGE) == 1
    assert map_parts.worker_count(WorkersConfig(count=150), 4096, 1) == 150


PROGRAM = """
import sys
from pathlib import Path
from frame_jax.config.workers import WorkersConfig
from frame_jax.run import preemption
from frame_jax.run.map_parts import map_parts, missing
from tests.run import part_makers

preemption.install_handler()
paths = [Path(sys.argv[1], f"part-{number}") for number in range(4)]
map_parts(
    getattr(part_makers, sys.argv[2]), {paths[i].name: paths[i] for i in missing(paths)},
    WorkersConfig(count=2), name="test", work_bytes=1,
)
"""


def start(folder: Path, function: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder), function],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )


def alive(pids: set[str]) -> list[str]:
    return [pid for pid in pids if Path(f"/proc/{pid}/stat").exists()]


@pytest.mark.processes
def test_stop_signals_are_for_the_program_and_not_for_its_workers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(tmp_path, part_makers.make_despite_signals, 2)
    assert list(contents(tmp_path)) == NAMES and "died" not in caplog.text


@pytest.mark.processes
def test_workers_end_with_their_program_in_the_middle_of_a_part(tmp_path: Path) -> None:
    program = start(tmp_path, "begin_and_sleep")
    wait_for(lambda: len(makers(tmp_path)) == 2)
    begun = makers(tmp_path)
    assert len(alive(begun)) == 2  # in the middle of their parts, for a minute
    program.kill()
    wait_for(lambda: not alive(begun), 10)
    assert alive(begun) == []
    program.communicate()
    assert program.returncode == -signal.SIGKILL


@pytest.mark.processes
@pytest.mark.parametrize(
    ("signals", "code"), [([signal.SIGTERM], 75), ([signal.SIGINT], 130), ([signal.SIGKILL], -9)]
)
def test_a_stop_ends_workers_and_leaves_whole_parts(
    tmp_path: Path, signals: list[signal.Signals], code: int
) -> None:
    program = start(tmp_path, "make_slowly")
    wait_for(lambda: (tmp_path / "part-0").exists() and len(makers(tmp_path)) == 2)
    for number in signals:
        # As a terminal and Slurm have it: to every process of the group.
        send = os.killpg if number == signal.SIGINT else os.kill
        send(program.pid, number)
    program.communicate(timeout=20)
    assert program.returncode == code
    wait_for(lambda: not alive(makers(tmp_path)))
    for name, text in contents(tmp_path).items():
        assert text == "".join(f"{name} {piece}\n" for piece in range(3))
    assert len(contents(tmp_path)) < 4


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.02)
