"""Tables of any sizes in slices, slices in buckets: every line once, and no slice too large."""

from __future__ import annotations

import itertools
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from frame_jax.run import buckets
from frame_jax.run.buckets import read_bucket, slice_tables, write_buckets
from frame_jax.sql import open_database


def write_table(path: Path, first: int, lines: int) -> Path:
    pq.write_table(pa.table({"line": range(first, first + lines)}), path, row_group_size=7)
    return path


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([4, 6, 1, 3], [10, 4]),
        ([25, 3, 30], [10, 10, 5, 10, 10, 10, 3]),
        ([10, 11, 0], [10, 1, 10]),
        ([0], [0]),
        ([], []),
    ],
)
def test_slices_hold_every_line_once(
    sizes: list[int], expected: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "SLICE_LINES", 10)
    tables = [
        write_table(tmp_path / f"a[{number}].parquet", sum(sizes[:number]), size)
        for number, size in enumerate(sizes)
    ]
    slices = [
        [line for (line,) in duckdb.sql(f"SELECT * FROM {table}").fetchall()]
        for table in slice_tables(tables)
    ]
    assert sorted(map(len, slices)) == sorted(expected)
    assert sorted(itertools.chain(*slices)) == list(range(sum(sizes)))


def test_a_bucket_holds_its_lines_of_all_slices(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.arrow" for number in range(3)]
    with open_database(tmp_path, threads=1) as connection:
        for number, path in enumerate(paths):  # the last one has no lines, bucket 4 has none at all
            lines = connection.sql(
                f"SELECT i AS line, 'text ' || i AS text, (i % 4)::INTEGER AS bucket "
                f"FROM range({100 * number}, {100 * number + (100, 1, 0)[number]}) AS lines(i)"
            )
            write_buckets(lines.to_arrow_table(), 5, path)
    for bucket in range(5):
        found = read_bucket(paths, bucket)
        wanted = [line for line in range(101) if line % 4 == bucket]
        assert sorted(found["line"].to_pylist()) == wanted
        assert sorted(found["text"].to_pylist()) == sorted(f"text {line}" for line in wanted)
