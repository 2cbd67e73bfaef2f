"""docs/examples beyond what test_documentation runs: scores without a model order a whole run."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from frame_jax.main import main
from frame_jax.run.directory import RunDirectory
from tests.integration.small_run import settings, write_config, write_corpus
from tests.programs import REPOSITORY


@pytest.mark.slow
def test_simple_scores_order_a_corpus(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus.jsonl")
    given = settings(tmp_path)
    table = tmp_path / "simple.parquet"
    given["corpus"]["reference_fraction"] = 0.0
    given["pretrain"]["training"] |= {"steps": 2, "milestones": 0}
    given["scoring"]["table"] = {"path": str(table), "ppl": "bytes_per_byte", "pd": "saved"}
    given["partition"]["group_by"] = []
    given["curricula"] = {"frame": {"preset": "frame"}}
    config = write_config(tmp_path, **given)

    example = runpy.run_path(str(REPOSITORY / "docs/examples/simple_scores.py"))
    example["main"](str(config), str(table))
    repeated, various = (example["compressed_sizes"](t)[0] for t in ("ab" * 200, "ab cd xyz q"))
    assert repeated < 0.1 < various

    texts = ["ab" * 50, "abc"]
    bits = example["bigram_bits"](iter(texts)).reshape(256, 256)
    np.testing.assert_allclose((2.0**-bits).sum(axis=1), 1.0)  # of what follows each byte
    after_b = {"a": 49 + 1, "c": 1 + 1}  # as often as it was seen, and once more
    for letter, count in after_b.items():
        np.testing.assert_allclose(bits[ord("b"), ord(letter)], np.log2((50 + 256) / count))
    np.testing.assert_allclose(
        bits.ravel()[example["byte_pairs"]("ab")], [bits[10, 97], bits[97, 98]]
    )

    assert main(["--config", str(config), "--until", "pretrain"]) == 0
    directory = RunDirectory(given["run_directory"])
    assigned = pq.read_table(directory.assignment).to_pylist()
    sizes = {line["doc_id"]: line for line in pq.read_table(table).to_pylist()}
    assert len(sizes) == len(assigned) == 600
    for line in assigned:
        own = sizes[line["doc_id"]]
        assert (line["ppl"], line["pd"]) == (own["bytes_per_byte"], own["saved"])
        assert 0 < own["bigram"] < 8 and own["bytes"] <= 700 * 4
    half = {
        q: [line["ppl"] for line in assigned if line["quadrant"] in q] for q in ("Q1Q2", "Q3Q4")
    }
    assert max(half["Q1Q2"]) <= min(half["Q3Q4"])
    assert (directory.pretrain("frame") / "metrics.jsonl").read_text().count("\n") == 2
