"""The manifest of an order, against the rows on disk, hashlib and the trainer's own digest."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from frame_jax.errors import UserError
from frame_jax.export.order import manifest, manifest_lines, trial_order
from frame_jax.export.order.trial_order import make_trial_order
from frame_jax.export_order import main
from frame_jax.quadrants.rows import write_quadrant_rows
from frame_jax.records import TokenReader
from frame_jax.run import integrity
from frame_jax.run.directory import RunDirectory, list_parts, read_json
from tests.export.order.packed_run import BATCH, BOS, EOS, QUADRANTS, make_run, rows_of
from tests.programs import IMPATIENT, REPOSITORY, free_port, side_by_side

PAGE = REPOSITORY / "docs" / "order.md"


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_lines, "PART_ROWS", 37)
    monkeypatch.setattr(trial_order, "ROWS_AT_ONCE", 5)


def export(directory: RunDirectory, curriculum: str, *options: str) -> Path:
    command = [str(directory.root), "--trial", curriculum, "--to", "manifest", *options]
    assert main(command) == 0
    return directory.manifest(curriculum)


def lines_of(folder: Path) -> list[dict[str, Any]]:
    tables = [pq.read_table(path) for path in sorted(folder.glob("*.parquet"))]
    return [line for table in tables for line in table.to_pylist()]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def sha(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()[:16]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("curriculum", "packing", "steps", "copies"),
    [
        ("frame", "concat", None, (1,)),
        ("frame", "concat", None, (0, 2, 1)),
        ("twice", "best_fit", None, (2, 1, 0)),
        ("again", "concat", 10, (1,)),
    ],
)
def test_every_row_is_listed_with_the_documents_that_it_holds(
    tmp_path: Path, curriculum: str, packing: str, steps: int | None, copies: tuple[int, ...]
) -> None:
    config, directory = make_run(tmp_path / "run", packing=packing, steps=steps, copies=copies)
    folder = export(directory, curriculum)
    plan = make_trial_order(config, directory, curriculum)
    lines, rows = (
        lines_of(folder),
        {quadrant: rows_of(directory, quadrant) for quadrant in QUADRANTS},
    )
    files = list_parts(directory.tokens, ".arrayrecord")
    tokens = {
        line["doc_id"]: TokenReader(files[line["part"]]).read([line["row"]])[0]
        for line in pq.read_table(directory.assignment).to_pylist()
    }
    assert [line["row"] for line in lines] == list(range(plan.schedule.rows))
    seen: dict[str, int] = {}
    total = 0
    for place, line in enumerate(lines):
        quadrant, row = plan.selection[place]
        ids = rows[QUADRANTS[quadrant]][row]
        assert (line["quadrant"], line["quadrant_row"]) == (QUADRANTS[quadrant], row)
        assert line["step"] == place // BATCH
        assert line["stage"] == plan.schedule.stages[plan.schedule.stage_at(place)].name
        assert line["digest"] == sha(ids.astype("<u4").tobytes())
        placed = sha(place.to_bytes(8, "little") + line["digest"])
        total = (total + int.from_bytes(placed, "little")) % 2**128
        text, held = np.zeros(len(ids), bool), [span["doc_id"] for span in line["documents"]]
        assert len(set(held)) == len(held)
        for span in line["documents"]:
            start, stop, first = span["start"], span["stop"], span["first"]
            own = tokens[span["doc_id"]][first : first + stop - start]
            np.testing.assert_array_equal(ids[start:stop], own)
            assert not text[start:stop].any()
            text[start:stop] = True
            seen[span["doc_id"]] = seen.get(span["doc_id"], 0) + stop - start
        assert set(ids[~text].tolist()) <= {BOS, EOS}  # the spans leave out no text
    if steps is None:
        epochs = plan.schedule.epochs
        training = pq.read_table(directory.assignment).to_pylist()
        reads = {d["doc_id"]: epochs * d["copies"] * d["tokens"] for d in training}
        wanted = {doc_id: tokens for doc_id, tokens in reads.items() if tokens}
        assert seen == wanted
    found = read_json(folder / "manifest.json")
    assert found["digest"] == total.to_bytes(16, "little").hex() and len(found["parts"]) > 1
    values = [int.from_bytes(bytes.fromhex(p["digest"]), "little") for p in found["parts"]]
    assert sum(values) % 2**128 == total
    assert not (folder / ".rows").exists()
    (program,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)
    done = subprocess.run([sys.executable, "-c", program, folder], capture_output=True, text=True)
    assert done.stdout.strip() == found["digest"], done.stderr


@pytest.mark.slow
def test_a_run_of_the_same_command_makes_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, directory = make_run(tmp_path / "run")
    folder = export(directory, "frame")
    whole = content(folder)
    other = shutil.copytree(directory.root, tmp_path / "other")
    resumed = RunDirectory(other).manifest("frame")
    shutil.rmtree(resumed)

    write_part, done = manifest.write_part, []

    def dying(*part: Any, **settings: Any) -> None:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(write_part(*part, **settings))

    monkeypatch.setattr(manifest, "write_part", dying)
    with pytest.raises(KeyboardInterrupt):
        export(RunDirectory(other), "frame")
    assert not (resumed / "manifest.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in resumed.glob("part-*.parquet")}
    assert len(kept) == 2
    monkeypatch.setattr(manifest, "write_part", write_part)
    monkeypatch.setattr(manifest_lines, "write_lines", None)  # the rows are not read a second time
    export(RunDirectory(other), "frame")
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert content(resumed) == whole

    command = [str(directory.root), "--trial", "twice", "--to", "manifest"]
    assert main([*command, "--out", str(folder)]) == 2
    assert "no manifest of this order" in capsys.readouterr().err


def two_programs(*arguments: list[str]) -> list[tuple[int, str]]:
    """Exit code and output of two programs that write a manifest together, each with its own
    arguments."""
    command = [*IMPATIENT, "frame_jax.export_order", "--to", "manifest", "--distributed"]
    command += ["--coordinator_address", f"localhost:{free_port()}", "--num_processes", "2"]
    return side_by_side(
        *([*command, "--process_id", str(index), *own] for index, own in enumerate(arguments))
    )


@pytest.mark.processes
def test_two_programs_write_what_one_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, directory = make_run(tmp_path / "run")
    for code, output in two_programs([str(directory.root)], [str(directory.root)]):
        assert code == 0, output
    monkeypatch.undo()  # the parts of those programs are large
    found = content(directory.manifest("frame"))
    shutil.rmtree(directory.manifest("frame"))
    assert content(export(directory, "frame")) == found


@pytest.mark.processes
def test_programs_with_a_folder_each_end_at_once_and_say_so(tmp_path: Path) -> None:
    _, directory = make_run(tmp_path / "run")
    outs = [tmp_path / f"out-{index}" for index in range(2)]
    for code, output in two_programs(*([str(directory.root), "--out", str(o)] for o in outs)):
        assert code == 2, output
        assert output.count("error: ") == 1 and "Traceback" not in output, output
        assert re.search(r"process 1 \(on .*\) did not see .* process 0 wrote to", output), output
        assert "one and the same folder" in output and "--out" in output
    assert not any(path for out in outs if out.exists() for path in out.iterdir())


@pytest.mark.processes
def test_what_one_program_refuses_both_end_with(tmp_path: Path) -> None:
    """A run that the second does not have, and a folder that the first will not write to."""
    _, directory = make_run(tmp_path / "run")
    out = tmp_path / "out"
    shared = ["--out", str(out)]
    missing = two_programs([str(directory.root), *shared], [str(tmp_path / "no"), *shared])
    assert not out.exists()
    out.mkdir()
    (out / "other").write_text("no manifest")
    taken = two_programs(*([str(directory.root), *shared] for _ in range(2)))
    for programs, text in ((missing, "has no quadrants"), (taken, "is there already")):
        for code, output in programs:
            assert code == 2, output
            assert output.count("error: ") == 1 and "Traceback" not in output, output
            assert text in output
    assert "process 1, on " in missing[0][1] and "process 0, on " in taken[1][1]
    assert [path.name for path in out.iterdir()] == ["other"]


def test_another_run_than_that_of_process_0_is_refused(tmp_path: Path) -> None:
    _, directory = make_run(tmp_path / "run")
    begun = read_json(export(directory, "frame") / manifest.HEADER_FILE)
    with pytest.raises(UserError, match=r"run is not the run .* differ in seed, partition"):
        manifest.require_same_order(directory, begun, begun | {"seed": 1, "partition": "other"})


@pytest.mark.processes
def test_programs_that_list_two_orders_in_one_folder_both_end(tmp_path: Path) -> None:
    _, directory = make_run(tmp_path / "run")
    command = [str(directory.root), "--out", str(tmp_path / "out"), "--trial"]
    for code, output in two_programs([*command, "frame"], [*command, "twice"]):
        assert code == 2, output
        assert "is not the run that process 0 writes a manifest of" in output
        assert "differ in trial" in output


def test_rows_of_other_documents_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, directory = make_run(tmp_path / "run")
    conditions = {
        quadrant: f"split = 'train' AND quadrant = '{quadrant}'" for quadrant in QUADRANTS
    }
    shutil.rmtree(directory.quadrants / "Q1")
    rows, tables = config.partition.rows, [directory.assignment]
    write_quadrant_rows(rows, directory, directory.quadrants, tables, conditions, 1, config.workers)
    assert main([str(directory.root), "--to", "manifest"]) == 2
    assert "does not hold the documents" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("to", ["manifest", "parquet"])
def test_a_run_whose_files_are_damaged_is_refused_in_words(
    tmp_path: Path, to: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, directory = make_run(tmp_path / "run")
    integrity.record_checksums(directory, "partition", ["quadrants"])
    part = list_parts(directory.quadrants / "Q2", ".arrayrecord")[1]
    out = tmp_path / "out"
    capsys.readouterr()
    for path in (directory.assignment, part)[: 2 if to == "manifest" else 1]:
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        assert not out.exists()
        assert main([str(directory.root), "--to", to, "--out", str(out)]) == 2
        shown = capsys.readouterr().err
        assert shown.startswith(f"error: {path} is damaged") and shown.count("\n") == 1
        path.write_bytes(whole)
    if to == "manifest":
        assert not list(out.glob("part-*"))
        assert main([str(directory.root), "--to", to, "--out", str(out)]) == 0
