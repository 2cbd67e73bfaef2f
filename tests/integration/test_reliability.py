"""The same documents under other reference models, through the phases of a small run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from frame_jax.main import main
from frame_jax.run.directory import RunDirectory, list_parts, read_json
from frame_jax.scoring import reliability
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
    assert "reliability, weak" in planned and "replica, strong" in planned
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
    shutil.rmtree(directory.reliability)
    same = {"half": [("weak", None), ("strong", None)]}
    monkeypatch.setattr(reliability, "other_references", lambda *_: same)
    assert main([*command, "--redo", "score-reliability"]) == 0
    for key, other in read_all(directory.reliability / "half").items():
        assert other["nll_strong"] == pytest.approx(scores[key]["nll_strong"], rel=1e-5)
    before = directory.assignment.read_bytes()
    assert main([*command, "--redo", "partition"]) == 0
    assert directory.assignment.read_bytes() == before
    everything = read_json(directory.partition)["reliability"][0]
    assert everything["pd"]["value"] > 0.99 and everything["quadrant"]["value"] > 0.97


def test_a_run_of_an_older_release_has_nothing_to_compare_with(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus.jsonl")
    given = settings(tmp_path)
    given["scoring"]["reliability"] = 0
    command = ["--config", str(write_config(tmp_path, **given)), "--until", "partition"]
    assert main(command) == 0
    directory = RunDirectory(given["run_directory"])
    markers = {name: directory.marker(name).read_bytes() for name in ("score", "partition")}
    assert main([*command, "--scoring.reliability", "50"]) == 0  # which the references do not know
    assert read_json(directory.marker("score-reliability"))["summary"] == {"compared_with": []}
    assert markers == {name: directory.marker(name).read_bytes() for name in markers}
