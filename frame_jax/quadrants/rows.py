"""Documents of a cell in, training rows of sequence_length + 1 token ids out.

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
from frame_jax.parallel import processes
from frame_jax.quadrants.packing import best_fit, concat
from frame_jax.records import LENGTHS, OpenFiles, write_tokens
from frame_jax.run import progress
from frame_jax.run.directory import RunDirectory, list_parts, part_name, read_json, write_json
from frame_jax.sql import database, literal, parquet

# Ids of rows that are made together (64 MiB): documents lie in all token files, and where these
# cannot all be kept open, each is opened again every time.
IDS_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class Documents:
    """Documents in the order in which they enter rows; each number int64 [documents].

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


def write_reference_rows(config: RunConfig, directory: RunDirectory) -> dict[str, Any]:
    """Makes the rows that train the reference models: RUN/reference/rows/reference/part-*.

    Returns:
        The content of RUN/reference/rows/rows.json, see `write_cells`.
    """
    tables = list_parts(directory.tokens, ".parquet")
    conditions = {"reference": "split = 'reference'"}
    folder = directory.reference("rows")
    return write_cells(config.reference.rows, directory, folder, tables, conditions, config.seed)


def training_documents(cells: Sequence[str]) -> dict[str, str]:
    """The condition in SQL under which a line of the assignment goes into each cell's rows."""
    return {cell: f"split = 'train' AND quadrant = {literal(cell)}" for cell in cells}


def write_cells(
    config: RowsConfig,
    directory: RunDirectory,
    folder: Path,
    tables: Sequence[Path],
    conditions: Mapping[str, str],
    seed: int,
) -> dict[str, Any]:
    """Writes FOLDER/CELL/part-*.arrayrecord, a record a row, and FOLDER/{rows,lengths}.json.

    Called on every process, each of which makes its share of the parts. A part whose counts are
    there is complete and kept.

    Args:
        config: Length, packing, parts.
        directory: Where the tokens and the special tokens are.
        folder: Where the cells go.
        tables: Parquet files with doc_id, part, row, tokens and what the conditions name.
        conditions: Cell -> SQL condition that its documents meet.
        seed: Shuffles the documents.

    Returns:
        The content of rows.json: {cell: {rows, documents, tokens, padding}}, in text tokens and
        padding ids.
    """
    special = read_json(directory.tokenizer.with_name("special_tokens.json"))
    token_files, open_files = list_parts(directory.tokens, ".arrayrecord"), OpenFiles()
    names = [part_name(index, config.parts, "") for index in range(config.parts)]
    units = processes.mine([(cell, index) for cell in conditions for index in range(config.parts)])
    left = [u for u in units if not (folder / u[0] / f"{names[u[1]]}.json").exists()]
    show = processes.is_first()
    with contextlib.ExitStack() as stack:
        select = stack.enter_context(listed(tables, conditions, left, config.parts, seed, folder))
        update = stack.enter_context(progress.bar("rows", len(left), "parts", show=show))
        for cell, index in left:
            path = folder / cell / names[index]
            counts = write_part(
                select(cell, index),
                token_files,
                open_files,
                config,
                special["bos_id"],
                special["eos_id"],
                path.with_suffix(".arrayrecord"),
            )
            write_json(path.with_suffix(".json"), counts)
            update(1, f"{cell} {names[index]}")
    processes.barrier(f"rows in {folder.name}")
    if processes.is_first():
        totals, lengths = {}, {}
        for cell in conditions:
            parts = [read_json(folder / cell / f"{name}.json") for name in names]
            totals[cell] = {key: sum(part[key] for part in parts) for key in parts[0]}
            lengths[cell] = {n: part["rows"] for n, part in zip(names, parts, strict=True)}
        write_json(folder / LENGTHS, lengths)
        write_json(folder / "rows.json", totals)
    processes.barrier(f"counts in {folder.name}")
    return read_json(folder / "rows.json")


