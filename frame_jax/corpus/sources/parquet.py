"""Kind `parquet`: Parquet files, one row a document, to documents."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from frame_jax import files
from frame_jax.config.corpus import SourceConfig
from frame_jax.corpus.documents import Record, from_fields
from frame_jax.corpus.sources.columns import paths_to_read, rows
from frame_jax.corpus.sources.inputs import (
    Input,
    Stripe,
    file_inputs,
    record_id,
    source_name,
    unreadable,
)

BATCH_ROWS = 256
RATIO = 2  # bytes of text for a byte of a file, roughly


def inputs(config: SourceConfig) -> list[Input]:
    """One input a file."""
    return file_inputs(config, (".parquet",), lambda name: RATIO)


def read(config: SourceConfig, item: Input, stripe: Stripe) -> Iterator[Record]:
    """Documents and rejections of a stripe's rows.

    With at least as many row groups as stripes, a stripe is every k-th row group, so that nothing
    else is decompressed; otherwise it is every k-th row.

    Raises:
        UserError: for a file that is not Parquet or is damaged, or lacks a column that the config
            names.
    """
    source = source_name(config, item)
    try:
        with files.open_binary(item.path) as stream, _open(stream) as file:
            paths = paths_to_read(config, item.place, file.schema_arrow)
            for number, batch in _batches(
                file, sorted({path.name for path in paths.values()}), stripe
            ):
                for line, fields in enumerate(rows(batch, paths), number):
                    if file.num_row_groups >= stripe.count or stripe.takes(line - 1):
                        yield from_fields(
                            fields,
                            config,
                            default_id=record_id(config, item, line),
                            default_source=source,
                            file=item.place,
                            line=line,
                        )
    except (pa.ArrowException, OSError) as error:
        raise unreadable(item, error, "not a readable Parquet file") from error


def _batches(
    file: pq.ParquetFile, columns: list[str], stripe: Stripe
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """(number of its first row, from 1; batch) of the row groups in which a stripe has rows."""
    by_group = file.num_row_groups >= stripe.count
    number = 1
    for group in range(file.num_row_groups):
        if by_group and not stripe.takes(group):
            number += file.metadata.row_group(group).num_rows
            continue
        for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns):
            yield number, batch
            number += len(batch)


def _open(stream: BinaryIO) -> pq.ParquetFile:
    """A Parquet file whose pages are checked where they carry a checksum."""
    return pq.ParquetFile(stream, page_checksum_verification=True)
