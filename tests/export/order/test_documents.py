"""The order by document: how far whoever reads whole documents deviates, against every row."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from frame_jax.export.order.documents import write_documents
from frame_jax.export.order.manifest import write_manifest
from frame_jax.export.order.trial_order import make_trial_order
from tests.export.order.packed_run import make_run


@pytest.mark.parametrize(("packing", "curriculum"), [("concat", "frame"), ("best_fit", "twice")])
def test_a_follower_deviates_as_the_documentation_says(
    tmp_path: Path, packing: str, curriculum: str
) -> None:
    config, directory = make_run(tmp_path / "run", packing=packing)
    plan = make_trial_order(config, directory, curriculum)
    write_manifest(config, directory, plan, tmp_path / "manifest")
    write_documents(config, directory, plan, tmp_path / "out")
    order = pq.read_table(tmp_path / "out" / "order.parquet").to_pylist()
    rows = (
        pq.read_table(sorted((tmp_path / "manifest").glob("*.parquet"))).sort_by("row").to_pylist()
    )
    rows = rows[: plan.schedule.epoch_rows]
    begins: dict[str, tuple[int, dict[str, Any]]] = {}  # the first of a document's rows on disk
    for row in rows:
        for span in row["documents"]:
            known = begins.get(span["doc_id"])
            if known is None or row["quadrant_row"] < known[0]:
                begins[span["doc_id"]] = row["quadrant_row"], row
    assert [line["rank"] for line in order] == list(range(len(begins)))
    places = [begins[line["doc_id"]][1]["row"] for line in order]
    assert places == sorted(places)
    assert {line["doc_id"] for line in order} == begins.keys()

    cut = Counter[str]()
    for line in order:
        assert line["step"] == begins[line["doc_id"]][1]["step"]
    for row in rows:
        for span in row["documents"]:
            if begins[span["doc_id"]][1] is not row:
                cut[row["quadrant"]] += span["stop"] - span["start"]
    ahead, waiting = Counter[str](), iter(order)
    following = next(waiting, None)
    for row in rows:
        while following is not None and begins[following["doc_id"]][1]["row"] <= row["row"]:
            ahead[following["quadrant"]] += following["tokens"]
            following = next(waiting, None)
        quadrant = row["quadrant"]
        ahead[quadrant] -= sum(span["stop"] - span["start"] for span in row["documents"])
        assert abs(ahead[quadrant]) <= cut[quadrant]
    assert not any(ahead.values())
