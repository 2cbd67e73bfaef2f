"""A whole run on scores made elsewhere: no reference model, FRAME's schedule, a report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from frame_jax import inspect
from frame_jax.export.checkpoint import main as export_checkpoint
from frame_jax.export_scores import main as export_scores
from frame_jax.main import main
from frame_jax.run.directory import RunDirectory, list_parts, read_json
from tests.integration.small_run import settings, write_config, write_corpus

pytestmark = pytest.mark.slow


def test_other_people_s_scores_go_through_every_phase(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_corpus(tmp_path / "corpus.jsonl")
    given = settings(tmp_path)
    given["corpus"]["reference_fraction"] = 0.0
    given["pretrain"]["training"] |= {"steps": 1, "milestones": 0}
    given["scoring"]["table"] = {
        "path": str(tmp_path / "theirs.parquet"),
        "ppl": "<education>",
        "pd": "toxicity",
    }
    command = ["--config", str(write_config(tmp_path, **given))]
    directory = RunDirectory(given["run_directory"])

    assert main([*command, "--until", "tokenize"]) == 0
    tokens = [pq.read_table(part) for part in list_parts(directory.tokens, ".parquet")]
    ids = pa.concat_tables(tokens)["doc_id"].to_pylist()
    random = np.random.default_rng(0)
    columns = {
        "doc_id": random.permutation(ids),
        "<education>": random.normal(0, 2, len(ids)),
        "toxicity": random.random(len(ids)),
    }
    pq.write_table(pa.table(columns), tmp_path / "theirs.parquet")

    capsys.readouterr()
    assert main([*command, "--plan"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "(scoring.table): no reference model is trained" in shown
    assert "reference-weak" not in shown and "scoring, weak" not in shown

    assert main(command) == 0
    assert not directory.reference("weak").exists()
    marker = read_json(directory.marker("score"))
    assert marker["complete"] and marker["summary"]["documents"] == len(ids)
    page = (directory.report / "index.html").read_text("utf-8")
    assert "&lt;education&gt; and toxicity</h2>" in page and "made elsewhere" in page
    assert "Q2: low &lt;education&gt;, high toxicity" in page
    assert main(command) == 0 and "nothing to do" in capsys.readouterr().err

    assert inspect.main([str(directory.root), "--quadrant", "Q2", "--by", "highest-ppl"]) == 0
    assert "Q2  <education> " in capsys.readouterr().out
    card = ["--trial", "frame", "--out", str(tmp_path / "model")]
    assert export_checkpoint([str(directory.root), *card]) == 0
    text = (tmp_path / "model/README.md").read_text("utf-8")
    assert "two numbers that were made elsewhere" in text and "| <education> | toxicity |" in text

    assert export_scores([str(directory.root), "--out", str(tmp_path / "ours.parquet")]) == 0
    rows = pq.read_table(tmp_path / "ours.parquet").to_pylist()
    theirs = dict(zip(columns["doc_id"], columns["<education>"], strict=True))
    assert all(row["ppl"] == theirs[row["doc_id"]] for row in rows)
    assert {row["nll_weak"] for row in rows} == {row["bits_per_byte_strong"] for row in rows}
    assert {row["nll_weak"] for row in rows} == {None}
