"""Duplicate ids: the first document of each stays, however many there are and wherever they lie."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from frame_jax.config.workers import WorkersConfig
from frame_jax.corpus import tokenize
from frame_jax.corpus.rejected import METADATA, reject_duplicates
from frame_jax.run import buckets
from frame_jax.run.directory import RunDirectory, list_parts, part_name

PARTS = 4


def write_tables(root: Path, ids: np.ndarray) -> tuple[RunDirectory, list[dict]]:
    """Token tables of documents with these ids, whose files and lines are in another order than the
    parts and, now and then, the same; and the documents."""
    directory, random = RunDirectory(root), np.random.default_rng(0)
    directory.tokens.mkdir(parents=True)
    documents = []
    for part, own in enumerate(np.array_split(ids, PARTS)):
        rows = [
            {
                "doc_id": f"id-{number}",
                "part": part,
                "row": row,
                "split": "train",
                "tokens": 10,
                "bytes": 40,
                "source": "s",
                "domain": None,
                "language": "en",
                "file": f"file-{random.integers(3)}",
                "line": int(random.integers(1, 9)),
            }
            for row, number in enumerate(own.tolist())
        ]
        documents += rows
        table = pa.Table.from_pylist(rows, tokenize.COLUMNS).replace_schema_metadata(
            {METADATA: b'{"0 records": 1}'}
        )
        path = directory.tokens / part_name(part, PARTS, ".parquet")
        pq.write_table(table, path, row_group_size=50)
        path.with_suffix(".rejected.jsonl").write_text(f'{{"reason": "unusable {part}"}}\n')
    return directory, documents


def expected(documents: list[dict]) -> tuple[list[dict], set[tuple[int, int]]]:
    """The lines of rejected.jsonl, and part and row of the duplicates."""
    order = ("file", "line", "part", "row")
    firsts: dict[str, dict] = {}
    for document in sorted(documents, key=lambda d: [d[key] for key in order]):
        firsts.setdefault(document["doc_id"], document)
    again = [d for d in documents if firsts[d["doc_id"]] is not d]
    lines = [{"reason": f"unusable {part}"} for part in range(PARTS)]
    for document in again:
        first = firsts[document["doc_id"]]
        reason = f"duplicate id {document['doc_id']!r}, first in {first['file']} line "
        where = {"file": document["file"], "line": document["line"]}
        lines.append({**where, "reason": f"{reason}{first['line']}"})
    return lines, {(d["part"], d["row"]) for d in again}


@pytest.mark.parametrize("slice_lines", [buckets.SLICE_LINES, 250, 60])
@pytest.mark.parametrize("kinds", [40, 1000, None], ids=["most", "half", "none"])
def test_the_first_of_each_id_stays_whatever_the_slices(
    kinds: int | None, slice_lines: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "SLICE_LINES", slice_lines)
    ids = np.arange(900) if kinds is None else np.random.default_rng(1).integers(kinds, size=900)
    directory, documents = write_tables(tmp_path, ids)
    lines, again = expected(documents)
    for _ in range(2):  # a killed run does it again
        reject_duplicates(directory, WorkersConfig())
        assert list(map(json.loads, directory.rejected.read_text().splitlines())) == lines
        tables = [pq.read_table(path) for path in list_parts(directory.tokens, ".parquet")]
        assert all((table.schema.metadata or {})[METADATA] for table in tables)
        found = [row for table in tables for row in table.to_pylist()]
        assert found == [
            {**d, "split": "rejected" if (d["part"], d["row"]) in again else "train"}
            for d in documents
        ]
        assert len(list(directory.tokens.iterdir())) == 2 * PARTS + 1
