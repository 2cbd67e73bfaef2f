"""A whole run on a mixture: refused before models are trained, then planned, trained and shown."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from frame_jax import export_order, export_scores, inspect, verify_order
from frame_jax.main import main
from frame_jax.run.directory import RunDirectory, list_parts, read_json
from tests.integration.small_run import settings, write_config, write_corpus
from tests.programs import free_port, side_by_side

pytestmark = pytest.mark.slow


def test_a_mixture_goes_through_every_phase(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_corpus(tmp_path / "corpus.jsonl")
    given = settings(tmp_path)
    given["corpus"]["reference_fraction"] = 0.0
    given["partition"] |= {"mixture": {"by": "domain", "repeats": {"prose": 1.5, "cod": 0.5}}}
    given["scoring"]["table"] = {"path": str(tmp_path / "t.parquet"), "ppl": "a", "pd": "b"}
    given["curricula"] = {"frame": {"preset": "frame"}}
    directory = RunDirectory(given["run_directory"])

    def command() -> list[str]:
        return ["--config", str(write_config(tmp_path, **given))]

    def shown() -> str:
        return " ".join("".join(capsys.readouterr()).split())

    pq.write_table(pa.table({"doc_id": ["x"], "a": [1.0], "b": [1.0]}), tmp_path / "t.parquet")
    assert main([*command(), "--plan"]) == 0 and "known once the corpus is tokenized" in shown()
    for _ in range(2):  # where it is tokenized, and where it is tokenized already
        assert main(command()) == 2
        assert "has the domain 'cod'; there are: 'code', 'prose'" in shown()
        assert read_json(directory.marker("tokenize"))["complete"]
        assert not directory.marker("score").exists()
    tokens = [pq.read_table(part) for part in list_parts(directory.tokens, ".parquet")]
    ids = pa.concat_tables(tokens)["doc_id"].to_pylist()
    random = np.random.default_rng(0)
    columns = {"doc_id": ids, "a": random.normal(size=len(ids)), "b": random.random(len(ids))}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")

    given["partition"]["mixture"] = {"by": "domain", "weights": {"code": 3}, "tokens": 1e9}
    assert main([*command(), "--plan"]) == 2 and "max_repeats is 4" in shown()
    given["partition"]["mixture"] = {"by": "domain", "repeats": {"prose": 1.5, "code": 0.5}}
    assert main([*command(), "--plan"]) == 0
    planned = shown()
    assert "what an epoch reads, by domain" in planned and "Q1" not in planned.split("frame:")[0]
    assert main(command()) == 0
    record, table = read_json(directory.partition)["mixture"], shown()
    for group, repeats in zip(record["groups"], (0.5, 1.5), strict=True):
        assert group["repeats"] == repeats and sum(group["quadrants"].values()) == group["read"]
        assert group["read"] == pytest.approx(repeats * group["tokens"], rel=0.15)
        assert f"{group['read']:,}" in planned and f"{group['read']:,}" in table
    page = (directory.report / "index.html").read_text("utf-8")
    assert "How often documents are read</h2>" in page and "share wanted" in page
    assert main([*command(), "--plan"]) == 0 and "Q4" in shown().split("frame:")[0]

    root = str(directory.root)
    assert export_scores.main([root, "--out", str(tmp_path / "scores.parquet")]) == 0
    copies = {
        line["doc_id"]: line["copies"]
        for line in pq.read_table(tmp_path / "scores.parquet").to_pylist()
    }
    assert {1, 2} <= set(copies.values()) and len(copies) == len(ids)
    assert export_order.main([root, "--to", "manifest"]) == 0
    assert verify_order.main([root]) == 0 and "frame: verified" in shown()
    parts = sorted(directory.manifest("frame").glob("part-*.parquet"))
    lines = pa.concat_tables([pq.read_table(part) for part in parts]).to_pylist()
    begins = Counter(
        span["doc_id"]
        for line in lines
        for span in line["documents"]
        if span["first"] == 0 < span["stop"] - span["start"]
    )
    assert begins == Counter(copies)  # each copy has one row, and one piece, with its beginning
    assert inspect.main([root, "--domain", "prose", "-n", "60"]) == 0
    assert ", 2 times an epoch" in shown()
    given["partition"]["mixture"]["repeats"]["code"] = 0.6
    assert main(command()) == 2
    assert "partition.mixture.repeats.code: 0.5 then, 0.6 now" in shown()


@pytest.mark.processes
def test_all_processes_of_a_run_refuse_a_mixture_before_models_are_trained(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus.jsonl")
    given = settings(tmp_path)
    given["partition"] |= {"mixture": {"by": "language", "repeats": {"de": 2}}}
    command = ["-m", "frame_jax.main", "--config", str(write_config(tmp_path, **given))]
    command += ["--parallel.distributed", "true", "--parallel.num_processes", "2"]
    command += ["--parallel.coordinator_address", f"localhost:{free_port()}"]
    results = side_by_side(*([*command, f"--parallel.process_id={i}"] for i in range(2)))
    for code, output in results:
        assert code == 2 and "no training document has the language 'de'" in output, output
    directory = RunDirectory(given["run_directory"])
    assert read_json(directory.marker("tokenize"))["complete"]
    assert not directory.reference("rows").exists()
