"""Kinds `arrow` and `parquet`: tables with a row for each document.

An Arrow file may be one that `datasets.save_to_disk` wrote.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from frame_jax import files
from frame_jax.config.corpus import SourceConfig
from frame_jax.corpus.documents import Record
from frame_jax.corpus.sources.columns import ColumnPath, paths_to_read, rows_of_batch, text_as_bytes
from frame_jax.corpus.sources.inputs import (
    STATE,
    Input,
    RecordSlice,
    document_of_file,
    file_inputs,
    unreadable_input_error,
)
from frame_jax.corpus.sources.listing import list_files

FILE_MAGIC = b"ARROW1"  # of a file with a footer; `datasets` writes streams, which have none
BATCH_ROWS = 256
PARQUET_RATIO = 2  # bytes of text for a byte of a file, roughly

FindPaths = Callable[[pa.Schema], dict[str, ColumnPath]]  # what the config asks of a schema
# The number of a batch's first row in the file, and the rows of a slice in it, both from 0.
SlicedBatch = tuple[int, range, pa.RecordBatch]


def list_inputs(config: SourceConfig) -> list[Input]:
    """One input a file. `datasets.save_to_disk` leaves the files of an earlier call in its folder,
    and lists its own in state.json: the others are no data."""
    if config.kind == "parquet":
        return file_inputs(config, (".parquet",), lambda name: PARQUET_RATIO)
    items = file_inputs(config, (".arrow", ".feather"), lambda name: 1)
    if len(items) == 1:
        return items
    split_paths = [item.path.rpartition("/") for item in items]
    listed = {folder: _saved_in(folder) for folder in dict.fromkeys(p[0] for p in split_paths)}
    return [
        dataclasses.replace(item, ignored=f"{STATE} there does not list it")
        if (names := listed[folder]) is not None and file not in names
        else item
        for item, (folder, _, file) in zip(items, split_paths, strict=True)
    ]


def _saved_in(folder: str) -> set[str] | None:
    """The files that `datasets` lists as a folder's; None where it has not written it."""
    state, _ = list_files(f"{folder}/{STATE}", ())
    if not state:
        return None
    try:
        with files.open_binary(state[0].path) as stream:
            return {file["filename"] for file in json.load(stream)["_data_files"]}
    except (OSError, ValueError, KeyError, TypeError):  # another program's
        return None


def read_records(config: SourceConfig, item: Input, record_slice: RecordSlice) -> Iterator[Record]:
    """Yields documents and rejections of a slice's rows.

    Raises:
        UserError: for a file that is damaged or of another kind, or lacks a column that the config
            names.
    """
    find = functools.partial(paths_to_read, config, item.display_path)
    read = _parquet_batches if config.kind == "parquet" else _arrow_batches
    try:
        with files.open_binary(item.path) as stream:
            for first, taken, batch in read(stream, find, record_slice):
                rows = rows_of_batch(batch, find(batch.schema), taken)
                for index, fields in zip(taken, rows, strict=True):
                    yield document_of_file(fields, config, item, first + index + 1)
    except (pa.ArrowException, OSError) as error:
        what = f"not a readable {config.kind.capitalize()} file"
        raise unreadable_input_error(item, error, what) from error


def _parquet_batches(
    stream: BinaryIO, find: FindPaths, record_slice: RecordSlice
) -> Iterator[SlicedBatch]:
    """Yields the rows of a Parquet file that are in a slice; checksums of pages are verified.

    With at least as many row groups as slices, a slice is every k-th row group, so that nothing
    else is decompressed; otherwise it is every k-th row.
    """
    with pq.ParquetFile(stream, page_checksum_verification=True) as file:
        columns = sorted({path.name for path in find(file.schema_arrow).values()})
        by_group = file.num_row_groups >= record_slice.count
        first = 0
        for group in range(file.num_row_groups):
            if by_group and not record_slice.contains(group):
                first += file.metadata.row_group(group).num_rows
                continue
            for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns):
                size = len(batch)
                yield first, range(size) if by_group else record_slice.within(first, size), batch
                first += size


def _arrow_batches(
    stream: BinaryIO, find: FindPaths, record_slice: RecordSlice
) -> Iterator[SlicedBatch]:
    """Yields the rows of an Arrow file or stream that are in a slice.

    Raises:
        pa.ArrowInvalid: for offsets or indices that lead out of their column: reading there would
            end the program.
    """
    is_file = stream.read(len(FILE_MAGIC)) == FILE_MAGIC
    stream.seek(0)
    if is_file:
        reader = pa.ipc.open_file(stream)
        batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
    else:
        batches = iter(pa.ipc.open_stream(stream))
    number = 0
    for whole in batches:
        for column in whole.columns:
            _validate(column)
        for start in range(0, len(whole), BATCH_ROWS):
            batch = whole.slice(start, BATCH_ROWS)
            yield number, record_slice.within(number, len(batch)), batch
            number += len(batch)


def _validate(column: pa.Array) -> None:
    """Checks all offsets and indices of a column; texts that are not UTF-8 are reported record by
    record."""
    if pa.types.is_dictionary(column.type):
        values = text_as_bytes(column.dictionary)
        column = pa.DictionaryArray.from_arrays(column.indices, values, safe=False)
    text_as_bytes(column).validate(full=True)
