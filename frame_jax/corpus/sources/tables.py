"""Kinds `arrow` and `parquet`: tables with a row for each document.

An Arrow file may be one that `datasets.save_to_disk` wrote.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from frame_jax import files
from frame_jax.config.corpus import SourceConfig
from frame_jax.corpus.documents import FIELDS, Record, is_named_by_config
from frame_jax.corpus.sources import inputs
from frame_jax.corpus.sources.listing import list_files
from frame_jax.errors import UserError

FILE_MAGIC = b"ARROW1"  # of a file with a footer; `datasets` writes streams, which have none
BATCH_ROWS = 256
PARQUET_RATIO = 2  # bytes of text for a byte of a file, roughly
BYTES_OF_TEXT = {
    pa.string(): pa.binary(),
    pa.large_string(): pa.large_binary(),
    pa.string_view(): pa.binary_view(),
}


@dataclass(frozen=True)
class ColumnPath:
    """Where the value of a field is: in a column, or in fields of a struct in it.

    Attributes:
        inside: Names of fields, from the column inwards.
        rest: What is left of the field's name: a path into a map, or into a JSON text.
    """

    column: str
    inside: tuple[str, ...]
    rest: tuple[str, ...]

    @property
    def name(self) -> str:
        """As pyarrow names what it reads."""
        return ".".join((self.column, *self.inside))


FindPaths = Callable[[pa.Schema], dict[str, ColumnPath]]  # what the config asks of a schema
# The number of a batch's first row in the file, and the rows of a slice in it, both from 0.
SlicedBatch = tuple[int, range, pa.RecordBatch]


def list_inputs(config: SourceConfig) -> list[inputs.Input]:
    """One input a file. `datasets.save_to_disk` leaves the files of an earlier call in its folder,
    and lists its own in state.json: the others are no data."""
    if config.kind == "parquet":
        return inputs.file_inputs(config, (".parquet",), lambda name: PARQUET_RATIO)
    items = inputs.file_inputs(config, (".arrow", ".feather"), lambda name: 1)
    if len(items) == 1:
        return items
    split_paths = [item.path.rpartition("/") for item in items]
    listed = {folder: _saved_in(folder) for folder in dict.fromkeys(p[0] for p in split_paths)}
    return [
        dataclasses.replace(item, ignored=f"{inputs.STATE} there does not list it")
        if (names := listed[folder]) is not None and file not in names
        else item
        for item, (folder, _, file) in zip(items, split_paths, strict=True)
    ]


def _saved_in(folder: str) -> set[str] | None:
    """The files that `datasets` lists as a folder's; None where it has not written it."""
    state, _ = list_files(f"{folder}/{inputs.STATE}", ())
    if not state:
        return None
    try:
        with files.open_binary(state[0].path) as stream:
            return {file["filename"] for file in json.load(stream)["_data_files"]}
    except (OSError, ValueError, KeyError, TypeError):  # another program's
        return None


def read_records(
    config: SourceConfig, item: inputs.Input, record_slice: inputs.RecordSlice
) -> Iterator[Record]:
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
                    yield inputs.document_of_file(fields, config, item, first + index + 1)
    except (pa.ArrowException, OSError) as error:
        what = f"not a readable {config.kind.capitalize()} file"
        raise inputs.unreadable_input_error(item, error, what) from error


