"""The same documents under other reference models, through the phases of a small run."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from frame_jax.checkpoints import load_params
from frame_jax.export.checkpoint import data_section
from frame_jax.main import main
from frame_jax.models.hugging_face.export import export_checkpoint
from frame_jax.models.transformer import read_description
from frame_jax.report.chapters import reliability_tables
from frame_jax.run.directory import RunDirectory, list_parts, read_json
from frame_jax.run.partition_record import read_partition_record
from frame_jax.run.special_tokens import read_special_tokens
from frame_jax.scoring import score
from tests.integration.small_run import settings, write_config, write_corpus

pytestmark = pytest.mark.slow


def read_all(folder: Path) -> dict[str, dict]:
    parts = [pq.read_table(part) for part in list_parts(folder, ".parquet")]
    return {line["doc_id"]: line for line in pa.concat_tables(parts).to_pylist()}


def test_scores_are_compared_with_those_of_other_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_corpus(tmp_path / "corpus.jsonl")
    given = settings(tmp_path)
    given["reference"]["replicas"] = 2
    given["scoring"]["reliability"] = 90
    path = write_config(tmp_path, **given)
    command, directory = (
        ["--config", str(path), "--until", "partition"],
        RunDirectory(given["run_directory"]),
    )
    assert main([*command, "--plan"]) == 0
    planned = capsys.readouterr().out
    assert "sample, weak" in planned and "replica, strong" in planned
    assert main(command) == 0
    shown = capsys.readouterr().err
    assert "the same documents under other reference models" in shown
    found = read_json(directory.partition)["reliability"]
    assert [(line["compared_with"], line["domain"]) for line in found] == [
        (models, domain) for models in ("half", "replica") for domain in (None, "code", "prose")
    ]
    scores = read_all(directory.scores)
    for name in ("half", "replica"):
        others = read_all(directory.reliability / name)
        assert 60 <= len(others) <= 90 and set(others) <= set(scores)
        assert all(other["nll_weak"] != scores[key]["nll_weak"] for key, other in others.items())
    assert all(0.5 < line["ppl"]["value"] < 1 for line in found if line["domain"] is None)

    # Compared with themselves, the models give the same scores, and nothing changes its quadrant.
    monkeypatch.setattr(score, "other_references", lambda *_: {"weak": ("weak", None)})
    assert main([*command, "--redo", "score-replica"]) == 0
    for key, other in read_all(directory.reliability / "replica").items():
        assert other["nll_strong"] == pytest.approx(scores[key]["nll_strong"], rel=1e-5)
    before = directory.assignment.read_bytes()
    assert main([*command, "--redo", "partition"]) == 0
    assert directory.assignment.read_bytes() == before
    everything = read_json(directory.partition)["reliability"][3]
    assert (everything["compared_with"], everything["domain"]) == ("replica", None)
    assert everything["pd"]["value"] > 0.99 and everything["quadrant"]["value"] > 0.97
    monkeypatch.undo()

    # A third model beside those that were trained here, once the quadrants are there.
    replica = directory.reference("strong-replica")
    decoder = read_description(replica, compute_dtype="float32")
    export_checkpoint(
        *(tmp_path / "third", decoder, load_params(replica / "checkpoints", decoder)),
        tokenizer=directory.tokenizer,
        special_tokens=read_special_tokens(directory),
        context=64,
        shard_bytes=1 << 30,
    )
    with_third = [*command, "--reference.third", str(tmp_path / "third")]
    before = directory.partition.read_bytes()
    capsys.readouterr()
    assert main(with_third) == 0 and directory.partition.read_bytes() == before
    said = capsys.readouterr().err
    assert said.startswith("score-third begins") and said.count(" begins") == 1
    assert main([*with_third, "--redo", "partition"]) == 0
    found = read_json(directory.partition)["reliability"]
    assert [line["compared_with"] for line in found] == 3 * ["half"] + 3 * ["replica"] + 3 * [
        "third"
    ]
    assert 0.5 < found[6]["ppl"]["value"] < 1
    assert "third (at most)" in capsys.readouterr().err
    shared = "a third model in the strong one's place (at most: the weak one is shared)"
    assert f"With {shared}, " in data_section(directory)
    report = " ".join(map(str, reliability_tables(read_partition_record(directory))))
    assert "third (at most)" in report and "A third model shares the weak one" in report


def test_a_run_of_an_older_release_has_nothing_to_compare_with(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus.jsonl")
    given = settings(tmp_path)
    given["scoring"]["reliability"] = 0
    command = ["--config", str(write_config(tmp_path, **given)), "--until", "partition"]
    assert main(command) == 0
    directory = RunDirectory(given["run_directory"])
    asked = [*command, "--scoring.reliability", "50"]
    before = directory.partition.read_bytes()
    assert main(asked) == 0 and directory.partition.read_bytes() == before  # finished as it was
    assert main([*asked, "--redo", "score"]) == 0  # whose reference models have kept no half
    assert directory.partition.read_bytes() == before and not directory.reliability.exists()
