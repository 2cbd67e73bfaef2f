"""Writes training rows: a quadrant's documents in, records of sequence_length + 1 token ids out.

Documents are shuffled by a hash of their id and the run's seed, and the range of the hash is cut
into parts. Workers first list the documents of all parts, slice by slice of the tables, and then
make part after part without looking at the others'. A document that is read several times has as
many copies, each in the part after the last one's, so that no row holds two. A document enters
framed as [bos] + tokens + [eos], or [bos] + tokens where the two are one. Every token of every copy
is in exactly one row; where rows are not full they end in padding, which is bos repeated, and
counted.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa

from frame_jax import packing
from frame_jax.config.quadrants import RowsConfig
from frame_jax.config.run import RunConfig
from frame_jax.config.workers import WorkersConfig
from frame_jax.parallel import processes
from frame_jax.records import LENGTHS, OpenFiles, write_tokens
from frame_jax.run.buckets import plan_slices, read_bucket, write_slice
from frame_jax.run.directory import (
    RunDirectory,
    list_parts,
    part_name,
    read_json,
    remove,
    write_json,
)
from frame_jax.run.map_parts import Advance, map_parts, missing
from frame_jax.run.special_tokens import SpecialTokens, read_special_tokens
from frame_jax.sql import parquet_columns, sql_literal

# Ids of rows that are made together (64 MiB): documents lie in all token files, and where these
# cannot all be kept open, each is opened again every time.
IDS_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class ShuffledDocuments:
    """Documents in the order in which they are packed; each field int64 [documents].

    Attributes:
        part: Index of the token file that holds the document.
        row: Record in that file.
        tokens: Text tokens.
        doc_id: Strings, where they were asked for.
    """

    part: np.ndarray
    row: np.ndarray
    tokens: np.ndarray
    doc_id: pa.ChunkedArray | None = None


@dataclass(frozen=True)
class PackedSegments:
    """Segments of documents in the order of their rows, then of their offsets; each int64
    [segments].

    Attributes:
        row: The row that holds the piece.
        document: The framed document it is cut from.
        start: First id of the framed document.
        stop: One past the last.
        num_bos: BOS ids to put before every piece.
    """

    row: np.ndarray
    document: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    num_bos: int

    @property
    def rows(self) -> int:
        return int(self.row[-1]) + 1 if len(self.row) else 0

    def select_rows(self, first: int, stop: int) -> Self:
        """The segments of rows [first, stop), with rows counted from `first`."""
        lo, hi = np.searchsorted(self.row, [first, stop])
        cut = {name: getattr(self, name)[lo:hi] for name in ("document", "start", "stop")}
        return dataclasses.replace(self, row=self.row[lo:hi] - first, **cut)

    @property
    def offset(self) -> np.ndarray:
        """Where in its row each segment begins, after the BOS that may precede it: int64
        [segments]."""
        size = self.stop - self.start + self.num_bos
        before = np.cumsum(size) - size
        first = np.searchsorted(self.row, self.row)  # the first piece of the row
        return before - before[first] + self.num_bos


def concat(lengths: np.ndarray, row_ids: int) -> PackedSegments:
    """Joins the documents to one stream and cuts it every `row_ids` ids; only the last row has room
    left."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    starts = np.union1d(ends - lengths, np.arange(0, total, row_ids))
    stops = np.append(starts[1:], [total] if total else [])
    document = np.searchsorted(ends, starts, side="right")
    origin = (ends - lengths)[document]
    return PackedSegments(starts // row_ids, document, starts - origin, stops - origin, num_bos=0)


def best_fit(lengths: np.ndarray, row_ids: int) -> PackedSegments:
    """Cuts only documents longer than a row, and puts each segment where it leaves the least room.

    Every piece begins with BOS, its own or one more, so that attention and loss treat the rest of
    a cut document as a document. Longest pieces first (best-fit decreasing).
    """
    body = lengths - 1  # without its own BOS
    per_document = -(-body // (row_ids - 1))
    document = np.repeat(np.arange(len(lengths)), per_document)
    number = np.arange(len(document)) - np.repeat(
        np.cumsum(per_document) - per_document, per_document
    )
    start = 1 + number * (row_ids - 1)
    stop = np.minimum(start + row_ids - 1, lengths[document])
    size = stop - start + 1

    order = np.argsort(-size, kind="stable")
    row = np.empty(len(order), np.int64)
    row[order] = packing.best_fit(size[order].tolist(), row_ids)
    by_row = np.argsort(row, kind="stable")
    return PackedSegments(row[by_row], document[by_row], start[by_row], stop[by_row], num_bos=1)


def pack_documents(
    documents: ShuffledDocuments, config: RowsConfig, special_tokens: SpecialTokens
) -> PackedSegments:
    """Decides which segment of which framed document goes into which row; EOS may be BOS."""
    pack = concat if config.packing == "concat" else best_fit
    framing = 1 if special_tokens.bos_id == special_tokens.eos_id else 2
    return pack(documents.tokens + framing, config.sequence_length + 1)


def training_conditions(quadrants: Sequence[str]) -> dict[str, str]:
    """SQL for which lines of the assignment become rows of each quadrant."""
    return {
        quadrant: f"split = 'train' AND quadrant = {sql_literal(quadrant)}"
        for quadrant in quadrants
    }


def write_quadrant_rows(
    config: RowsConfig,
    directory: RunDirectory,
    folder: Path,
    tables: Sequence[Path],
    conditions: Mapping[str, str],
    seed: int,
    workers: WorkersConfig,
) -> dict[str, Any]:
    """Writes FOLDER/QUADRANT/part-*.arrayrecord, one record a row, and FOLDER/{rows,lengths}.json.

    Called on every process. A part whose counts are there is complete and kept. Tables are Parquet
    files with doc_id, part, row, tokens and what the conditions name, which say in SQL which
    documents a quadrant has; `seed` shuffles them.

    Returns:
        The content of rows.json: {quadrant: {rows, documents, tokens, padding}}, in copies of
        documents, their text tokens and padding ids.
    """
    names = [part_name(index, config.parts, "") for index in range(config.parts)]
    row_files = [folder / quadrant / name for quadrant in conditions for name in names]
    left = missing(path.with_suffix(".json") for path in row_files)
    tokens = list_parts(directory.tokens, ".arrayrecord")
    scratch, number = folder / ".tmp-shuffled", config.parts
    shuffled = shuffle_tables(tables, conditions, left, number, seed, scratch, workers)
    map_parts(
        functools.partial(
            write_row_file,
            shuffled=shuffled,
            token_files=tokens,
            open_files=OpenFiles(),
            config=config,
            special_tokens=read_special_tokens(directory),
        ),
        {f"{row_files[i].parent.name} {row_files[i].name}": (i, row_files[i]) for i in left},
        workers,
        name="rows",
        work_bytes=sum(path.stat().st_size for path in tokens),
    )
    if processes.is_first():
        remove(scratch)
        totals, lengths = {}, {}
        for quadrant in conditions:
            parts = [read_json(folder / quadrant / f"{name}.json") for name in names]
            totals[quadrant] = {key: sum(part[key] for part in parts) for key in parts[0]}
            lengths[quadrant] = {n: part["rows"] for n, part in zip(names, parts, strict=True)}
        write_json(folder / LENGTHS, lengths)
        write_json(folder / "rows.json", totals)
    processes.barrier(f"counts in {folder.name}")
    return read_json(folder / "rows.json")


def shuffle_tables(
    tables: Sequence[Path],
    conditions: Mapping[str, str],
    wanted: Sequence[int],
    parts: int,
    seed: int,
    scratch: Path,
    workers: WorkersConfig,
    *,
    doc_ids: bool = False,
) -> list[Path]:
    """Writes the documents of the row files `wanted` to files in `scratch`, one for each slice of
    the tables, and returns their paths for `read_shuffled`; called on every process.

    Row files have `parts` numbers for each condition, in their order. Reading one after the other
    gives one order of all documents that does not depend on `parts`, as long as none has two
    copies: a column `copies` of the tables says how many, else one each.
    """
    cases = " ".join(
        f"WHEN {test} THEN {number * parts}" for number, test in enumerate(conditions.values())
    )
    columns = ["part", "row", "tokens", *(["doc_id"] if doc_ids else [])]
    copied = "copies" in parquet_columns(tables[0])

    def sql(table: str) -> str:
        table = table if copied else f"(SELECT *, 1 AS copies FROM {table})"
        return (
            f"SELECT CASE {cases} END + row_part AS bucket, {position_sql(parts)} AS position, "
            f"{', '.join(columns)} FROM ({copies_sql(table, parts)}) "
            "WHERE bucket IN (SELECT unnest($wanted::INTEGER[]))"
        )

    buckets, parameters = len(conditions) * parts, {"seed": seed, "wanted": wanted}
    slices = plan_slices(tables if wanted else [], sql, scratch)
    map_parts(
        functools.partial(write_slice, buckets=buckets, parameters=parameters),
        slices,
        workers,
        name="order of documents",
        work_bytes=sum(path.stat().st_size for path in tables),
    )
    return [path for _, path in slices.values()]


def shuffle_training_documents(
    config: RunConfig, directory: RunDirectory, scratch: Path, *, doc_ids: bool = False
) -> list[Path]:
    """As `shuffle_tables`, of all row files of a partitioned run: part p of quadrant q, by their
    numbers, is row file q * rows.parts + p."""
    conditions = training_conditions(config.partition.axes.quadrants)
    parts = config.partition.rows.parts
    wanted = list(range(len(conditions) * parts))
    listed = [directory.assignment], conditions, wanted, parts, config.seed
    return shuffle_tables(*listed, scratch, config.workers, doc_ids=doc_ids)


def copies_sql(table: str, parts: int) -> str:
    """SQL for the copies of the documents with tokens in a table, shuffled by the parameter $seed.

    Columns: those of the table, hash (of the first copy), row_part (of `parts` parts of rows) and
    copy, from 0.
    """
    hashed = (
        "SELECT *, md5_number_lower(concat($seed, ' ', doc_id)) AS hash, "
        f"((hash::HUGEINT * {parts}) >> 64)::INTEGER AS row_part FROM {table} WHERE tokens > 0"
    )
    return (
        f"SELECT *, 0 AS copy FROM ({hashed} AND copies = 1) UNION ALL "
        f"SELECT * REPLACE ((row_part + copy) % {parts} AS row_part) FROM ("
        f"SELECT *, unnest(range(copies))::INTEGER AS copy FROM ({hashed} AND copies > 1))"
    )


def position_sql(parts: int) -> str:
    """SQL for where, in [0, 2^64), a copy of `copies_sql` stands: other neighbours for each."""
    own = "md5_number_lower(concat($seed, ' ', copy, ' ', doc_id))"
    width = min(2**64 // parts, 2**64 - 1)  # of a part
    return f"CASE copy WHEN 0 THEN hash ELSE row_part * {width}::UBIGINT + {own} // {parts} END"


def read_shuffled(paths: Sequence[Path], row_file: int) -> ShuffledDocuments:
    """The documents of a row file in files of `shuffle_tables`."""
    keys = [(name, "ascending") for name in ("position", "part", "row")]
    found = read_bucket(paths, row_file).sort_by(keys)
    part, row, tokens = (
        found[name].to_numpy().astype(np.int64) for name in ("part", "row", "tokens")
    )
    doc_id = found["doc_id"] if "doc_id" in found.column_names else None
    return ShuffledDocuments(part, row, tokens, doc_id)


def write_row_file(
    part: tuple[int, Path], advance: Advance, *, shuffled: Sequence[Path], **settings: Any
) -> None:
    """Makes a row file, given by its number and its path without a suffix, from files of
    `shuffle_tables`; `settings` are those of `write_part`."""
    number, path = part
    documents = read_shuffled(shuffled, number)
    counts = write_part(documents, path=path.with_suffix(".arrayrecord"), **settings)
    write_json(path.with_suffix(".json"), counts)


def write_part(
    documents: ShuffledDocuments,
    token_files: Sequence[Path],
    open_files: OpenFiles,
    config: RowsConfig,
    special_tokens: SpecialTokens,
    path: Path,
) -> dict[str, int]:
    """Packs documents into rows and writes them to one file, sequence_length + 1 ids a record.

    `token_files` are listed by part, and `open_files` keeps some of them open. BOS stands before
    every document and is the padding; EOS stands after every document, unless the two are one.
    Returns counts of rows, documents, text tokens and padding ids.
    """
    row_ids, bos, eos = config.sequence_length + 1, special_tokens.bos_id, special_tokens.eos_id
    end = [] if bos == eos else [eos]
    segments = pack_documents(documents, config, special_tokens)
    at_once = max(IDS_AT_ONCE // row_ids, 1)
    with write_tokens(path) as writer:
        for first in range(0, segments.rows, at_once):
            batch = segments.select_rows(first, min(first + at_once, segments.rows))
            chosen = np.unique(batch.document)
            tokens = open_files.read(token_files, documents.part[chosen], documents.row[chosen])
            framed = {
                index: np.concatenate([[bos], ids, end], dtype=np.uint32, casting="unsafe")
                for index, ids in zip(chosen.tolist(), tokens, strict=True)
            }
            rows = np.full((batch.rows, row_ids), bos, np.uint32)
            columns = (batch.row, batch.document, batch.start, batch.stop, batch.offset)
            pieces = zip(*(column.tolist() for column in columns), strict=True)
            for row, document, start, stop, offset in pieces:
                rows[row, offset : offset + stop - start] = framed[document][start:stop]
            for ids in rows:
                writer.append(ids)
    num_ids = int((segments.stop - segments.start).sum()) + segments.num_bos * len(segments.row)
    return {
        "rows": segments.rows,
        "documents": len(documents.tokens),
        "tokens": int(documents.tokens.sum()),
        "padding": segments.rows * row_ids - num_ids,
    }
