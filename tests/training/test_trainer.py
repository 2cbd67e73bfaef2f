import dataclasses
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax import tree

from frame_jax import checkpoints
from frame_jax.config.parallel import ParallelConfig
from frame_jax.config.training import OptimizerConfig, ReferenceModelConfig, TrainingConfig
from frame_jax.errors import UserError
from frame_jax.models.transformer import Decoder
from frame_jax.parallel.sharding import make_mesh
from frame_jax.run.trial_record import averaged_steps, load_trial_record
from frame_jax.training.checkpointer import Checkpointer
from frame_jax.training.trainer import StateFactory, train
from frame_jax.training.training_job import TrainingJob, kept_steps, tail_steps
from tests.models.kinds import KINDS
from tests.training.rows import LENGTH, VOCAB, make_job, write_rows
from tests.training.test_metrics import documented_keys


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_rows(tmp_path)
    return tmp_path


def metrics(job: TrainingJob) -> list[dict]:
    return [json.loads(line) for line in (job.folder / "metrics.jsonl").read_text().splitlines()]


def final_params(job: TrainingJob) -> dict:
    return checkpoints.load_params(job.folder / "checkpoints", job.decoder)


def assert_same(left: dict, right: dict) -> None:
    tree.map(np.testing.assert_array_equal, left, right)


@pytest.mark.slow
def test_every_row_is_trained_on_and_padding_has_no_loss(root: Path) -> None:
    job = make_job(root)
    summary = train(job)
    records = metrics(job)
    assert summary["rows"] == 88 and summary["steps"] == 6
    assert [record["step"] for record in records] == list(range(6))
    # A row holds two documents: one target of LENGTH is the BOS after EOS, which is not predicted.
    assert sum(record["predicted_tokens"] for record in records) == 88 * (LENGTH - 1)
    assert records[-1]["loss"] < records[0]["loss"]