def _parquet_batches(
    stream: BinaryIO, find: FindPaths, record_slice: inputs.RecordSlice
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
    stream: BinaryIO, find: FindPaths, record_slice: inputs.RecordSlice
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
        for column in whole.columns:  # texts that are not UTF-8 are reported record by record
            if pa.types.is_dictionary(column.type):
                values = text_as_bytes(column.dictionary)
                column = pa.DictionaryArray.from_arrays(column.indices, values, safe=False)
            text_as_bytes(column).validate(full=True)
        for start in range(0, len(whole), BATCH_ROWS):
            batch = whole.slice(start, BATCH_ROWS)
            yield number, record_slice.within(number, len(batch)), batch
            number += len(batch)


def paths_to_read(config: SourceConfig, file: str, schema: pa.Schema) -> dict[str, ColumnPath]:
    """The fields that both the config and the table have, and where they are.

    Raises:
        UserError: for a field that must be there and is not: the text, or one asked for by name.
    """
    found = {}
    for setting in FIELDS:
        name = getattr(config, setting)
        if name is None:
            continue
        try:
            path = _path(schema, name)
        except KeyError as error:
            raise UserError(
                f"{file}: several columns are called {error.args[0]!r} (corpus.sources: "
                f"{setting}): rename one, or set {setting} to another column"
            ) from error
        if path is not None:
            found[name] = path
        elif setting == "text_field" or is_named_by_config(config, setting):
            raise UserError(
                f"{file}: no column {name!r} (corpus.sources: {setting}); its columns are "
                f"{', '.join(_names(schema))}: set {setting} to one of them"
            )
    return found


def rows_of_batch(
    batch: pa.RecordBatch, paths: dict[str, ColumnPath], taken: range
) -> Iterator[dict[str, Any]]:
    """Yields some rows of a batch as field to value. Text comes as bytes, because Parquet and Arrow
    promise UTF-8 but do not check it. A field that lies in a map or a JSON text stands under its
    column's name."""
    columns = {}
    for name, path in paths.items():
        key = name.removesuffix("." + ".".join(path.rest)) if path.rest else name
        columns[key] = _values(batch, path, taken)
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))


def text_as_bytes(column: pa.Array) -> pa.Array:
    """A view of a column whose texts, at any depth, are bytes; JSON as it is stored."""
    column = column.storage if _is_json(column.type) else column
    kind = _without_text(column.type)
    return column if kind == column.type else column.view(kind)


def _without_text(kind: pa.DataType) -> pa.DataType:
    """A type of the same layout with bytes in place of texts."""
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_without_text(field.type)) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(_without_text(kind.key_type), _without_text(kind.item_type))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        make = pa.list_ if pa.types.is_list(kind) else pa.large_list
        return make(kind.value_field.with_type(_without_text(kind.value_type)))
    return BYTES_OF_TEXT.get(kind, kind)


def _is_json(kind: pa.DataType) -> bool:
    """Whether a column holds texts of the logical type JSON."""
    return isinstance(kind, pa.BaseExtensionType) and kind.extension_name == "arrow.json"


def _path(schema: pa.Schema, name: str) -> ColumnPath | None:
    """Where a field is; None where it is not. KeyError names the first on the way that is there
    several times."""
    parts = tuple(name.split("."))
    for length in range(len(parts), 0, -1):
        column = ".".join(parts[:length])
        if schema.names.count(column) > 1:
            raise KeyError(column)
        if column in schema.names:
            return _inside(schema.field(column).type, column, parts[length:])
    return None


def _inside(kind: pa.DataType, column: str, parts: tuple[str, ...]) -> ColumnPath | None:
    done = 0
    while done < len(parts) and pa.types.is_struct(kind):
        found = kind.get_all_field_indices(parts[done])
        if len(found) > 1:
            raise KeyError(".".join((column, *parts[: done + 1])))
        if not found:
            return None
        kind, done = kind.field(found[0]).type, done + 1
    if done < len(parts) and not (_is_text(kind) or pa.types.is_map(kind)):
        return None
    return ColumnPath(column, parts[:done], parts[done:])


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if _is_json(kind):
        kind = kind.storage_type
    return kind in (*BYTES_OF_TEXT, pa.binary(), pa.large_binary())


def _names(schema: pa.Schema) -> list[str]:
    """Columns, and the fields of structs as dotted paths."""
    names = []
    for field in schema:
        names.append(field.name)
        if pa.types.is_struct(field.type):
            names[-1:] = [f"{field.name}.{name}" for name in _names(pa.schema(list(field.type)))]
    return names


def _values(batch: pa.RecordBatch, path: ColumnPath, taken: range) -> list[Any]:
    column = batch.column(path.column)
    for name in path.inside:
        column = pc.struct_field(column, name)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_temporal(column.type):
        column = column.cast(pa.string())  # Python has no nanoseconds
    is_map = pa.types.is_map(column.type)
    column = column if is_map else text_as_bytes(column)
    if len(taken) < len(column) and not pa.types.is_nested(column.type):
        if column.type == pa.binary_view():
            column = column.cast(pa.large_binary())  # pyarrow takes no views
        column = column.take(pa.array(taken, pa.int64()))
        taken = range(len(column))
    return column.to_pylist(maps_as_pydicts="lossy" if is_map else None)[taken.start :: taken.step]
