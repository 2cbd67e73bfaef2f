"""The phases without models, by any number of workers: the same bytes, and no device is asked for.

JAX is given a platform that does not exist, so whatever starts its devices fails.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pytest

from frame_jax.run.directory import file_sha256
from tests.integration.small_run import settings, write_config, write_corpus
from tests.programs import REPOSITORY, free_port

pytestmark = [pytest.mark.slow, pytest.mark.processes]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus, with duplicate ids and a broken line, and a table of its scores."""
    folder = tmp_path_factory.mktemp("corpus")
    path = write_corpus(folder / "corpus.jsonl")
    lines = path.read_text("utf-8").splitlines()
    path.write_text("\n".join([*lines, lines[3], lines[400], "{broken"]) + "\n", "utf-8")
    duckdb.sql(
        f"COPY (SELECT id AS doc_id, hash(id) % 1000 AS ppl, hash(id, 1) % 1000 AS pd FROM "
        f"(SELECT DISTINCT id FROM read_json('{path}', ignore_errors = true))) "
        f"TO '{folder / 'scores.parquet'}'"
    )
    return folder


def program(corpus: Path, root: Path, *options: str) -> list[str]:
    given = settings(corpus) | {"run_directory": str(root / "run")}
    given["corpus"] |= {"parts": 5, "reference_fraction": 0.0, "max_rejected_fraction": 0.1}
    table = {"path": str(corpus / "scores.parquet"), "ppl": "ppl", "pd": "pd"}
    given["scoring"]["table"] = table
    given["partition"]["mixture"] = {"by": "source", "repeats": {"code-source": 2}}
    root.mkdir(exist_ok=True)
    config = write_config(root, **given)
    return ["-m", "frame_jax.main", "--config", str(config), "--until", "partition", *options]


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "no_device"},
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*programs: subprocess.Popen[str]) -> str:
    said = [program.communicate(timeout=200)[1] for program in programs]
    assert {program.returncode for program in programs} == {0}, "\n".join(said)
    return said[0]


def manifest(root: Path) -> None:
    finish(start("-m", "frame_jax.export_order", str(root / "run"), "--trial", "frame",
                 "--to", "manifest"))  # fmt: skip


def content(root: Path) -> dict[str, str]:
    """Digests of all that a run has made; its settings and times are others'."""
    folders = ("tokens", "tokenizer", "scores", "quadrants", "manifest")
    files = [file for name in folders for file in (root / "run" / name).rglob("*")]
    found = {str(f.relative_to(root)): file_sha256(f) for f in files if f.is_file()}
    # Its lines are in no particular order.
    path = root / "run/quadrants/assignment.parquet"
    lines = duckdb.sql(
        f"SELECT md5(string_agg(t::VARCHAR, ' ' ORDER BY part, row)) FROM '{path}' t"
    )
    return found | {str(path.relative_to(root)): str(lines.fetchall())}


@pytest.fixture(scope="module")
def alone(corpus: Path) -> dict[str, str]:
    """What one process makes."""
    finish(start(*program(corpus, corpus / "alone", "--workers.count", "1")))
    manifest(corpus / "alone")
    found = content(corpus / "alone")
    assert {Path(name).parts[1] for name in found} >= {"tokens", "scores", "quadrants", "manifest"}
    return found


def test_workers_make_what_one_process_makes(corpus: Path, alone: dict[str, str]) -> None:
    finish(start(*program(corpus, corpus / "three", "--workers.count", "3")))
    manifest(corpus / "three")  # by as many, whom the run's settings name
    assert content(corpus / "three") == alone


def test_a_run_that_is_killed_again_and_again_ends_the_same(
    corpus: Path, alone: dict[str, str]
) -> None:
    root = corpus / "killed"
    arguments = program(corpus, root, "--workers.count", "2")
    for number, begun in enumerate(("tokens/part-*.parquet", "quadrants/Q?/part-*.arrayrecord")):
        killed = start(*arguments)
        while killed.poll() is None and not list((root / "run").glob(begun)):
            time.sleep(0.01)
        killed.send_signal((signal.SIGKILL, signal.SIGTERM)[number])
        killed.communicate(timeout=60)
        assert killed.returncode == (-9, 75)[number]
    finish(start(*arguments))
    manifest(root)
    assert content(root) == alone


def test_processes_with_workers_each_make_it_together(corpus: Path, alone: dict[str, str]) -> None:
    root, port = corpus / "together", free_port()
    arguments = program(corpus, root, "--workers.count", "2", "--parallel.distributed", "true")
    arguments += ["--parallel.coordinator_address", f"localhost:{port}"]
    arguments += ["--parallel.num_processes", "2", "--parallel.process_id"]
    said = finish(start(*arguments, "0"), start(*arguments, "1"))
    assert re.search(r"tokenize: .* part-", said)
    config = root / "run/config.yaml"
    text = config.read_text("utf-8").replace("distributed: true", "distributed: false")
    config.write_text(text, "utf-8")
    manifest(root)
    assert content(root) == alone
