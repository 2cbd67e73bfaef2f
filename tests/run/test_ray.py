"""Parts by tasks of Ray: the same files as by local workers, and what happens to lost ones."""

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast
from unittest.mock import ANY

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from frame_jax.config.workers import WorkersConfig
from frame_jax.errors import UserError
from frame_jax.run import map_parts
from tests.integration.small_run import DOCUMENTS, settings, write_config, write_corpus
from tests.programs import REPOSITORY, side_by_side
from tests.run import part_makers
from tests.run.test_map_parts import NAMES, contents, makers, wait_for

WHOLE = {name: "".join(f"{name} {piece}\n" for piece in range(3)) for name in NAMES}


def test_ray_that_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"ray is not installed here: pip install .frame-jax\[ray"):
        map_parts.map_parts(
            part_makers.make,
            {"part-0": tmp_path / "part-0"},
            WorkersConfig(engine="ray"),
            name="test",
            work_bytes=1,
        )


# A head that works on nothing and two nodes; one of them is killed where a line is read.
NODES = """
import os, sys
from ray.cluster_utils import Cluster

os.chdir("/")  # paths are relative to another folder
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
print(cluster.address, flush=True)
if sys.stdin.readline():
    cluster.remove_node(nodes[0], allow_graceful=False)
    print("killed", flush=True)
    sys.stdin.readline()
cluster.shutdown()
"""

# FOLDER FUNCTION ADDRESS: parts by a function of part_makers, as `main` would have them made.
PROGRAM = """
import os, signal, sys, time
from pathlib import Path

from frame_jax.run import preemption

preemption.install_handler()

from frame_jax.config.workers import WorkersConfig
from frame_jax.run.map_parts import map_parts
from frame_jax.run.program_exit import report_error, run_main
from tests.run import part_makers

def tell_paths(part, advance):
    part_makers.tell(part, advance)
    with part.open("a") as file:
        print([path for path in sys.path if "thirdparty" in path], file=file)

folder, address = Path(os.path.relpath(sys.argv[1])), sys.argv[3]
function = getattr(part_makers, sys.argv[2], tell_paths)

def main():
    try:
        map_parts(
            function,
            {f"part-{n}": path for n in range(5) if not (path := folder / f"part-{n}").exists()},
            WorkersConfig("ray", ray_address=address or None),
            name="test", unit="pieces", work_bytes=1,
        )
    except Exception as error:
        return report_error(error)
    assert not [path for path in sys.path if "thirdparty" in path]
    signal.raise_signal(signal.SIGTERM)  # later, as when a model is trained
    time.sleep(30)
    return 0

run_main(main)
"""

# In programs of their own: Ray changes the process that imports it.
ENVIRONMENT = os.environ | {"PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"}


