"""Training that starts from a model: which weights, which shape, and what is refused."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from jax import tree

from frame_jax import checkpoints
from frame_jax.config.corpus import CorpusConfig, SourceConfig
from frame_jax.config.models import ModelConfig, RopeScalingConfig
from frame_jax.config.parallel import ParallelConfig
from frame_jax.config.run import RunConfig
from frame_jax.config.training import (
    InitialConfig,
    PretrainConfig,
    TrainingConfig,
)
from frame_jax.errors import UserError
from frame_jax.models.hugging_face.export import model_config, write_weights
from frame_jax.models.transformer import Decoder
from frame_jax.run.directory import RunDirectory, write_dataclass, write_json
from frame_jax.run.markers import Marker
from frame_jax.training import initial_digest
from frame_jax.training.initial import disagreements, target_decoder, trial_weights
from frame_jax.training.trainer import train
from frame_jax.training.training_job import TrainingJob, kept_steps
from tests.training.rows import BOS, EOS, LENGTH, VOCAB, make_job, write_rows
from tests.training.test_trainer import assert_same, final_params, metrics


def write_checkpoint(folder: Path, seed: int = 5, shard_bytes: int = 9_000) -> dict:
    """The tests' small model with weights of its own, as a Hugging Face folder."""
    decoder = make_job(folder).decoder
    params = tree.map(np.asarray, decoder.init(jax.random.key(seed)))
    folder.mkdir(parents=True)
    write_json(folder / "config.json", model_config(decoder, BOS, EOS, LENGTH))
    write_weights(folder, decoder, params, shard_bytes)
    return params


def continued(root: Path, initial: InitialConfig, **changes: object) -> TrainingJob:
    return dataclasses.replace(make_job(root, **changes), initial=initial)  # type: ignore[arg-type]


def run_of(root: Path, job: TrainingJob, trial: str = "frame") -> None:
    """Makes the trained job a trial of the run in `root`, as far as others read it."""
    shutil.copytree(job.folder, RunDirectory(root).pretrain(trial))
    write_dataclass(RunDirectory(root).marker(f"pretrain-{trial}"), Marker(True, "f"))


def saved(job: TrainingJob, step: int) -> dict:
    return checkpoints.load_params(job.folder / "checkpoints", job.decoder, step)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_rows(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_a_run_starts_from_the_checkpoints_weights_and_goes_on_after_a_kill(root: Path) -> None:
    params = write_checkpoint(root / "model")
    training = TrainingConfig(batch_size=16, compute_dtype="float32", milestones=0)
    initial = InitialConfig(checkpoint=str(root / "model"))
    job = continued(root, initial, training=training)
    assert 0 not in kept_steps(job.selection.schedule, training)
    train(job)
    assert_same(saved(job, 0), params)
    before = metrics(job)
    scratch = make_job(root, folder="scratch", training=training)
    train(scratch)
    assert before[0]["loss"] != metrics(scratch)[0]["loss"]
    assert [m["learning_rate"] for m in before] == [m["learning_rate"] for m in metrics(scratch)]
    last = final_params(job)
    for step in checkpoints.saved_steps(job.folder / "checkpoints"):
        if step > 2:
            shutil.rmtree(job.folder / "checkpoints" / str(step))
    shutil.rmtree(root / "model")  # is read at the start alone
    write_checkpoint(root / "model", seed=6)  # and another one there changes nothing
    train(job)
    assert_same(final_params(job), last)


def test_devices_start_from_the_same_weights(root: Path, use_devices) -> None:
    """Replicas and shards, which train alike: no device writes where another one reads."""
    write_checkpoint(root / "model")
    initial = InitialConfig(checkpoint=str(root / "model"))
    train(alone := continued(root, initial, folder="alone"))
    for name, parallel in (
        ("replicas", ParallelConfig()),
        ("shards", ParallelConfig(data=2, fsdp=2, tensor=2)),
    ):
        use_devices(8)
        train(job := continued(root, initial, folder=name, parallel=parallel))
        assert_same(saved(job, 0), saved(alone, 0))
        for left, right in zip(metrics(alone), metrics(job), strict=True):
            assert left["loss"] == pytest.approx(right["loss"], rel=2e-5)


@pytest.mark.slow
def test_a_run_starts_from_a_step_or_an_average_of_another(root: Path, use_devices) -> None:
    training = TrainingConfig(batch_size=16, compute_dtype="float32", milestones=2)
    train(first := make_job(root, training=training))
    other = root / "other"
    run_of(other, first)
    kept = checkpoints.saved_steps(first.folder / "checkpoints")
    mean = checkpoints.mean_of_checkpoints([saved(first, s) for s in kept[-2:]])
    use_devices(4)
    for number, (settings, expected) in enumerate(
        (
            ({}, final_params(first)),
            ({"step": kept[1]}, saved(first, kept[1])),
            ({"weights": "last2", "trial": "frame"}, mean),
        )
    ):
        initial = InitialConfig(run=str(other), **settings)  # type: ignore[arg-type]
        parallel = ParallelConfig(fsdp=2, tensor=2)
        name = f"continued{number}"
        job = continued(root, initial, folder=name, training=training, parallel=parallel)
        train(job)
        found = saved(job, 0)
        tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)
        assert metrics(job)[0]["loss"] < metrics(first)[0]["loss"] - 0.1


