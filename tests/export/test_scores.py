"""The table of scores is what the parts and the partition say, recomputed in NumPy."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from frame_jax import export_scores as scores
from frame_jax.export_scores import main
from frame_jax.main import write_config
from frame_jax.quadrants.partition import write_assignment
from frame_jax.run import integrity
from frame_jax.run.directory import RunDirectory, list_parts
from tests.quadrants.corpus import make_corpus, run_config, write


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A partitioned run of 400 documents, one of which has no score and one no tokens."""
    corpus = make_corpus(400, levels=8)
    train = np.flatnonzero(corpus.split == "train")
    corpus.scored[train[0]] = False
    corpus.tokens[train[1]] = 0
    directory = write(corpus, tmp_path_factory.mktemp("scores") / "run")
    config = run_config(directory)
    write_config(config, directory)
    write_assignment(config.partition, config.scoring, directory)
    return directory


def export(directory: RunDirectory, out: Path) -> list[dict]:
    assert main([str(directory.root), "--out", str(out)]) == 0
    assert not list(out.parent.glob(".tmp-*"))
    if out.suffix == ".jsonl":
        return [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    return pq.read_table(out).to_pylist()


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_every_number_follows_from_the_parts(
    directory: RunDirectory, tmp_path: Path, suffix: str
) -> None:
    table = export(directory, tmp_path / f"new folder/scores{suffix}")
    parts = list_parts(directory.scores, ".parquet")
    stored = {row["doc_id"]: row for part in parts for row in pq.read_table(part).to_pylist()}
    tokens = [
        row
        for part in list_parts(directory.tokens, ".parquet")
        for row in pq.read_table(part).to_pylist()
        if row["split"] in ("train", "held_out")
    ]
    assert [row["doc_id"] for row in table] == [row["doc_id"] for row in tokens]
    placed = {row["doc_id"]: row for row in pq.read_table(directory.assignment).to_pylist()}
    unplaced = 0
    for row, document in zip(table, tokens, strict=True):
        for key in ("split", "source", "domain", "language", "tokens", "bytes"):
            assert row[key] == document[key]
        for key in ("ppl", "pd", "quadrant"):
            assert row[key] == placed[row["doc_id"]][key]
        if row["quadrant"] is None:
            unplaced += 1
            assert row["ppl_rank"] is row["pd_rank"] is row["loss_weak"] is None
            continue
        own = stored[row["doc_id"]]
        for name in ("weak", "strong"):
            assert row[f"predicted_tokens_{name}"] == own["predicted_tokens"]
            assert row[f"nll_{name}"] == own[f"nll_{name}"]
            loss = own[f"nll_{name}"] / own["predicted_tokens"]
            assert row[f"loss_{name}"] == pytest.approx(loss, rel=1e-14)
            bits = own[f"nll_{name}"] / np.log(2) / document["bytes"]
            assert row[f"bits_per_byte_{name}"] == pytest.approx(bits, rel=1e-14)
    assert unplaced == 2


def test_ranks_go_from_0_to_1_in_each_split(directory: RunDirectory, tmp_path: Path) -> None:
    table = export(directory, tmp_path / "scores.parquet")
    for split in ("train", "held_out"):
        rows = [row for row in table if row["split"] == split and row["ppl"] is not None]
        for axis in ("ppl", "pd"):
            values = np.array([row[axis] for row in rows])
            below = (values[:, None] > values[None, :]).sum(axis=1)
            ranks = [row[f"{axis}_rank"] for row in rows]
            np.testing.assert_allclose(ranks, below / (len(rows) - 1), rtol=1e-14)
            assert min(ranks) == 0 and max(ranks) == 1


def test_what_cannot_be_exported_is_said(
    directory: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, there = str(directory.root), tmp_path / "there.parquet"
    there.write_bytes(b"")
    for arguments, message in (
        ([str(tmp_path), "--out", str(tmp_path / "x.parquet")], "up to partition first"),
        ([root, "--out", str(tmp_path / "x.csv")], "must end in .parquet or .jsonl"),
        ([root, "--out", str(there)], "is there already"),
    ):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [there] and there.read_bytes() == b""


def test_a_run_whose_files_are_damaged_is_refused_in_words(
    directory: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDirectory(shutil.copytree(directory.root, tmp_path / "run"))
    command = [str(run.root), "--out", str(tmp_path / "scores.parquet")]

    def refused() -> str:
        assert main(command) == 2
        shown = capsys.readouterr().err
        assert shown.startswith("error: ") and shown.count("\n") == 1
        assert not (tmp_path / "scores.parquet").exists()
        return shown

    shutil.rmtree(run.scores)
    assert f"{run.scores} has no parts" in refused()  # a run of before there were checksums
    shutil.copytree(directory.scores, run.scores)
    for unit, outputs in (("score", ["scores"]), ("partition", ["quadrants"])):
        integrity.record_checksums(run, unit, outputs)
    part = list_parts(run.scores, ".parquet")[1]
    for path, unit in ((part, "score"), (run.assignment, "partition")):
        whole = path.read_bytes()
        path.write_bytes(whole[:-100])
        assert f"{path} is damaged" in (shown := refused()) and unit in shown
        path.unlink()
        assert f"{path} is missing" in refused()
        path.symlink_to("/proc/self/mem")  # whose first byte the system refuses with EIO
        assert "the storage or the network failed" in (shown := refused())
        assert "--redo" not in shown and "rm " not in shown
        path.unlink()
        path.write_bytes(whole)
    assert main(command) == 0


@pytest.mark.slow
def test_a_full_disk_and_a_dead_mount_are_no_defects(
    directory: RunDirectory, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(directory.root), "--out", "/proc/x.parquet"]) == 2
    assert "--out: nothing can be written to /proc " in capsys.readouterr().err
    for number, text in ((errno.ENOSPC, "no room"), (errno.ENOTCONN, "the storage or the network")):

        def fails(*_: object, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(scores, "scores_query", fails)
        assert main([str(directory.root), "--out", str(tmp_path / "x.parquet")]) == 2
        assert text in capsys.readouterr().err
