"""Kind `parquet`: Parquet files, one row a document, to documents."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from frame_jax.config.corpus import SourceConfig
from frame_jax.corpus.documents import Record, from_fields
from frame_jax.corpus.sources.inputs import Input, Stripe, find_files, record_id, source_name
from frame_jax.errors import UserError

FIELDS = ("text_field", "id_field", "source_field", "domain_field", "language_field")
BATCH_ROWS = 256


def inputs(config: SourceConfig) -> list[Input]:
    """One input a file."""
    base, files = find_files(config, (".parquet",))
    items = []
    for file in files:
        name, size = file.relative_to(base).as_posix(), file.stat().st_size
        items.append(Input(str(file), name, 2 * size, f"{name} {size}"))
    return items


def read(config: SourceConfig, item: Input, stripe: Stripe) -> Iterator[Record]:
    """Documents and rejections of a stripe's rows.

    With at least as many row groups as stripes, a stripe is every k-th row group, so that nothing
    else is decompressed; otherwise it is every k-th row.

    Raises:
        UserError: for a file that is not Parquet, or lacks a column that the config names.
    """
    try:
        file = pq.ParquetFile(item.path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{item.path}: not a readable Parquet file ({error}): replace it, or leave it out of "
            "`path`"
        ) from error
    with file:
        columns = _columns(config, item.path, file.schema_arrow.names)
        source = source_name(config, Path(item.path))
        by_group = file.num_row_groups >= stripe.count
        number = 0
        for group in range(file.num_row_groups):
            if by_group and not stripe.takes(group):
                number += file.metadata.row_group(group).num_rows
                continue
            for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns):
                for fields in _rows(batch):
                    number += 1
                    if by_group or stripe.takes(number - 1):
                        yield from_fields(
                            fields,
                            config,
                            default_id=record_id(config, item, number),
                            default_source=source,
                            file=item.path,
                            line=number,
                        )


def _columns(config: SourceConfig, path: str, present: list[str]) -> list[str]:
    """The columns to read: those in the config that the file has."""
    wanted: dict[str, str] = {f: name for f in FIELDS if (name := getattr(config, f)) is not None}
    for field, name in wanted.items():
        # Every file needs its text; another column may be absent unless it was asked for by name.
        asked = field == "text_field" or name != getattr(SourceConfig, field)
        if asked and name not in present:
            raise UserError(
                f"{path}: no column {name!r} (corpus.sources: {field}); its columns are "
                f"{', '.join(present)}: set {field} to one of them"
            )
    return sorted({name for name in wanted.values() if name in present})


def _rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """Rows as field to value. Text comes as bytes, because Parquet promises UTF-8 but does not
    check it."""
    names = batch.schema.names
    columns = [_as_bytes(column).to_pylist() for column in batch.columns]
    for values in zip(*columns, strict=True):
        yield dict(zip(names, values, strict=True))


def _as_bytes(column: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type):
        return column.cast(pa.binary())
    if pa.types.is_large_string(column.type):
        return column.cast(pa.large_binary())
    return column
