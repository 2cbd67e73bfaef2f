"""Kind `arrow`: Arrow files, such as a folder that `datasets.save_to_disk` wrote, to documents."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from frame_jax import files
from frame_jax.config.corpus import SourceConfig
from frame_jax.corpus.documents import Record, document_from_fields
from frame_jax.corpus.sources.columns import paths_to_read, rows_of_batch
from frame_jax.corpus.sources.inputs import (
    Input,
    RecordSlice,
    file_inputs,
    record_id,
    source_name,
    unreadable_input_error,
)

FILE_MAGIC = b"ARROW1"  # of a file with a footer; `datasets` writes streams, which have none
BATCH_ROWS = 256


def list_inputs(config: SourceConfig) -> list[Input]:
    """One input a file."""
    return file_inputs(config, (".arrow", ".feather"), lambda name: 1)


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
    """The rows of an Arrow file of either form, some at a time.

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
    """Looks at all offsets and indices of a column; its texts may be other than UTF-8, which is
    reported for each record."""
    if pa.types.is_dictionary(column.type):
        bounds = pc.min_max(column.indices).as_py()
        if bounds["min"] is not None and not 0 <= bounds["min"] <= bounds["max"] < len(
            column.dictionary
        ):
            raise pa.ArrowInvalid(f"index {bounds['max']} is not in the dictionary")
        column = column.dictionary
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
