"""A program ends well whatever became of its terminal: its encoding, closed streams, full disks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.small_run import write_config, write_corpus

SCRIPT = """
import sys
from frame_jax.run import progress
from frame_jax.run.program_exit import run_main

def main():
    with open("written", "w") as file:
        print("said ± 中文 \\udc80", file=sys.stderr)
        with progress.progress_bar("score", 10, "tokens") as update:
            update(10, "领域")
        print("shown ± 中文 \\udc80", flush=True)
        file.write("whole")
    return 0

run_main(main)
"""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_an_encoding_lacks_is_spelled_out(tmp_path: Path, encoding: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=tmp_path,
        env=os.environ
        | {"PYTHONIOENCODING": encoding, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    expected = "shown ± 中文 \udc80\n".encode(encoding, "backslashreplace")
    assert done.stdout == expected
    assert "领域".encode(encoding, "backslashreplace") in done.stderr


@pytest.mark.parametrize(
    "streams", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-", "2>/dev/full", "2> >(true)", ">&-"]
)
def test_streams_that_take_nothing_stop_nothing(tmp_path: Path, streams: str) -> None:
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "PYTHON": sys.executable,
    }
    command = f'sleep 0.2; exec "$PYTHON" -c "$SCRIPT" {streams}'
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=environment | {"SCRIPT": SCRIPT}, timeout=60
    )
    assert done.returncode == 0
    assert (tmp_path / "written").read_text() == "whole"  # and no message in it


@pytest.mark.slow
def test_a_plan_can_be_read_where_there_is_no_unicode(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus.jsonl")
    done = subprocess.run(
        [sys.executable, "-m", "frame_jax.main", "--config", str(write_config(tmp_path)), "--plan"],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "tokenize" in done.stdout, done.stderr
