"""Kind `parquet`: Parquet files, one row a document."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

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

BATCH_ROWS = 256
RATIO = 2  # bytes of text for a byte of a file, roughly


def list_inputs(config: SourceConfig) -> list[Input]:
    """One input a file."""
    return file_inputs(config, (".parquet",), lambda name: RATIO)


def read_records(config: SourceConfig, item: Input, record_slice: RecordSlice) -> Iterator[Record]:
    """Yields documents and rejections of a slice's rows.

    With at least as many row groups as stripes, a stripe is every k-th row group, so that nothing
    else is decompressed; otherwise it is every k-th row.

    Raises:
        UserError: for a file that is not Parquet or is damaged, or lacks a column that the config
            names.
    """
    source = source_name(config, item)
    try:
        with files.open_binary(item.path) as stream, _open(stream) as file:
            paths = paths_to_read(config, item.display_path, file.schema_arrow)
            for number, batch in _batches(
                file, sorted({path.name for path in paths.values()}), record_slice
            ):
                for line, fields in enumerate(rows_of_batch(batch, paths), number):
                    if file.num_row_groups >= record_slice.count or record_slice.contains(line - 1):
                        yield document_from_fields(
                            fields,
                            config,
                            default_id=record_id(config, item, line),
                            default_source=source,
                            file=item.display_path,
                            line=line,
                        )
    except (pa.ArrowException, OSError) as error:
        raise unreadable_input_error(item, error, "not a readable Parquet file") from error


def _batches(
    file: pq.ParquetFile, columns: list[str], record_slice: RecordSlice
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yields row groups with rows of a slice: (number of the first row, from 1; batch)."""
    by_group = file.num_row_groups >= record_slice.count
    number = 1
    for group in range(file.num_row_groups):
        if by_group and not record_slice.contains(group):
            number += file.metadata.row_group(group).num_rows
            continue
        for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns):
            yield number, batch
            number += len(batch)


def _open(stream: BinaryIO) -> pq.ParquetFile:
    """Opens a Parquet file; pages are checked where they carry a checksum."""
    return pq.ParquetFile(stream, page_checksum_verification=True)