def with_ray(test: Callable[..., None]) -> Callable[..., None]:
    for mark in (pytest.mark.ray, pytest.mark.slow, pytest.mark.processes):
        test = mark(test)
    missing = importlib.util.find_spec("ray") is None
    return pytest.mark.skipif(missing, reason="Ray is not installed")(test)


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=REPOSITORY,
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def nodes() -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The address of a cluster of two nodes, and the program to tell of a kill."""
    program = start(NODES)
    try:
        address = cast(IO[str], program.stdout).readline().strip()
        assert address, program.communicate()[1]
        yield address, program
    finally:
        program.communicate(timeout=60)


def read(path: Path) -> Any:
    """The bytes of a file, or the lines of the one table that has them in no particular order."""
    if path.name == "assignment.parquet":
        return pq.read_table(path).sort_by("doc_id").to_pylist()
    return path.read_bytes()


@with_ray
def test_no_engine_and_no_number_of_workers_changes_a_byte(
    tmp_path: Path, nodes: tuple[str, subprocess.Popen[str]]
) -> None:
    write_corpus(tmp_path / "corpus.jsonl")
    given = settings(tmp_path)
    given["corpus"]["reference_fraction"] = 0.0
    given["scoring"]["table"] = {"path": str(tmp_path / "theirs.parquet"), "ppl": "a", "pd": "b"}
    ids = [f"{domain}-{index}" for domain in ("prose", "code") for index in range(DOCUMENTS)]
    a, b = np.random.default_rng(0).random((2, len(ids)))
    pq.write_table(pa.table({"doc_id": ids, "a": a, "b": b}), tmp_path / "theirs.parquet")
    config = str(write_config(tmp_path, **given))
    found = {}
    for name, options in {
        "one": ["--workers.count", "1"],
        "two": ["--workers.count", "2"],
        "ray": ["--workers.engine", "ray", "--workers.ray_address", nodes[0]],
    }.items():
        root = tmp_path / name
        command = ["-m", "frame_jax.main", "--config", config, "--until", "partition"]
        ((code, output),) = side_by_side([*command, "--run_directory", str(root), *options])
        assert code == 0 and output.count("\n") < 40, output
        found[name] = {
            str(path.relative_to(root)): read(path)
            for folder in ("tokens", "quadrants")
            for path in sorted((root / folder).rglob("*"))
            if path.is_file()
        }
    assert sum(name.endswith(".arrayrecord") for name in found["one"]) >= 3 + 4 * 2
    for name in ("two", "ray"):
        assert list(found[name]) == list(found["one"])
        assert [n for n, content in found[name].items() if content != found["one"][n]] == []


@with_ray
@pytest.mark.parametrize(
    ("function", "address", "message"),
    [
        ("make_but_refuse", None, "error: /data/x.jsonl line 7: is broken; mend it"),
        ("die_always", None, "error: test: Ray could not have part-2 made, in up to 4 attempts: "),
        ("make", "nowhere", "error: workers: ray_address nowhere, ray_resources {'CPU': 1.0}: "),
    ],
)
def test_what_ends_the_work_is_the_one_message(
    tmp_path: Path,
    nodes: tuple[str, subprocess.Popen[str]],
    function: str,
    address: str | None,
    message: str,
) -> None:
    program = start(PROGRAM, tmp_path, function, address or nodes[0])
    _, errors = program.communicate(timeout=120)
    assert program.returncode == 2
    assert [line for line in errors.splitlines() if not line.startswith("test: ")] == [ANY]
    assert errors.splitlines()[-1].startswith(message)
    assert "part-2" not in contents(tmp_path)


@with_ray
def test_a_task_is_as_light_as_a_worker(
    tmp_path: Path, nodes: tuple[str, subprocess.Popen[str]]
) -> None:
    program = start(PROGRAM, tmp_path, "tell_paths", nodes[0])
    _, errors = program.communicate(timeout=120)
    assert program.returncode == 75, errors
    assert contents(tmp_path) == dict.fromkeys(NAMES, f"[] {os.cpu_count()}[]\n")


@with_ray
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_ends_what_was_started_and_leaves_whole_parts(
    tmp_path: Path, nodes: tuple[str, subprocess.Popen[str]], number: signal.Signals
) -> None:
    program = start(PROGRAM, tmp_path, "make_slowly", "")  # a cluster of this machine, its own
    wait_for(lambda: bool(contents(tmp_path)) and len(makers(tmp_path)) == 2, 120)
    program.send_signal(number)
    output, errors = program.communicate(timeout=20)
    assert program.returncode == {signal.SIGTERM: 75, signal.SIGINT: 130}[number]
    assert (output, errors) == (
        "",
        f"stopped by {number.name}: what is finished stays; run the same command to go on\n",
    )
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in makers(tmp_path)))
    before = {name: (tmp_path / name).stat().st_mtime_ns for name in contents(tmp_path)}
    assert len(before) < len(NAMES)
    again = start(PROGRAM, tmp_path, "make", nodes[0])
    assert again.communicate(timeout=120)[0] == "" and again.returncode == 75
    assert contents(tmp_path) == WHOLE
    assert before == {name: (tmp_path / name).stat().st_mtime_ns for name in before}


@with_ray
def test_parts_of_a_node_that_dies_are_made_by_another(
    tmp_path: Path, nodes: tuple[str, subprocess.Popen[str]]
) -> None:
    address, cluster = nodes
    program = start(PROGRAM, tmp_path, "make_very_slowly", address)
    wait_for(lambda: len(makers(tmp_path)) == 2, 120)
    cast(IO[str], cluster.stdin).write("\n")
    cast(IO[str], cluster.stdin).flush()
    assert cast(IO[str], cluster.stdout).readline() == "killed\n"
    assert len(contents(tmp_path)) < len(NAMES)
    _, errors = program.communicate(timeout=120)
    assert program.returncode == 75, errors
    assert contents(tmp_path) == WHOLE
    begun = [log.read_text().splitlines() for log in tmp_path.glob("*.log")]
    assert max(map(len, begun)) == 2  # by one that was killed, and by one of the other node
