"""What was trained on against the rows on disk and the manifest, after whatever happened to it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from frame_jax import checkpoints
from frame_jax.config.parallel import ParallelConfig
from frame_jax.config.run import RunConfig
from frame_jax.errors import storage_error
from frame_jax.export.order import manifest_lines
from frame_jax.export_order import main as export_order
from frame_jax.records import TokenReader, write_tokens
from frame_jax.run import preemption
from frame_jax.run.directory import RunDirectory, list_parts, read_json
from frame_jax.run.preemption import Preempted
from frame_jax.training.phases import pretrain
from frame_jax.verify_order import main
from tests.export.order.packed_run import BATCH, make_run

ARM = "frame"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, RunDirectory]:
    """A run with one trained arm; tests work on copies."""
    config, directory = make_run(
        tmp_path_factory.mktemp("trained") / "run", documents=100, copies=(2, 1, 0)
    )
    pretrain(config, directory, ARM)
    return config, directory


@pytest.fixture
def run(trained: tuple[RunConfig, RunDirectory], tmp_path: Path) -> RunDirectory:
    return RunDirectory(shutil.copytree(trained[1].root, tmp_path / "run"))


def export(directory: RunDirectory) -> Path:
    assert export_order([str(directory.root), "--trial", ARM, "--to", "manifest"]) == 0
    return directory.manifest(ARM)


def records(directory: RunDirectory) -> list[dict]:
    path = directory.pretrain(ARM) / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def change_row(directory: RunDirectory, quadrant: str, part: int, record: int) -> Path:
    """Another token in one row, in a file that is whole."""
    path = list_parts(directory.quadrants / quadrant, ".arrayrecord")[part]
    reader = TokenReader(path)
    rows = [row.copy() for row in reader.read(range(len(reader)))]
    reader.close()
    rows[record][-1] += 1
    with write_tokens(path) as writer:
        for row in rows:
            writer.append(row)
    return path


def test_a_run_is_verified_alone_and_by_its_manifest(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = len(records(run))
    assert main([str(run.root)]) == 0
    said = capsys.readouterr().out
    assert f"frame: verified: steps 0 to {steps - 1} of {steps} compared; no manifest" in said
    folder = export(run)
    assert records(run)[-1]["order_digest"] == read_json(folder / "manifest.json")["digest"]
    saved = checkpoints.saved_consumed_rows(run.pretrain(ARM) / "checkpoints")
    assert saved[steps]["order_digest"] == records(run)[-1]["order_digest"]
    assert saved[0]["order_digest"] == "0" * 32
    assert main([str(run.root), "--trial", ARM, "--manifest", str(folder)]) == 0
    assert f"manifest {folder}" in capsys.readouterr().out


def test_kills_and_another_mesh_leave_the_same_digests(
    trained: tuple[RunConfig, RunDirectory],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    use_devices,
) -> None:
    config, whole = trained
    directory = RunDirectory(shutil.copytree(whole.root, tmp_path / "run"))
    shutil.rmtree(directory.pretrain(ARM))
    monkeypatch.setattr(preemption, "stop_requested", lambda step: step == 3)
    with pytest.raises(Preempted):
        pretrain(config, directory, ARM)
    monkeypatch.undo()
    log = directory.pretrain(ARM) / "metrics.jsonl"
    with log.open("a") as file:  # as if it had been killed two steps later
        file.writelines(json.dumps({**records(directory)[-1], "step": s}) + "\n" for s in (3, 4))
    use_devices(8)
    parallel = ParallelConfig(fsdp=2, tensor=2, data=2)
    pretrain(dataclasses.replace(config, parallel=parallel), directory, ARM)
    keys = ("step", "order_digest")
    left, right = (
        [{key: record[key] for key in keys} for record in records(d)] for d in (whole, directory)
    )
    assert left == right
    assert main([str(directory.root)]) == 0


@pytest.mark.parametrize("listed", [True, False])
def test_a_changed_row_is_found_and_named(
    run: RunDirectory, listed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    if listed:
        export(run)
    path = change_row(run, "Q1", part=1, record=2)
    before = len(TokenReader(list_parts(run.quadrants / "Q1", ".arrayrecord")[0]))
    capsys.readouterr()
    assert main([str(run.root)]) == 2
    said = capsys.readouterr().out
    assert "NOT VERIFIED" in said
    named = f"Q1 row {before + 2} ({path}, record 2), read at step"
    assert (named in said) == listed
    assert said.count(" row ") == (1 if listed else 0)
    (line,) = (line for line in said.splitlines() if line.startswith("  step"))
    step = int(line.split()[1].rstrip(":"))
    if listed:
        assert f"read at step {step:,}, has changed since" in said
    else:
        assert "trained on other rows than there are on disk" in line


def test_a_file_of_rows_that_cannot_be_read_is_named(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    path = list_parts(run.quadrants / "Q4", ".arrayrecord")[0]
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    path.write_bytes(content)
    assert main([str(run.root)]) == 2
    said = capsys.readouterr()
    assert f"{path} is damaged" in said.err and f"rm {path.with_suffix('')}.*" in said.err
    assert "verified" not in said.out


def test_training_on_other_rows_than_the_manifest_lists_is_found(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    export(run)
    lines = records(run)
    for line in lines[4:]:  # a sum that went wrong at step 4, and stayed wrong
        digest = bytearray.fromhex(line["order_digest"])
        digest[0] ^= 1
        line["order_digest"] = digest.hex()
    log = run.pretrain(ARM) / "metrics.jsonl"
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    capsys.readouterr()
    assert main([str(run.root)]) == 2
    said = capsys.readouterr().out
    assert "step 4: trained on other rows than the manifest lists" in said
    assert "metrics and checkpoint differ" in said and "not the manifest's" not in said


def test_a_manifest_that_was_changed_is_no_witness(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(manifest_lines, "PART_ROWS", 37)
    folder = export(run)
    first, second = sorted(folder.glob("part-*.parquet"))[:2]
    shutil.copy(second, first)
    assert main([str(run.root)]) == 2
    assert f"{first} is not what was written" in capsys.readouterr().out
    described = read_json(folder / "manifest.json") | {"schedule": "another"}
    (folder / "manifest.json").write_text(json.dumps(described))
    assert main([str(run.root)]) == 2
    assert "is not the manifest of frame" in capsys.readouterr().err


def test_all_rows_count_and_padding_does_not(trained: tuple[RunConfig, RunDirectory]) -> None:
    rows = read_json(trained[1].quadrants / "rows.json")
    assert (
        sum(quadrant["rows"] for quadrant in rows.values()) % BATCH
    )  # the last batch is completed
    digests = [record["order_digest"] for record in records(trained[1])]
    assert len(np.unique(digests)) == len(digests)


def test_what_cannot_be_verified_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, directory = make_run(tmp_path / "run", documents=40)
    for arguments, message in (
        ([str(tmp_path)], "is no run directory"),
        ([str(directory.root)], "run the pretrain phase first"),
        ([str(directory.root), "--manifest", "x"], "say which with --trial"),
        ([str(directory.root), "--trial", "none"], "there is no curriculum 'none'"),
    ):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err


def test_a_part_of_a_manifest_that_is_damaged_or_gone_is_named(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(manifest_lines, "PART_ROWS", 37)
    part = sorted(export(run).glob("part-*.parquet"))[1]
    capsys.readouterr()
    for damage in (lambda: part.write_bytes(b"PAR1"), part.unlink):
        damage()
        assert main([str(run.root)]) == 2
        said = capsys.readouterr().out
        assert f"{part} is not what was written: remove it and its .json, and export" in said
        assert "trained on other rows" not in said  # the disk says otherwise
    part.with_suffix(".json").unlink()
    (run.manifest(ARM) / "manifest.json").unlink()
    export(run)
    assert main([str(run.root)]) == 0


def test_a_stale_manifest_is_refused_with_the_way_on(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = export(run)
    stale = read_json(folder / "manifest.json") | {"partition": "before it was made again"}
    (folder / "manifest.json").write_text(json.dumps(stale))
    capsys.readouterr()
    assert main([str(run.root)]) == 2
    said = capsys.readouterr().err
    assert f"{folder} is not the manifest of {ARM}" in said
    assert "Remove it to verify without one" in said and "--to manifest" in said
    shutil.rmtree(folder)
    assert main([str(run.root)]) == 0


def test_a_fault_of_the_storage_is_no_change_of_a_row(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    export(run)
    path = change_row(run, "Q1", part=1, record=2)
    real, again = TokenReader.read, []

    def read(reader: TokenReader, indices: list[int]) -> list[np.ndarray]:
        if len(indices) == 1 and reader._path == path:  # as single rows are read again
            again.append(indices)
            raise storage_error(path, OSError(5, "Input/output error")) from OSError(
                5, "Input/output error"
            )
        return real(reader, indices)

    monkeypatch.setattr(TokenReader, "read", read)
    assert main([str(run.root)]) == 2
    shown = capsys.readouterr()
    assert len(again) == 1 and "the storage or the network failed" in shown.err
    assert "cannot be read\n" not in shown.out and "has changed since" not in shown.out


def test_a_part_that_is_cut_short_is_named(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    path = list_parts(run.quadrants / "Q2", ".arrayrecord")[1]
    path.write_bytes(path.read_bytes()[:1000])
    assert main([str(run.root)]) == 2
    assert f"{path} is damaged" in capsys.readouterr().err
