"""Writes training rows: a quadrant's documents in, records of sequence_length + 1 token ids out.

Documents are shuffled by a hash of their id and the run's seed, and the range of the hash is cut
into parts. A process lists the documents of all its parts in one pass, on disk where they are many,
and makes part after part without looking at the others'. A document enters framed as
[bos] + tokens + [eos], or [bos] + tokens where the two are one. Every token of every document is in
exactly one row; where rows are not full they end in padding, which is bos repeated, and counted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from frame_jax.config.quadrants import RowsConfig
from frame_jax.config.run import RunConfig
from frame_jax.errors import UserError
from frame_jax.parallel import processes
from frame_jax.quadrants.packing import PackedSegments, best_fit, concat
from frame_jax.records import LENGTHS, OpenFiles, write_tokens
from frame_jax.run import progress
from frame_jax.run.directory import RunDirectory, list_parts, part_name, read_json, write_json
from frame_jax.run.special_tokens import read_special_tokens
from frame_jax.sql import open_database, parquet_table, sql_literal

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


def pack_documents(
    documents: ShuffledDocuments, config: RowsConfig, bos: int, eos: int
) -> PackedSegments:
    """Decides which segment of which framed document goes into which row; EOS may be BOS."""
    pack = concat if config.packing == "concat" else best_fit
    return pack(documents.tokens + (1 if bos == eos else 2), config.sequence_length + 1)


def write_reference_rows(config: RunConfig, directory: RunDirectory) -> dict[str, Any]:
    """Writes the rows that train the reference models: RUN/reference/rows/reference/part-*.

    Returns:
        The content of RUN/reference/rows/rows.json, see `write_quadrant_rows`.

    Raises:
        UserError: where there is no such document.
    """
    tables = list_parts(directory.tokens, ".parquet")
    conditions = {"reference": "split = 'reference'"}
    folder = directory.reference("rows")
    rows = write_quadrant_rows(
        config.reference.rows, directory, folder, tables, conditions, config.seed
    )
    if rows["reference"]["documents"] == 0:
        raise UserError(
            "no document of the corpus fell into the split that trains the reference models "
            f"(corpus.reference_fraction: {config.corpus.reference_fraction}): raise it, or give a "
            "larger corpus, and repeat with --redo tokenize; or name trained models in "
            "reference.weak.checkpoint and reference.strong.checkpoint"
        )
    return rows


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
) -> dict[str, Any]:
    """Writes FOLDER/QUADRANT/part-*.arrayrecord, one record a row, and FOLDER/{rows,lengths}.json.

    Called on every process, each of which makes its share of the parts. A part whose counts are
    there is complete and kept. Tables are Parquet files with doc_id, part, row, tokens and what the
    conditions name, which say in SQL which documents a quadrant has; `seed` shuffles them.

    Returns:
        The content of rows.json: {quadrant: {rows, documents, tokens, padding}}, in text tokens and
        padding ids.
    """
    special_tokens = read_special_tokens(directory)
    token_files, open_files = list_parts(directory.tokens, ".arrayrecord"), OpenFiles()
    names = [part_name(index, config.parts, "") for index in range(config.parts)]
    row_files = processes.local_share(
        [(quadrant, index) for quadrant in conditions for index in range(config.parts)]
    )
    left = [(q, i) for q, i in row_files if not (folder / q / f"{names[i]}.json").exists()]
    with (
        list_documents(tables, conditions, left, config.parts, seed, folder) as select,
        progress.progress_bar("rows", len(left), "parts", show=processes.is_first()) as update,
    ):
        for quadrant, index in left:
            path = folder / quadrant / names[index]
            counts = write_part(
                select(quadrant, index),
                token_files,
                open_files,
                config,
                special_tokens.bos_id,
                special_tokens.eos_id,
                path.with_suffix(".arrayrecord"),
            )
            write_json(path.with_suffix(".json"), counts)
            update(1, f"{quadrant} {names[index]}")
    processes.barrier(f"rows in {folder.name}")
    if processes.is_first():
        totals, lengths = {}, {}
        for quadrant in conditions:
            parts = [read_json(folder / quadrant / f"{name}.json") for name in names]
            totals[quadrant] = {key: sum(part[key] for part in parts) for key in parts[0]}
            lengths[quadrant] = {n: part["rows"] for n, part in zip(names, parts, strict=True)}
        write_json(folder / LENGTHS, lengths)
        write_json(folder / "rows.json", totals)
    processes.barrier(f"counts in {folder.name}")
    return read_json(folder / "rows.json")


@contextlib.contextmanager
def list_documents(
    tables: Sequence[Path],
    conditions: Mapping[str, str],
    row_files: Sequence[tuple[str, int]],
    parts: int,
    seed: int,
    scratch: Path,
    *,
    doc_ids: bool = False,
) -> Iterator[Callable[[str, int], ShuffledDocuments]]:
    """Yields a function from a quadrant and the index of a row file to its shuffled documents.

    Reading part after part gives one order of all documents that does not depend on `parts`.
    """
    if not row_files:
        yield lambda quadrant, index: ShuffledDocuments(*np.empty((3, 0), np.int64))
        return
    columns = ["part", "row", "tokens", *(["doc_id"] if doc_ids else [])]
    firsts = {quadrant: number * parts for number, quadrant in enumerate(conditions)}
    cases = " ".join(f"WHEN {test} THEN {firsts[name]}" for name, test in conditions.items())
    wanted = [firsts[quadrant] + index for quadrant, index in row_files]
    with open_database(scratch) as connection:
        # In the order of files, whose documents then lie close together: reading one part passes
        # over the rest by the ranges of `row_file` that DuckDB keeps.
        connection.execute(
            f"""
            CREATE TABLE chosen AS
            SELECT row_file, position, {", ".join(columns)} FROM (
                SELECT *, md5_number_lower(concat($seed, ' ', doc_id)) AS position,
                    CASE {cases} END + ((position::HUGEINT * {parts}) >> 64)::INTEGER AS row_file
                FROM {parquet_table(*tables)} WHERE tokens > 0)
            WHERE row_file IN (SELECT unnest($wanted::INTEGER[]))
            ORDER BY row_file, position
            """,
            {"seed": seed, "wanted": wanted},
        )

        def select(quadrant: str, index: int) -> ShuffledDocuments:
            found = connection.sql(
                f"SELECT {', '.join(columns)} FROM chosen WHERE row_file = $row_file "
                "ORDER BY position, part, row",
                params={"row_file": firsts[quadrant] + index},
            ).to_arrow_table()
            part, row, tokens = (found[name].to_numpy().astype(np.int64) for name in columns[:3])
            return ShuffledDocuments(part, row, tokens, found["doc_id"] if doc_ids else None)

        yield select


@contextlib.contextmanager
def list_packed_documents(
    config: RunConfig,
    directory: RunDirectory,
    row_files: Sequence[tuple[str, int]],
    scratch: Path,
    *,
    doc_ids: bool = False,
) -> Iterator[Callable[[str, int], tuple[ShuffledDocuments, PackedSegments]]]:
    """As `list_documents` for training rows that exist, with how the documents were packed."""
    special_tokens, rows = read_special_tokens(directory), config.partition.rows
    conditions = training_conditions(config.partition.axes.quadrants)
    listed = [directory.assignment], conditions, row_files, rows.parts, config.seed, scratch
    with list_documents(*listed, doc_ids=doc_ids) as select:

        def select_packed(quadrant: str, index: int) -> tuple[ShuffledDocuments, PackedSegments]:
            documents = select(quadrant, index)
            bos, eos = special_tokens.bos_id, special_tokens.eos_id
            return documents, pack_documents(documents, rows, bos, eos)

        yield select_packed


def write_part(
    documents: ShuffledDocuments,
    token_files: Sequence[Path],
    open_files: OpenFiles,
    config: RowsConfig,
    bos: int,
    eos: int,
    path: Path,
) -> dict[str, int]:
    """Packs documents into rows and writes them to one file, sequence_length + 1 ids a record.

    `token_files` are listed by part, and `open_files` keeps some of them open. BOS stands before
    every document and is the padding; EOS stands after every document, unless the two are one.

    Returns:
        Counts of rows, documents, text tokens and padding ids.
    """
    row_ids, end = config.sequence_length + 1, [] if bos == eos else [eos]
    segments = pack_documents(documents, config, bos, eos)
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
            filled = [0] * batch.rows
            columns = (batch.row, batch.document, batch.start, batch.stop)
            for row, document, start, stop in zip(*(c.tolist() for c in columns), strict=True):
                offset = filled[row] + segments.num_bos
                filled[row] = offset + stop - start
                rows[row, offset : filled[row]] = framed[document][start:stop]
            for ids in rows:
                writer.append(ids)
    return {
        "rows": segments.rows,
        "documents": len(documents.tokens),
        "tokens": int(documents.tokens.sum()),
        "padding": segments.rows * row_ids - segments.num_ids,
    }
