"""The final loss on training rows, and when each was trained on, against one row at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest

from frame_jax.config.corpus import CorpusConfig, SourceConfig
from frame_jax.config.curriculum import CurriculumConfig
from frame_jax.config.evaluation import EvaluationConfig
from frame_jax.config.models import ModelConfig
from frame_jax.config.quadrants import PartitionConfig, RowsConfig
from frame_jax.config.run import RunConfig
from frame_jax.config.scoring import ScoringConfig
from frame_jax.config.training import PretrainConfig, TrainingConfig
from frame_jax.evaluation import training_rows
from frame_jax.evaluation.results import TrainingRowsResult
from frame_jax.models.transformer import Decoder, write_description
from frame_jax.parallel import processes
from frame_jax.records import TokenReader
from frame_jax.run.directory import RunDirectory, write_json
from frame_jax.run.special_tokens import SpecialTokens
from frame_jax.run.trial_record import TrialRecord, write_trial_record
from frame_jax.training.checkpointer import Checkpointer
from frame_jax.training.phases import trial_order
from frame_jax.training.train_step import loss_fn, make_lm_batch
from tests.training.rows import BOS, EOS, LENGTH, ROWS, VOCAB, write_rows

BATCH, FINAL = 4, 15  # 60 of the 88 rows
DECODER = Decoder(
    ModelConfig(hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2, num_kv_heads=1),
    VOCAB,
    "float32",
)


def make_config(root: Path, rows: int, **curriculum: Any) -> RunConfig:
    training = TrainingConfig(batch_size=BATCH, steps=FINAL, compute_dtype="float32")
    return RunConfig(
        run_directory=str(root),
        corpus=CorpusConfig(sources=[SourceConfig(kind="python_library")]),
        scoring=ScoringConfig(context=24, per_device_batch_size=3, compute_dtype="float32"),
        partition=PartitionConfig(rows=RowsConfig(sequence_length=LENGTH, parts=1)),
        pretrain=PretrainConfig(training=training),
        curricula={
            "frame": CurriculumConfig(preset="frame", **curriculum),
            "random": CurriculumConfig(preset="random", **curriculum),
            "again": CurriculumConfig(preset="random_again", **curriculum),
        },
        evaluation=EvaluationConfig(training_rows=rows),
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDirectory, Any]:
    directory = RunDirectory(tmp_path_factory.mktemp("run"))
    write_rows(directory.quadrants)
    special = {"bos_id": BOS, "eos_id": EOS, "vocab_size": VOCAB}
    write_json(directory.tokenizer.with_name("special_tokens.json"), special)
    params = jax.tree.map(lambda leaf: 3 * leaf, DECODER.init(jax.random.key(1)))
    record = TrialRecord(FINAL, BATCH, LENGTH, {}, (FINAL,), (), ())
    for arm in ("frame", "random", "again"):
        folder = directory.pretrain(arm)
        write_description(folder, DECODER)
        write_trial_record(folder, record)
        saver = Checkpointer(folder / "checkpoints", [FINAL], "f")
        saver.save(FINAL, params, {"count": jnp.zeros(())}, {})
        saver.close()
    return directory, params


def lines(directory: RunDirectory, result: TrainingRowsResult) -> list[dict[str, Any]]:
    paths = sorted((directory.root / result.folder).glob("part-*.parquet"))
    return [line for path in paths for line in pq.read_table(path).to_pylist()]


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["frame", "again"])
def test_losses_and_steps_are_those_of_each_row_alone(
    run: tuple[RunDirectory, Any], arm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, params = run
    monkeypatch.setattr(training_rows, "ROWS_PER_PART", 7)
    monkeypatch.setattr(training_rows, "SELECTED_AT_ONCE", 11)
    config = make_config(directory.root, 30)
    result = training_rows.measure_training_rows(config, directory, arm)
    assert result is not None
    found = lines(directory, result)
    selection, _ = trial_order(config, directory, config.trial(arm))
    trained = {
        (selection.schedule.quadrants[quadrant], row): index // BATCH
        for index, (quadrant, row) in enumerate(selection[i] for i in range(len(selection)))
    }
    assert len(found) == result.rows and 20 <= len(found) <= 40
    for line in found:
        assert trained[line["quadrant"], line["row"]] == line["step"]
        (path,) = (directory.quadrants / line["quadrant"]).glob("part-*.arrayrecord")
        row = np.array(TokenReader(path).read([line["row"]]), np.int32)
        seen = make_lm_batch(jnp.asarray(row), SpecialTokens(BOS, EOS, VOCAB), True)
        nll = loss_fn(DECODER, params, seen, 1, TrainingConfig())[1].nll
        assert line["predicted_tokens"] == seen.loss_mask.sum()
        np.testing.assert_allclose(line["nll"], nll, rtol=2e-5)


def test_every_arm_is_measured_on_the_same_rows(run: tuple[RunDirectory, Any]) -> None:
    directory, _ = run
    config = make_config(directory.root, 20)
    samples = []
    for arm in ("frame", "random", "again"):
        result = training_rows.measure_training_rows(config, directory, arm)
        assert result is not None
        found = lines(directory, result)
        samples.append({(line["quadrant"], line["row"]): line["step"] for line in found})
    assert samples[0].keys() == samples[1].keys() == samples[2].keys()
    assert len({tuple(sample.values()) for sample in samples}) == 3


def test_of_several_epochs_the_last_counts(run: tuple[RunDirectory, Any]) -> None:
    config = make_config(run[0].root, 4 * ROWS, epochs=2)
    selection, _ = trial_order(config, run[0], config.trial("frame"))
    sample = training_rows.choose_rows(selection, 4 * ROWS, BATCH)
    last = {selection[i]: i // BATCH for i in range(len(selection))}
    found = zip(sample.quadrant.tolist(), sample.row.tolist(), strict=True)
    assert dict(zip(found, sample.step.tolist(), strict=True)) == last
    assert len(last) < len(selection)  # some rows were trained on twice


def test_processes_share_parts(
    run: tuple[RunDirectory, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, _ = run
    monkeypatch.setattr(training_rows, "ROWS_PER_PART", 5)
    config = make_config(directory.root, 25)
    whole = training_rows.measure_training_rows(config, directory, "random")
    assert whole is not None
    folder = directory.root / whole.folder
    before = {path: pq.read_table(path) for path in folder.iterdir()}
    for path in before:
        path.unlink()
    monkeypatch.setattr(processes, "process_count", lambda: 2)
    monkeypatch.setattr(processes, "barrier", lambda name: None)
    written = []
    for index in (1, 0):
        monkeypatch.setattr(processes, "process_index", lambda index=index: index)
        for path in folder.iterdir():
            path.unlink()
        training_rows.measure_training_rows(config, directory, "random")
        written.append({path: pq.read_table(path) for path in folder.iterdir()})
    assert all(written) and not written[0].keys() & written[1].keys()
    assert written[0] | written[1] == before