@contextlib.contextmanager
def listed(
    tables: Sequence[Path],
    conditions: Mapping[str, str],
    units: Sequence[tuple[str, int]],
    parts: int,
    seed: int,
    scratch: Path,
    *,
    doc_ids: bool = False,
) -> Iterator[Callable[[str, int], Documents]]:
    """Yields a function from a cell and a part's index, one of `units`, to its documents, shuffled.

    Reading part after part gives one order of all documents that does not depend on `parts`.
    """
    numbers = {unit: number for number, unit in enumerate(units)}
    columns = ["part", "row", "tokens", *(["doc_id"] if doc_ids else [])]
    cells = " ".join(f"WHEN {test} THEN {literal(cell)}" for cell, test in conditions.items())
    with database(scratch) as connection:
        connection.execute("CREATE TABLE units (cell VARCHAR, index INTEGER, unit INTEGER)")
        if not units:
            yield lambda cell, index: Documents(*np.empty((3, 0), np.int64))
            return
        connection.executemany(
            "INSERT INTO units VALUES (?, ?, ?)",
            [(*unit, number) for unit, number in numbers.items()],
        )
        # In the order of units, whose documents then lie close together: reading one part passes
        # over the rest by the ranges of `unit` that DuckDB keeps.
        connection.execute(
            f"""
            CREATE TABLE chosen AS
            SELECT unit, place, {", ".join(columns)} FROM (
                SELECT *, CASE {cells} END AS cell,
                    md5_number_lower(concat($seed, ' ', doc_id)) AS place,
                    ((place::HUGEINT * {parts}) >> 64)::INTEGER AS index
                FROM {parquet(*tables)} WHERE tokens > 0) JOIN units USING (cell, index)
            ORDER BY unit, place
            """,
            {"seed": seed},
        )

        def select(cell: str, index: int) -> Documents:
            found = connection.sql(
                f"SELECT {', '.join(columns)} FROM chosen WHERE unit = $unit "
                "ORDER BY place, part, row",
                params={"unit": numbers[cell, index]},
            ).to_arrow_table()
            part, row, tokens = (found[name].to_numpy().astype(np.int64) for name in columns[:3])
            return Documents(part, row, tokens, found["doc_id"] if doc_ids else None)

        yield select


def write_part(
    documents: Documents,
    token_files: Sequence[Path],
    open_files: OpenFiles,
    config: RowsConfig,
    bos: int,
    eos: int,
    path: Path,
) -> dict[str, int]:
    """Writes the rows of `documents` to one file.

    Args:
        documents: What goes in, in order.
        token_files: The token files, by part.
        open_files: Keeps some of them open.
        config: Length and packing.
        bos: Id before every document, and padding.
        eos: Id after every document, unless it is `bos`.
        path: Output, one record a row: sequence_length + 1 ids.

    Returns:
        Counts of rows, documents, text tokens and padding ids.
    """
    row_ids = config.sequence_length + 1
    pack = concat if config.packing == "concat" else best_fit
    end = [] if bos == eos else [eos]
    pieces = pack(documents.tokens + 1 + len(end), row_ids)
    at_once = max(IDS_AT_ONCE // row_ids, 1)
    with write_tokens(path) as writer:
        for first in range(0, pieces.rows, at_once):
            batch = pieces.of_rows(first, min(first + at_once, pieces.rows))
            chosen = np.unique(batch.document)
            framed = read(documents, chosen, token_files, open_files, bos, end)
            rows = np.full((batch.rows, row_ids), bos, np.uint32)
            filled = [0] * batch.rows
            columns = (batch.row, batch.document, batch.start, batch.stop)
            for row, document, start, stop in zip(*(c.tolist() for c in columns), strict=True):
                place = filled[row] + pieces.lead
                filled[row] = place + stop - start
                rows[row, place : filled[row]] = framed[document][start:stop]
            for ids in rows:
                writer.append(ids)
    return {
        "rows": pieces.rows,
        "documents": len(documents.tokens),
        "tokens": int(documents.tokens.sum()),
        "padding": pieces.rows * row_ids - pieces.ids,
    }


def read(
    documents: Documents,
    chosen: np.ndarray,
    token_files: Sequence[Path],
    open_files: OpenFiles,
    bos: int,
    end: list[int],
) -> dict[int, np.ndarray]:
    """The documents with the indices `chosen`, framed: {index: uint32 [ids]}."""
    framed: dict[int, np.ndarray] = {}
    parts = documents.part[chosen]
    for part in np.unique(parts):
        wanted = chosen[parts == part]
        tokens = open_files.reader(token_files[part]).read(documents.row[wanted])
        for index, ids in zip(wanted.tolist(), tokens, strict=True):
            framed[index] = np.concatenate([[bos], ids, end], dtype=np.uint32, casting="unsafe")
    return framed