def test_a_run_resumed_from_any_checkpoint_ends_bit_identical(
    root: Path, trained: TrainingJob
) -> None:
    assert checkpoints.saved_steps(trained.folder / "checkpoints")[:2] == [0, 2]
    for first in checkpoints.saved_steps(trained.folder / "checkpoints")[:-1]:
        resumed = make_job(root, folder=f"resumed{first}")
        shutil.copytree(trained.folder, resumed.folder)
        for step in checkpoints.saved_steps(resumed.folder / "checkpoints"):
            if step > first:
                shutil.rmtree(resumed.folder / "checkpoints" / str(step))
        train(resumed)
        assert_same(final_params(trained), final_params(resumed))
        for before, after in zip(metrics(trained), metrics(resumed), strict=True):
            for key in ("step", "loss", "grad_norm", "learning_rate", "stage", "mixture"):
                assert before[key] == after[key]
            assert before["order_digest"] == after["order_digest"]


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_moments_lie_where_their_parameters_do(root: Path, use_devices, kind: str) -> None:
    """Whichever rule: Muon's state is made from axes, and has moments of the matrices alone."""
    use_devices(8)
    optimizer = OptimizerConfig(kind=kind)
    training = TrainingConfig(batch_size=8, milestones=1, optimizer=optimizer)
    parallel = ParallelConfig(data=2, fsdp=2, tensor=2)
    job = make_job(root, folder=kind, training=training, parallel=parallel)
    factory = StateFactory(job, make_mesh(job.parallel))
    state = jax.eval_shape(factory.optimizer.init, job.decoder.shapes())
    found = jax.tree_util.tree_flatten_with_path((state, factory.shardings.optimizer))[0]
    shapes, shardings = found[: len(found) // 2], found[len(found) // 2 :]
    queries = 0
    for (path, leaf), (_, sharding) in zip(shapes, shardings, strict=True):
        name = jax.tree_util.keystr(path)
        if name.endswith("['query']"):
            queries += 1
            assert sharding.spec == factory.shardings.params["layers"]["group_0"]["query"].spec
        if leaf.ndim == 0:
            assert not any(sharding.spec)
    assert queries == (2 if kind == "adamw" else 1)  # moments


@pytest.mark.slow
def test_muon_trains_and_goes_on(root: Path) -> None:
    optimizer = OptimizerConfig(kind="muon")
    training = TrainingConfig(batch_size=16, milestones=2, optimizer=optimizer)
    job = make_job(root, folder="muon", training=training)
    train(job)
    whole = metrics(job)
    assert whole[-1]["loss"] < whole[0]["loss"]
    shutil.rmtree(job.folder / "checkpoints" / str(job.steps))
    train(job)
    assert [m["loss"] for m in metrics(job)] == [m["loss"] for m in whole]


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_experts_go_on_under_another_mesh(root: Path, use_devices, kind: str) -> None:
    """Saved under expert=2, resumed under tensor=2: the same steps, the balancing bias included."""
    use_devices(4)
    training = TrainingConfig(
        batch_size=16,
        compute_dtype="float32",
        milestones=2,
        optimizer=OptimizerConfig(kind=kind),  # type: ignore[arg-type]
    )
    hybrid = dataclasses.replace(KINDS["hybrid"], experts=KINDS["sigmoid"].experts)
    decoder = Decoder(hybrid if kind == "adamw" else KINDS["sigmoid"], VOCAB, "float32")
    sharded = ParallelConfig(fsdp=2, expert=2)
    whole = make_job(root, training=training, parallel=sharded)
    whole = dataclasses.replace(whole, decoder=decoder)
    train(whole)
    before, records = final_params(whole), metrics(whole)
    group = "group_1" if kind == "adamw" else "group_0"
    assert np.abs(before["layers"][group]["router_bias"]).max() > 0
    assert len(records[0]["expert_load"]) == 2 and 0 <= records[0]["dead_experts"] < 1
    assert set(documented_keys("What a mixture of experts adds")) < set(records[0])
    shutil.rmtree(whole.folder / "checkpoints" / str(whole.steps))
    train(dataclasses.replace(whole, parallel=ParallelConfig(fsdp=2, tensor=2)))
    for left, right in zip(tree.leaves(before), tree.leaves(final_params(whole)), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-3, atol=1e-4)
    for old, new in zip(records, metrics(whole), strict=True):
        assert old["loss"] == pytest.approx(new["loss"], rel=1e-4)


def test_a_finished_run_trains_no_further(root: Path, trained: TrainingJob) -> None:
    job = make_job(root)
    shutil.copytree(trained.folder, job.folder)
    train(job)
    assert_same(final_params(trained), final_params(job))
    assert len(metrics(job)) == 6


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_the_update_norm_is_that_of_the_change_of_all_weights(root: Path, kind: str) -> None:
    """Between checkpoints that lie one step apart."""
    optimizer = OptimizerConfig(kind=kind)  # type: ignore[arg-type]
    job = make_job(root, training=TrainingConfig(batch_size=22, milestones=4, optimizer=optimizer))
    train(job)
    folder = job.folder / "checkpoints"
    weights = [
        np.concatenate([np.ravel(leaf) for leaf in tree.leaves(params)])
        for params in (checkpoints.load_params(folder, job.decoder, step) for step in range(5))
    ]
    changes = [np.linalg.norm(b - a) for a, b in itertools.pairwise(weights)]
    noted = [record["update_norm"] for record in metrics(job)]
    assert min(changes) > 1e-4
    np.testing.assert_allclose(noted, changes, rtol=1e-3)


@pytest.mark.slow
def test_stage_ends_and_milestones_are_kept(root: Path) -> None:
    job = make_job(root, training=TrainingConfig(batch_size=8, milestones=2))
    kept = kept_steps(job.selection.schedule, job.training)
    assert kept == [0, 3, 6, 9, 11]  # 88 rows of 8: stages end at rows 22, 44, 66, 88
    train(job)
    assert set(checkpoints.saved_steps(job.folder / "checkpoints")) >= {0, 3, 6, 9, 11}
    assert load_trial_record(job.folder).kept_steps == (0, 3, 6, 9, 11)


@pytest.mark.slow
def test_the_end_of_a_run_keeps_checkpoints_for_averages(root: Path) -> None:
    training = TrainingConfig(batch_size=8, milestones=1, tail_checkpoints=3, tail_fraction=0.5)
    job = make_job(root, folder="tail", training=training)
    assert tail_steps(job) == [7, 9, 11]  # thirds of the last 5.5 of 11 steps
    train(job)
    record = load_trial_record(job.folder)
    assert record.tail_steps == (7, 9, 11)
    kept = kept_steps(job.selection.schedule, job.training)
    assert record.kept_steps == tuple(kept)  # what evaluation reads one by one
    saved = checkpoints.saved_steps(job.folder / "checkpoints")
    assert {*record.kept_steps, 7} <= set(saved)
    assert averaged_steps(record, 2) == [9, 11]
    assert averaged_steps(dataclasses.replace(record, tail_steps=()), 2) == kept[-2:]


@pytest.mark.slow
def test_without_milestones_only_stage_ends_are_saved(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(root, training=TrainingConfig(batch_size=8, milestones=0))
    assert kept_steps(job.selection.schedule, job.training) == [3, 6, 9, 11]
    save, asked = Checkpointer.save, []

    def noting(self: Checkpointer, step: int, *state: Any) -> None:
        asked.append(step)
        save(self, step, *state)

    monkeypatch.setattr(Checkpointer, "save", noting)
    train(job)
    assert asked == [3, 6, 9, 11]  # the initial weights are not written to be deleted
    assert checkpoints.saved_steps(job.folder / "checkpoints") == [3, 6, 9, 11]
    assert ReferenceModelConfig().training.milestones == 0  # nobody reads what they were before


def test_another_runs_checkpoint_is_refused(root: Path, trained: TrainingJob) -> None:
    shutil.copytree(trained.folder, make_job(root).folder)
    with pytest.raises(UserError, match="other settings"):
        train(make_job(root, fingerprint="another"))


@pytest.mark.parametrize(
    "parallel",
    [
        ParallelConfig(),
        ParallelConfig(fsdp=8),
        ParallelConfig(fsdp=4, tensor=2),
        ParallelConfig(data=2, fsdp=2, tensor=2),
    ],
    ids=["replicas", "fsdp8", "fsdp4-tensor2", "data2-fsdp2-tensor2"],
)
def test_eight_devices_train_like_one(
    root: Path, trained: TrainingJob, use_devices, parallel: ParallelConfig
) -> None:
    use_devices(8)
    eight = make_job(root, folder="eight", parallel=parallel)
    train(eight)
    for left, right in zip(metrics(trained), metrics(eight), strict=True):
        assert left["loss"] == pytest.approx(right["loss"], rel=2e-5)
        assert left["grad_norm"] == pytest.approx(right["grad_norm"], rel=1e-3)
        assert left["mixture"] == right["mixture"]
        assert left["order_digest"] == right["order_digest"]


def test_a_run_goes_on_under_another_mesh(root: Path, trained: TrainingJob, use_devices) -> None:
    resumed = make_job(root, folder="resumed", parallel=ParallelConfig(fsdp=2, tensor=2))
    shutil.copytree(trained.folder, resumed.folder)
    for step in checkpoints.saved_steps(resumed.folder / "checkpoints"):
        if step > 3:
            shutil.rmtree(resumed.folder / "checkpoints" / str(step))
    use_devices(4)
    train(resumed)
    for left, right in zip(metrics(trained), metrics(resumed), strict=True):
        assert left["loss"] == pytest.approx(right["loss"], rel=2e-5)


def test_a_batch_that_does_not_divide_is_refused(root: Path, use_devices) -> None:
    use_devices(8)
    with pytest.raises(UserError, match="multiple of slice x data x fsdp"):
        train(make_job(root, training=TrainingConfig(batch_size=12)))


def test_impossible_mesh_is_refused(root: Path) -> None:
    with pytest.raises(UserError, match="does not make the 1 devices"):
        train(make_job(root, parallel=ParallelConfig(data=3)))
