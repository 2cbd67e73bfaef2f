"""Held-out evaluation of real checkpoints against sums over documents scored one by one."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from frame_jax.config.corpus import CorpusConfig, SourceConfig
from frame_jax.config.evaluation import AverageConfig, EvaluationConfig
from frame_jax.config.models import ModelConfig
from frame_jax.config.run import RunConfig
from frame_jax.config.scoring import ScoringConfig
from frame_jax.errors import UserError
from frame_jax.evaluation import held_out
from frame_jax.evaluation.results import read_result, scores_folder
from frame_jax.evaluation.weights import Weights
from frame_jax.models.transformer import Decoder, write_description
from frame_jax.parallel import processes
from frame_jax.records import write_tokens
from frame_jax.run.directory import RunDirectory, part_name, read_json, write_json
from frame_jax.run.trial_record import TrialRecord, load_trial_record, write_trial_record
from frame_jax.training.checkpointer import Checkpointer

DECODER = Decoder(
    ModelConfig(hidden_size=16, intermediate_size=32, num_layers=2, num_heads=2, num_kv_heads=1),
    vocab_size=50,
    compute_dtype="float32",
)
BOS, PARTS, STEPS = 48, 3, (2, 4)
CONTEXT = 16
Documents = dict[str, dict[str, Any]]


def make_config(root: Path, **evaluation: Any) -> RunConfig:
    return RunConfig(
        run_directory=str(root),
        corpus=CorpusConfig(sources=[SourceConfig(kind="python_library")]),
        scoring=ScoringConfig(context=CONTEXT, per_device_batch_size=2, compute_dtype="float32"),
        evaluation=EvaluationConfig(**evaluation),
    )


def write_documents(directory: RunDirectory) -> Documents:
    generator = np.random.default_rng(0)
    documents: Documents = {}
    placed = []
    for part in range(PARTS):
        path = directory.tokens / part_name(part, PARTS, ".arrayrecord")
        mine = []
        with write_tokens(path) as writer:
            for row in range(12):
                length = int(generator.integers(0, CONTEXT)) if row % 4 else 0
                tokens = generator.integers(0, BOS, length)
                writer.append(tokens)
                document = {
                    "doc_id": f"document {part}/{row}",
                    "part": part,
                    "row": row,
                    "split": ("held_out", "train", "held_out")[row % 3],
                    "source": "s",
                    "domain": ("code", "prose")[row % 2],
                    "language": ("en", "zh")[part % 2],
                    "tokens": length,
                    "bytes": 3 * length,
                }
                mine.append(document)
                quadrant = f"Q{1 + row % 4}" if row > 2 and length else None
                placed.append({**document, "quadrant": quadrant})
                documents[document["doc_id"]] = {**placed[-1], "ids": tokens}
        pq.write_table(pa.Table.from_pylist(mine), path.with_suffix(".parquet"))
    directory.quadrants.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(placed), directory.assignment)
    write_json(
        directory.tokenizer.with_name("special_tokens.json"),
        {"bos_id": BOS, "eos_id": 49, "vocab_size": 50},
    )
    return documents


def write_arm(directory: RunDirectory, arm: str) -> dict[int, Any]:
    """Checkpoints of random parameters, which are returned by step."""
    folder = directory.pretrain(arm)
    write_description(folder, DECODER)
    write_trial_record(folder, TrialRecord(STEPS[-1], 4, 8, {}, STEPS, (), ()))
    saver = Checkpointer(folder / "checkpoints", STEPS, "fingerprint")
    params = {}
    for step in STEPS:
        params[step] = jax.tree.map(lambda leaf: 3 * leaf, DECODER.init(jax.random.key(step)))
        saver.save(step, params[step], {"count": jnp.zeros(())}, {})
    saver.close()
    return params


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDirectory, Documents, Any]:
    directory = RunDirectory(tmp_path_factory.mktemp("run"))
    documents = write_documents(directory)
    params = write_arm(directory, "frame")
    held_out.evaluate_trial(make_config(directory.root), directory, "frame")
    return directory, documents, params


@jax.jit
def log_probabilities(params: Any, tokens: jax.Array) -> jax.Array:
    """[T] -> [T, V]: one document, no packing, no windows."""
    length = tokens.shape[0]
    positions = jnp.arange(length)[None]
    hidden, _ = DECODER.forward(params, tokens[None], jnp.ones((1, length), int), positions)
    return jax.nn.log_softmax(hidden[0] @ DECODER.unembedding(params).T)


def document_nll(params: Any, ids: np.ndarray) -> float:
    """NLL of one document on its own, in nats."""
    tokens = np.zeros(CONTEXT, np.int32)  # what comes after the document cannot matter
    tokens[: len(ids)] = [BOS, *ids[:-1]]
    return -float(np.asarray(log_probabilities(params, tokens))[range(len(ids)), ids].sum())


@pytest.mark.slow
def test_losses_are_those_of_each_document_alone(finished: Any) -> None:
    directory, documents, params = finished
    result = read_result(directory, "frame")
    assert [c.step for c in result.checkpoints] == list(STEPS)
    assert [c.tokens for c in result.checkpoints] == [step * 4 * 8 for step in STEPS]
    for checkpoint in result.checkpoints:
        scored = {
            doc_id: document_nll(params[checkpoint.step], document["ids"])
            for doc_id, document in documents.items()
            if document["split"] == "held_out" and document["tokens"]
        }
        slices = checkpoint.slices
        assert checkpoint.overall is slices["all"]
        assert len(slices) == 1 + 2 + 2 + 3  # empty documents leave Q1 without any
        for name, measured in slices.items():
            dimension, _, value = name.partition(": ")
            chosen = [d for d in scored if not value or documents[d][dimension] == value]
            nll = sum(scored[d] for d in chosen)
            tokens = sum(documents[d]["tokens"] for d in chosen)
            assert measured.documents == len(chosen)
            assert measured.predicted_tokens == tokens
            assert measured.bytes == 3 * tokens
            np.testing.assert_allclose(measured.nll, nll, rtol=1e-5)
            np.testing.assert_allclose(measured.nll_per_token, nll / tokens, rtol=1e-5)
            bits = nll / math.log(2) / (3 * tokens)
            np.testing.assert_allclose(measured.bits_per_byte, bits, rtol=1e-5)


def copy_inputs(directory: RunDirectory, root: Path) -> RunDirectory:
    shutil.copytree(
        directory.root, root, ignore=shutil.ignore_patterns("evaluation"), dirs_exist_ok=True
    )
    return RunDirectory(root)


def test_an_interrupted_evaluation_scores_only_what_is_missing(
    finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _, _ = finished
    directory = RunDirectory(tmp_path / "run")
    shutil.copytree(whole.root, directory.root)
    directory.evaluation("frame").unlink()
    folder = scores_folder(directory, "frame")
    before = {path: path.stat().st_ino for path in folder.rglob("*.parquet")}
    lost = folder / str(STEPS[1]) / part_name(1, PARTS, ".parquet")
    lost.unlink()
    held_out.evaluate_trial(make_config(directory.root), directory, "frame")
    after = {path: path.stat().st_ino for path in folder.rglob("*.parquet")}
    before.pop(lost)
    assert before.items() <= after.items() and after.keys() - before.keys() == {lost}
    assert read_json(directory.evaluation("frame")) == read_json(whole.evaluation("frame"))


def test_processes_share_the_work_and_agree_with_one(
    finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _, _ = finished
    directory = copy_inputs(whole, tmp_path / "run")
    config = make_config(directory.root)
    documents = held_out.held_out_documents(directory, None)
    kept = [Weights.of_step(step) for step in STEPS]
    monkeypatch.setattr(processes, "process_count", lambda: 2)
    monkeypatch.setattr(processes, "barrier", lambda name: None)
    folder, written = scores_folder(directory, "frame"), []
    for index in range(2):
        monkeypatch.setattr(processes, "process_index", lambda index=index: index)
        held_out.score_held_out(config, directory, "frame", kept, documents)
        written.append({path: path.read_bytes() for path in folder.rglob("*.parquet")})
        shutil.rmtree(folder)
    assert all(written) and not written[0].keys() & written[1].keys()
    for path, content in (written[0] | written[1]).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    record = load_trial_record(directory.pretrain("frame"))
    merged = [held_out.held_out_result(directory, "frame", record, weights) for weights in kept]
    assert tuple(merged) == read_result(whole, "frame").checkpoints


@pytest.mark.slow
def test_a_loss_that_is_not_a_number_is_refused(finished: Any, tmp_path: Path) -> None:
    directory, params = copy_inputs(finished[0], tmp_path / "run"), finished[2]
    folder = directory.pretrain("frame") / "checkpoints"
    shutil.rmtree(folder)
    saver = Checkpointer(folder, STEPS, "fingerprint")
    for step in STEPS:
        diverged = jax.tree.map(lambda leaf: jnp.nan * leaf, params[step])
        saver.save(step, diverged, {"count": jnp.zeros(())}, {})
    saver.close()
    with pytest.raises(UserError, match=f"frame/{STEPS[0]}: a loss under these weights is not a n"):
        held_out.evaluate_trial(make_config(directory.root), directory, "frame")
    assert not list((directory.root / "evaluation").rglob("*.parquet"))


def test_a_limit_takes_the_same_documents_whatever_the_parts(finished: Any) -> None:
    directory, _, _ = finished
    few, more = (
        {
            d
            for t in held_out.held_out_documents(directory, n).values()
            for d in t["doc_id"].to_pylist()
        }
        for n in (4, 9)
    )
    assert len(few) == 4 and len(more) == 9 and few < more


def test_a_lost_checkpoint_and_an_empty_split_are_named(finished: Any, tmp_path: Path) -> None:
    directory = copy_inputs(finished[0], tmp_path / "run")
    shutil.rmtree(directory.pretrain("frame") / "checkpoints" / str(STEPS[0]))
    with pytest.raises(UserError, match="no checkpoint of step 2"):
        held_out.evaluate_trial(make_config(directory.root), directory, "frame")
    for path in directory.tokens.glob("*.parquet"):
        table = pq.read_table(path).to_pylist()
        pq.write_table(pa.Table.from_pylist([{**row, "split": "train"} for row in table]), path)
    with pytest.raises(UserError, match="no held-out document"):
        held_out.evaluate_trial(make_config(directory.root), directory, "frame")


@pytest.mark.slow
def test_means_of_checkpoints_are_measured_beside_them(finished: Any, tmp_path: Path) -> None:
    whole, documents, params = finished
    directory = copy_inputs(whole, tmp_path / "run")
    config = make_config(directory.root, averages=[AverageConfig(last=2)])
    held_out.evaluate_trial(config, directory, "frame")
    measured = read_result(directory, "frame")
    (mean,) = measured.averages
    rest = dataclasses.replace(measured, averages=())
    assert rest == read_result(whole, "frame")  # the rest is as without them
    assert (mean.name, mean.steps, mean.step) == ("average-last2", STEPS, STEPS[-1])
    mixed = jax.tree.map(lambda a, b: (a + b) / 2, *(params[s] for s in STEPS))
    nll = sum(
        document_nll(mixed, d["ids"])
        for d in documents.values()
        if d["split"] == "held_out" and d["tokens"]
    )
    np.testing.assert_allclose(mean.overall.nll, nll, rtol=1e-5)


def test_an_average_of_more_checkpoints_than_there_are_is_refused(
    finished: Any, tmp_path: Path
) -> None:
    directory = copy_inputs(finished[0], tmp_path / "run")
    config = make_config(directory.root, averages=[AverageConfig(last=3)])
    with pytest.raises(UserError, match="last 3 checkpoints needs as many, and 2 were kept"):
        held_out.evaluate_trial(config, directory, "frame")
    assert not directory.evaluation("frame").exists()
