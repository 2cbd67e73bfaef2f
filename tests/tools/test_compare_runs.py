"""Two runs bit by bit: every kind of change is found, timings and the order of lines are none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from frame_jax.records import write_tokens
from tools.compare_runs import main


def metrics(folder: Path, loss: float = 2.5, seconds: float = 1.0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = (
        {"step": s, "loss": loss + s, "seconds": seconds, "mixture": {"Q1": 1}} for s in (0, 1)
    )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def scores(folder: Path, nll: float = 3.0, order: int = 1) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    columns = {"doc_id": ["a", "b"][::order], "nll_weak": [nll, np.nan][::order]}
    pq.write_table(pa.table(columns), folder / "part-00000-of-00001.parquet")


def rows(folder: Path, last: int = 7) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with write_tokens(folder / "part-00000-of-00001.arrayrecord") as writer:
        writer.append([1, 2, 3])
        writer.append([4, 5, last])


def write_run(root: Path) -> Path:
    metrics(root / "pretrain/frame")
    metrics(root / "reference/weak")
    scores(root / "scores")
    rows(root / "quadrants/Q1")
    (root / "quadrants/partition.json").write_text('{"groups": [1.5]}')
    return root


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    a = write_run(tmp_path / "a")
    return a, Path(shutil.copytree(a, tmp_path / "b"))


def test_timings_and_the_order_of_lines_are_no_difference(
    runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = runs
    metrics(b / "pretrain/frame", seconds=9.0)
    scores(b / "scores", order=-1)
    assert main([str(a), str(b)]) == 0
    assert capsys.readouterr().out == "no difference\n"


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "loss": (
        lambda b: metrics(b / "pretrain/frame", loss=float(np.nextafter(2.5, 3))),
        "pretrain/frame/metrics.jsonl: 2 of 2 differ, first: step 0",
    ),
    "score": (
        lambda b: scores(b / "scores", nll=float(np.nextafter(3.0, 4))),
        "1 of 2 differ, first: column nll_weak",
    ),
    "row": (lambda b: rows(b / "quadrants/Q1", last=8), "1 of 2 differ, first: row 1"),
    "threshold": (
        lambda b: (b / "quadrants/partition.json").write_text('{"groups": [1.25]}'),
        "quadrants/partition.json",
    ),
    "gone": (lambda b: shutil.rmtree(b / "reference"), "reference/weak/metrics.jsonl: not in"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_kind_of_change_is_found(
    name: str, runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = runs
    change, message = CHANGES[name]
    change(b)
    assert main([str(a), str(b)]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert message in line


def test_what_is_no_run_is_bad_input(runs: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert main([str(runs[0]), str(tmp_path / "empty")]) == 2
