"""A small run whose checkpoints go to a bucket: the same results, also after its disk is lost."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from frame_jax import checkpoints
from frame_jax.export import checkpoint as export
from frame_jax.main import main
from frame_jax.run.bucket import Bucket
from frame_jax.run.directory import RunDirectory, read_json
from tests.integration.small_run import settings, write_config, write_corpus
from tests.s3_server import failing, serve

TRAINING = {"batch_rows": 16, "milestones": 1, "steps": 6, "schedule": {"peak": 0.01}}
ONE_ARM = {"frame": {"preset": "frame"}}


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with pytest.MonkeyPatch.context() as patch, serve(patch) as found:
        yield found


def test_a_run_whose_disk_is_lost_after_training_comes_out_the_same(
    port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path / "corpus.jsonl")
    given = settings(tmp_path)
    for name in ("weak", "strong"):
        given["reference"][name]["training"] = TRAINING | {"milestones": 0}
    given["pretrain"]["training"] = TRAINING
    config = ["--config", str(write_config(tmp_path, **given, curricula=ONE_ARM))]
    plain, copied = RunDirectory(tmp_path / "run"), RunDirectory(tmp_path / "copied")
    assert main([*config, "--until", "evaluate"]) == 0

    there = [*config, "--run_directory", str(copied.root), "--checkpoint_root", "s3://bucket/run"]
    with failing(monkeypatch, port, every=9) as server:
        assert main([*there, "--until", "pretrain"]) == 0
        assert server.failures > 3
    folders = [copied.reference("weak"), copied.reference("strong"), copied.pretrain("frame")]
    for folder in folders:
        assert (folder / "checkpoints.txt").read_text().startswith("s3://bucket/run/")
        shutil.rmtree(folder / "checkpoints")
    assert main([*there, "--until", "evaluate"]) == 0
    left, right = (read_json(at.evaluation("frame")) for at in (plain, copied))
    assert left == right
    steps = checkpoints.saved_steps(copied.pretrain("frame") / "checkpoints")
    assert steps == checkpoints.saved_steps(plain.pretrain("frame") / "checkpoints")
    export.export(copied, "frame", tmp_path / "model", step=steps[0])
    assert not (copied.pretrain("frame") / ".tmp-fetched").exists()

    assert main([*there, "--redo", "pretrain", "--until", "partition"]) == 0
    assert Bucket("s3://bucket/run/pretrain/frame/checkpoints").steps() == []
    assert Bucket("s3://bucket/run/reference/strong/checkpoints").steps() == [6]


def test_a_bucket_that_is_not_there_is_refused_before_the_first_phase(
    port: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_corpus(tmp_path / "corpus.jsonl")
    config = ["--config", str(write_config(tmp_path))]
    assert main([*config, "--checkpoint_root", "s3://nowhere/run"]) == 2
    shown = capsys.readouterr().err
    assert "checkpoint_root: s3://nowhere/run/reference/weak/checkpoints/probe-" in shown
    assert shown.count("error: ") == 1 and "Traceback" not in shown
    assert not (tmp_path / "run" / "tokens").exists()
