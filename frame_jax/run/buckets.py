"""Sorts the lines of large tables into buckets, between one call of `map_parts` and the next.

The first call works on slices of the tables (`write_slice`) and writes a file for each, in which
the lines of a bucket lie together; the second works on buckets, each of which it reads from all
files. So nobody holds, sorts or reads a whole table, and there are as many files as slices.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from frame_jax.run.directory import atomic_path, part_name
from frame_jax.run.map_parts import Advance
from frame_jax.sql import open_database, parquet_table

SLICE_LINES = 1 << 21


def plan_slices(
    tables: Sequence[Path], sql: Callable[[str], str], folder: Path
) -> dict[str, tuple[str, Path]]:
    """What to call `write_slice` with, by name: a query and the path of a file in the folder.

    Slices are ranges of a large Parquet file or several small files, of SLICE_LINES lines at most,
    and `sql` makes the query of a table expression.
    """
    slices: list[tuple[list[Path], tuple[int, int] | None]] = []
    room = -1
    for path in tables:
        lines = pq.read_metadata(path).num_rows
        if lines <= room:
            slices[-1][0].append(path)
            room -= lines
        elif lines <= SLICE_LINES:
            slices.append(([path], None))
            room = SLICE_LINES - lines
        else:
            starts = range(0, lines, SLICE_LINES)
            slices += (([path], (start, start + SLICE_LINES)) for start in starts)
            room = -1
    names = (part_name(index, len(slices), "") for index in range(len(slices)))
    return {
        name: (sql(parquet_table(*paths, lines=lines)), folder / f"{name}.arrow")
        for name, (paths, lines) in zip(names, slices, strict=True)
    }


def write_slice(
    part: tuple[str, Path],
    advance: Advance,
    *,
    buckets: int,
    parameters: Mapping[str, Any] | None = None,
) -> None:
    """Writes the result of a query, whose column `bucket` is below `buckets`, as `write_buckets`
    does."""
    sql, path = part
    with open_database(path.parent) as connection:
        connection.execute("SET arrow_large_buffer_size = true")  # of texts beyond 2 GiB in all
        table = connection.sql(sql, params=parameters).to_arrow_table()
    write_buckets(table, buckets, path)


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
        for start, stop in itertools.pairwise(ends):
            file.write_batch((table.slice(start, stop - start).to_batches() or [empty])[0])


def read_bucket(paths: Sequence[Path], bucket: int) -> pa.Table:
    """The lines of a bucket in all files that `write_slice` wrote."""
    batches = []
    for path in paths:
        with pa.memory_map(str(path)) as content, pa.ipc.open_file(content) as file:
            batches.append(file.get_batch(bucket))
    return pa.Table.from_batches(batches)
