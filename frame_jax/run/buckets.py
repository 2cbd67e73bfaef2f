"""Sorts the lines of large tables into buckets, between one call of `map_parts` and the next.

The first call works on slices of the tables and writes one file for each, in which the lines of a
bucket lie together; the second works on buckets, each of which it reads from all files. So nobody
holds, sorts or reads a whole table, and a file is made for a slice, not for each of its buckets.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from frame_jax.run.directory import atomic_path
from frame_jax.run.map_parts import Advance
from frame_jax.sql import open_database, parquet_table

SLICE_LINES = 1 << 21


def slice_tables(tables: Sequence[Path]) -> list[str]:
    """Table expressions of about SLICE_LINES lines or fewer, together these Parquet files: a range
    of a large file or several small ones."""
    slices: list[str] = []
    small, held = list[Path](), 0
    for path in tables:
        lines = pq.read_metadata(path).num_rows
        if lines > SLICE_LINES:
            slices += (
                parquet_table(path, lines=(first, first + SLICE_LINES))
                for first in range(0, lines, SLICE_LINES)
            )
            continue
        if held + lines > SLICE_LINES:
            slices.append(parquet_table(*small))
            small, held = [], 0
        small.append(path)
        held += lines
    return slices + ([parquet_table(*small)] if small else [])


def bucket_query(
    part: tuple[str, Path],
    advance: Advance,
    *,
    buckets: int,
    parameters: Mapping[str, Any] | None = None,
) -> None:
    """Writes what a query gives to a file, both the `part`, as `write_buckets` does."""
    query, path = part
    with open_database(path.parent, threads=1) as connection:
        write_buckets(connection.sql(query, params=parameters).to_arrow_table(), buckets, path)


def write_buckets(table: pa.Table, buckets: int, path: Path) -> None:
    """Writes the lines of a table, whose column `bucket` is below `buckets`, to an Arrow file with
    a batch for each bucket."""
    table = table.take(np.argsort(table["bucket"].to_numpy(), kind="stable"))
    ends = np.searchsorted(table["bucket"].to_numpy(), np.arange(buckets + 1)).tolist()
    table = table.drop_columns("bucket").combine_chunks()
    empty = pa.RecordBatch.from_pylist([], table.schema)
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with (
        atomic_path(path) as temporary,
        pa.ipc.new_file(temporary, table.schema, options=options) as file,
    ):
        for first, stop in itertools.pairwise(ends):
            file.write_batch((table.slice(first, stop - first).to_batches() or [empty])[0])


def read_bucket(paths: Sequence[Path], bucket: int) -> pa.Table:
    """The lines of a bucket in all files that `write_buckets` wrote."""
    batches = []
    for path in paths:
        with pa.memory_map(str(path)) as content, pa.ipc.open_file(content) as file:
            batches.append(file.get_batch(bucket))
    return pa.Table.from_batches(batches)
