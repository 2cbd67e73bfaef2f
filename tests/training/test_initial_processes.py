"""Several processes that start from a model: each reads its shards, and all train as one does."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from frame_jax.config.models import ModelConfig
from frame_jax.config.training import InitialConfig
from frame_jax.models.hugging_face.export import model_config, write_weights
from frame_jax.models.transformer import Decoder
from frame_jax.run.directory import write_json
from frame_jax.training.trainer import train
from frame_jax.training.training_job import TrainingJob
from tests.programs import free_port, side_by_side
from tests.robustness.test_processes import assert_same_curve, finish, forget_after, start
from tests.training.rows import make_job, write_rows
from tests.training.test_initial import run_of, write_checkpoint

SHAPE = ModelConfig(
    hidden_size=256, intermediate_size=1024, num_layers=8, num_heads=4, num_kv_heads=4
)


@pytest.mark.processes
def test_each_of_four_processes_reads_its_quarter_alone(tmp_path: Path) -> None:
    decoder = Decoder(SHAPE, 512)
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: random.random(leaf.shape, np.float32), decoder.shapes())
    write_json(tmp_path / "config.json", model_config(decoder, 0, 1, 64))
    write_weights(tmp_path, decoder, params, 8_000_000)
    size, port = 4 * decoder.parameter_count(), free_port()
    worker = ["-m", "tests.training.initial_worker", str(tmp_path), str(port), "4"]
    for code, output in side_by_side(*([*worker, str(i)] for i in range(4))):
        assert code == 0, output
        found = json.loads(next(line for line in output.splitlines() if line.startswith("{")))
        print(f"{size:,} bytes in all, of which {found}")
        assert found["same"]
        assert found["read"] < 0.26 * size  # norms are whole on each
        assert found["peak"] < 0.5 * size


@pytest.mark.processes
@pytest.mark.parametrize("kind", ["checkpoint", "run"])
def test_two_processes_start_from_a_model_and_four_go_on(
    kind: str, tmp_path: Path, trained: TrainingJob
) -> None:
    write_rows(tmp_path)
    settings = {"checkpoint": str(tmp_path / "model")}
    if kind == "checkpoint":
        write_checkpoint(tmp_path / "model")
    else:
        run_of(tmp_path / "other", trained)
        settings = {"run": str(tmp_path / "other"), "weights": "last2"}
    initial = InitialConfig(**settings)  # type: ignore[arg-type]
    alone = dataclasses.replace(make_job(tmp_path, folder="alone"), initial=initial)
    train(alone)
    run = make_job(tmp_path)
    finish(start(tmp_path, count=2, initial=settings))
    forget_after(run.folder / "checkpoints", 3)
    finish(start(tmp_path, count=4, initial=settings))
    assert_same_curve(alone, run)
