"""Training whose checkpoints go to a bucket: the same weights, also when its disk is lost."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from frame_jax import checkpoints
from frame_jax.main import main
from frame_jax.run import bucket, preemption
from frame_jax.run.preemption import Preempted
from frame_jax.training.trainer import train
from frame_jax.training.training_job import TrainingJob
from tests.integration.small_run import write_config, write_corpus
from tests.s3_proxy import failing, serve
from tests.training.rows import make_job, write_rows
from tests.training.test_trainer import assert_same, final_params, metrics

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with pytest.MonkeyPatch.context() as patch, serve(patch) as found:
        yield found


def test_training_goes_on_from_the_bucket_when_the_disk_is_lost(
    port: int, trained: TrainingJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(tmp_path)
    job = make_job(tmp_path)
    job.folder.mkdir(parents=True)
    bucket.pointer_file(job.folder).write_text("s3://bucket/job/checkpoints\n")
    with monkeypatch.context() as patch, failing(monkeypatch, port, every=9) as server:
        patch.setattr("frame_jax.retries.RETRY_SECONDS", (0.01,) * 6)
        patch.setattr(preemption, "stop_requested", lambda step: step == 4)
        with pytest.raises(Preempted, match="saved at step 4"):
            train(job)
        assert server.failures > 3
    shutil.rmtree(job.folder / "checkpoints")
    train(job)
    assert [record["step"] for record in metrics(job)] == list(range(6))
    shutil.rmtree(job.folder / "checkpoints")  # readers fetch what they need
    kept, expected = (checkpoints.saved_steps(j.folder / "checkpoints") for j in (job, trained))
    assert set(expected) <= {*kept, 5}
    assert_same(final_params(trained), final_params(job))
    assert not (job.folder / ".tmp-fetched").exists()


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
