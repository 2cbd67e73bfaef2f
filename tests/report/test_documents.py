"""What DuckDB counts in `assignment.parquet` against NumPy."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from frame_jax.report import documents
from frame_jax.run.directory import RunDirectory
from frame_jax.run.partition_record import BinStart, GroupRecord, Thresholds
from tests.report.synthetic import make_partition, write_documents

COLUMNS = ["domain", "language"]
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDirectory, Rows]:
    directory = RunDirectory(tmp_path_factory.mktemp("run"))
    write_documents(directory, 200, "text <b> 漢字")
    rows = pq.read_table(directory.assignment).to_pylist()
    return directory, [row for row in rows if row["split"] == "train" and row["quadrant"]]


def test_the_density_loses_no_token_and_puts_each_in_its_cell(corpus: Any) -> None:
    directory, rows = corpus
    tiles = documents.token_density(directory, COLUMNS, bins=6)
    assert sum(tile.tokens for tile in tiles) == sum(row["tokens"] for row in rows)
    edges = {
        key: [getattr(tile, key) for tile in tiles] for key in ("ppl", "ppl_end", "pd", "pd_end")
    }
    for tile in tiles:
        # Documents beyond the grid are counted in its outermost cells.
        left = -np.inf if tile.ppl == min(edges["ppl"]) else tile.ppl
        right = np.inf if tile.ppl_end == max(edges["ppl_end"]) else tile.ppl_end
        low = -np.inf if tile.pd == min(edges["pd"]) else tile.pd
        high = np.inf if tile.pd_end == max(edges["pd_end"]) else tile.pd_end
        inside = [
            row["tokens"]
            for row in rows
            if f"{row['domain']} / {row['language']}" == tile.label
            and left <= row["ppl"] < right
            and low <= row["pd"] < high
        ]
        assert sum(inside) == tile.tokens


def test_balance_counts_training_tokens_of_each_label(corpus: Any) -> None:
    directory, rows = corpus
    for columns in (COLUMNS, ["domain"]):
        expected: Counter[tuple[str, str]] = Counter()
        for row in rows:
            expected[" / ".join(row[c] for c in columns), row["quadrant"]] += row["tokens"]
        found = documents.token_balance(directory, columns)
        assert {(group.label, group.quadrant): group.tokens for group in found} == expected


def cut(value: float) -> BinStart:
    return BinStart(value, "d")


def test_thresholds_of_pd_end_where_those_of_ppl_stand() -> None:
    thresholds = Thresholds("group", [cut(10), cut(20)], [[cut(0.1)], [None], [cut(0.3)]])
    group = GroupRecord(domain=None, thresholds=thresholds, quadrants={})
    partition = make_partition(group_by=("domain",), groups=(group,))
    lines = documents.threshold_lines(partition, ["none"])
    assert [(line.x, line.x2, line.y, line.y2) for line in lines] == [
        (10, 10, None, None),
        (20, 20, None, None),
        (None, 10, 0.1, 0.1),
        (20, None, 0.3, 0.3),
    ]
    assert {line.label for line in lines} == {"none"}


def test_global_and_independent_thresholds_cross_every_group() -> None:
    group = GroupRecord(thresholds=Thresholds("group", [cut(10)], [[cut(0.1)]]), quadrants={})
    partition = make_partition(mode="independent", group_by=(), groups=(group,))
    lines = documents.threshold_lines(partition, ["code", "prose"])
    assert Counter(line.label for line in lines) == {"code": 2, "prose": 2}
    assert lines[1] == documents.ThresholdLine("code", None, None, 0.1, 0.1)