def test_which_trial_is_meant_must_be_clear(root: Path, trained: TrainingJob) -> None:
    def refused(message: str, **settings: object) -> None:
        with pytest.raises(UserError, match=message):
            trial_weights(InitialConfig(run=str(root / "other"), **settings))  # type: ignore[arg-type]

    refused("0 trained trials: train one there first")
    run_of(root / "other", trained)
    assert trial_weights(InitialConfig(run=str(root / "other"))).steps == (6,)
    run_of(root / "other", trained, "random-seed1")
    refused("2 trained trials: name one of frame, random-seed1")
    refused("no trained curriculum 'reverse'; there are: frame, random-seed1", trial="reverse")
    refused("needs as many, and", trial="frame", weights="last99")
    write_dataclass(RunDirectory(root / "other").marker("pretrain-frame"), Marker(False, "f"))
    refused("is not trained to its end", trial="frame")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "either checkpoint or run"),
        ({"checkpoint": "a", "run": "b"}, "either checkpoint or run"),
        ({"checkpoint": "a", "step": 3}, "go with run"),
        ({"run": "a", "step": 3, "weights": "last6"}, "keep one"),
        ({"run": "a", "weights": "last"}, "such as last6"),
        ({"run": "a", "weights": "last6-0.9"}, "such as last6"),
        ({"run": "a", "step": -1}, "at least 0"),
    ],
)
def test_settings_that_say_nothing_or_two_things_are_refused(settings, message: str) -> None:
    with pytest.raises(UserError, match=message):
        InitialConfig(**settings)


def config_of(root: Path, **pretrain: object) -> RunConfig:
    return RunConfig(
        run_directory=str(root / "run"),
        corpus=CorpusConfig([SourceConfig("python_library")]),
        pretrain=PretrainConfig(
            initial=InitialConfig(checkpoint=str(root / "model")),
            **pretrain,  # type: ignore[arg-type]
        ),
    )


def test_the_targets_shape_is_the_models_and_another_is_refused_by_key(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model")
    values = json.loads((tmp_path / "model/config.json").read_text())
    write_json(tmp_path / "model/config.json", values | {"max_position_embeddings": 64})
    with pytest.raises(UserError, match="reads at most 64 tokens"):
        target_decoder(config_of(tmp_path), 7)
    write_json(tmp_path / "model/config.json", values | {"max_position_embeddings": 1 << 20})
    shape = make_job(tmp_path).decoder.config
    assert target_decoder(config_of(tmp_path), 7) == Decoder(
        dataclasses.replace(shape, head_dim=8), VOCAB
    )
    same = ModelConfig(hidden_size=32, layers=("attention+dense",) * 2, num_layers=2, head_dim=8)
    assert target_decoder(config_of(tmp_path, model=same), 7).config.hidden_size == 32
    other = dataclasses.replace(same, hidden_size=64, qkv_bias=True)
    with pytest.raises(UserError) as caught:
        target_decoder(config_of(tmp_path, model=other), 7)
    assert re.findall(r"pretrain\.model\.\S+: .*", str(caught.value)) == [
        "pretrain.model.hidden_size: 64 in the config, 32 there",
        "pretrain.model.qkv_bias: True in the config, False there",
    ]


def test_a_stretch_that_the_model_does_not_have_is_a_disagreement() -> None:
    stretched = ModelConfig(rope_scaling=RopeScalingConfig(8.0, 1.0, 4.0, 64))
    assert len(disagreements(stretched, ModelConfig())) == 4
    assert disagreements(ModelConfig(), stretched) == []


def test_other_weights_have_another_digest_and_the_same_are_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, directory = config_of(tmp_path), RunDirectory(tmp_path / "run")
    write_checkpoint(tmp_path / "model")
    assert initial_digest.recorded_digest(config, directory) == initial_digest.UNKNOWN
    digest = initial_digest.agreed_digest(config, initial_digest.UNKNOWN)
    directory.root.mkdir()
    inputs = {"partition": "p", "initial weights": digest}
    write_dataclass(directory.marker("pretrain-frame"), Marker(False, "f", {}, inputs))
    initial_digest.write_record(config, directory, "pretrain-frame")
    assert initial_digest.recorded_digest(config, directory) == digest
    with monkeypatch.context() as patch:
        patch.setattr(initial_digest, "weights_digest", lambda initial: pytest.fail("read again"))
        assert initial_digest.agreed_digest(config, digest) == digest

    shutil.rmtree(tmp_path / "model")
    assert initial_digest.recorded_digest(config, directory) == digest  # gone, and needed no more
    write_checkpoint(tmp_path / "model")
    assert initial_digest.recorded_digest(config, directory) == initial_digest.UNKNOWN  # newer
    assert initial_digest.agreed_digest(config, initial_digest.UNKNOWN) == digest  # but the same
    shutil.rmtree(tmp_path / "model")
    write_checkpoint(tmp_path / "model", seed=6)
    assert initial_digest.agreed_digest(config, initial_digest.UNKNOWN) != digest
    with pytest.raises(UserError, match="have changed since this program was started"):
        initial_digest.write_record(config, directory, "pretrain-frame")


@pytest.mark.slow
def test_another_runs_weights_have_the_digests_of_their_checkpoints(
    tmp_path: Path, trained: TrainingJob
) -> None:
    run_of(tmp_path, trained)
    whole = InitialConfig(run=str(tmp_path))
    found = {
        initial_digest.weights_digest(initial)
        for initial in (whole, dataclasses.replace(whole, step=2), whole)
    }
    assert len(found) == 2
    with pytest.raises(UserError, match="cannot be read"):
        initial_digest.weights_digest(dataclasses.replace(whole, step=1))
