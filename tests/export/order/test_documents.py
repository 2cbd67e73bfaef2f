"""The order by document: how far whoever reads whole documents deviates, against every row."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frame_jax.export.order.documents import row_tokens, write_documents
from frame_jax.export.order.manifest import write_manifest
from frame_jax.export.order.trial_order import make_trial_order
from frame_jax.quadrants.rows import best_fit, concat
from tests.export.order.packed_run import QUADRANTS, make_run


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=40),
    st.integers(3, 30),
    st.sampled_from([concat, best_fit]),
    st.integers(1, 2),
    st.integers(0, 9),
)
def test_after_any_row_no_more_than_the_cut_tokens_are_early_or_late(
    lengths: list[int], row_ids: int, pack, framing: int, seed: int
) -> None:
    tokens = np.array(lengths)
    pieces = pack(tokens + framing, row_ids)
    begins = [pieces.row[pieces.document == d].min() for d in range(len(tokens))]
    whole, cut = row_tokens(pieces, tokens, np.array(begins))
    assert whole.sum() == tokens.sum()
    here = by_documents = 0
    for row in np.random.default_rng(seed).permutation(pieces.rows):
        here += whole[row]
        by_documents += tokens[np.array(begins) == row].sum()
        assert abs(by_documents - here) <= cut.sum()
    assert by_documents == here


@pytest.mark.parametrize(("packing", "curriculum"), [("concat", "frame"), ("best_fit", "twice")])
def test_a_follower_deviates_as_the_notes_say(
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

    whole, cut = Counter[str](), Counter[str]()
    here, there = Counter[str](), Counter[str]()
    for line in order:
        assert line["step"] == begins[line["doc_id"]][1]["step"]
        whole[line["quadrant"]] += line["tokens"]
        there[line["stage"]] += line["tokens"]
    for row in rows:
        for span in row["documents"]:
            tokens = span["stop"] - span["start"]
            here[row["stage"]] += tokens
            if begins[span["doc_id"]][1] is not row:
                cut[row["quadrant"]] += tokens
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

    notes = (tmp_path / "out" / "NOTES.md").read_text("utf-8")
    for stage in plan.schedule.stages:
        assert f"| {stage.name} | {here[stage.name]:,} | {there[stage.name]:,} | " in notes
    for quadrant in QUADRANTS:
        assert f"| {quadrant} | {whole[quadrant]:,} | {cut[quadrant]:,} (" in notes
