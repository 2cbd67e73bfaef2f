"""Kind `arrow`: Arrow files, such as a folder that `datasets.save_to_disk` wrote."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from frame_jax import files
from frame_jax.config.corpus import SourceConfig
from frame_jax.corpus.documents import Record, document_from_fields
from frame_jax.corpus.sources.columns import is_json, paths_to_read, rows_of_batch
from frame_jax.corpus.sources.inputs import (
    STATE,
    Input,
    RecordSlice,
    file_inputs,
    record_id,
    source_name,
    unreadable_input_error,
)
from frame_jax.corpus.sources.listing import list_files

FILE_MAGIC = b"ARROW1"  # of a file with a footer; `datasets` writes streams, which have none
BATCH_ROWS = 256


def list_inputs(config: SourceConfig) -> list[Input]:
    """One input a file. `datasets.save_to_disk` leaves the files of an earlier call in its folder,
    and lists its own in state.json: the others are no data."""
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
    """Documents and rejections of a stripe's rows.

    Raises:
        UserError: for a file that is not Arrow or is damaged, or lacks a column that the config
            names.
    """
    source = source_name(config, item)
    try:
        with files.open_binary(item.path) as stream:
            number = 0
            for batch in _batches(stream):
                paths, size = paths_to_read(config, item.display_path, batch.schema), len(batch)
                taken = range(
                    (record_slice.index - number) % record_slice.count, size, record_slice.count
                )
                if len(taken) < size:
                    batch = batch.take(pa.array(taken, pa.int64()))
                for index, fields in zip(taken, rows_of_batch(batch, paths), strict=True):
                    line = number + index + 1
                    yield document_from_fields(
                        fields,
                        config,
                        default_id=record_id(config, item, line),
                        default_source=source,
                        file=item.display_path,
                        line=line,
                    )
                number += size
    except (pa.ArrowException, OSError) as error:
        raise unreadable_input_error(item, error, "not a readable Arrow file") from error


def _batches(stream: BinaryIO) -> Iterator[pa.RecordBatch]:
    """Yields the rows of an Arrow file or stream, some at a time.

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
    for batch in batches:
        for column in batch.columns:
            _validate(column)
        for start in range(0, len(batch), BATCH_ROWS):
            yield batch.slice(start, BATCH_ROWS)


def _validate(column: pa.Array) -> None:
    """Checks all offsets and indices of a column; texts that are not UTF-8 are reported record by
    record."""
    if pa.types.is_dictionary(column.type):
        bounds = pc.min_max(column.indices).as_py()
        if bounds["min"] is not None and not 0 <= bounds["min"] <= bounds["max"] < len(
            column.dictionary
        ):
            raise pa.ArrowInvalid(f"index {bounds['max']} is not in the dictionary")
        column = column.dictionary
    column = column.storage if is_json(column.type) else column
    kind = _without_text(column.type)
    (column if kind == column.type else column.view(kind)).validate(full=True)


def _without_text(kind: pa.DataType) -> pa.DataType:
    """A type of the same layout with bytes in place of texts."""
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_without_text(field.type)) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(_without_text(kind.key_type), _without_text(kind.item_type))
    for is_list, make in (
        (pa.types.is_list, pa.list_),
        (pa.types.is_large_list, pa.large_list),
    ):
        if is_list(kind):
            return make(kind.value_field.with_type(_without_text(kind.value_type)))
    for is_text, raw in (
        (pa.types.is_string, pa.binary()),
        (pa.types.is_large_string, pa.large_binary()),
        (pa.types.is_string_view, pa.binary_view()),
    ):
        if is_text(kind):
            return raw
    return kind
