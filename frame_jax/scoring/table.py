"""Scores made elsewhere in, in place of the scoring phase: RUN/scores/part-*.parquet out.

A Parquet table with a line for each document and one or two columns of numbers takes the place of
both reference models. Parts have the names of the token shards and hold doc_id, ppl and pd: the
numbers as they are, whatever they mean. A held-out document may have none, and then is in no
quadrant; a training document must have them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb

from frame_jax.config.run import RunConfig
from frame_jax.config.scoring import TableConfig
from frame_jax.corpus.sources.listing import list_files
from frame_jax.errors import UserError, print_note
from frame_jax.files import cached
from frame_jax.parallel import processes
from frame_jax.run.directory import (
    RunDirectory,
    atomic_path,
    is_full,
    list_parts,
    read_json,
    write_json,
)
from frame_jax.sql import database, identifier, parquet, write_parquet

SHOWN = 3  # documents named in a message
NUMBERS = re.compile(  # or their text, in DuckDB's words
    r"U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?|FLOAT|DOUBLE|DECIMAL\(.*\)|BOOLEAN|VARCHAR"
)


def check_table(config: RunConfig) -> None:
    """Refuses a table that cannot be used, before the corpus is tokenized; on the first process.

    Raises:
        UserError: where it is not there, is no Parquet, lacks a column, or one holds no numbers.
    """
    table = config.scoring.table
    if table is None or not processes.is_first():
        return
    files = table_files(table)
    try:
        with duckdb.connect() as connection:
            described = connection.execute(f"DESCRIBE SELECT * FROM {parquet(*files)}").fetchall()
    except duckdb.Error as error:
        raise unreadable(table, error) from error
    kinds = {name: kind for name, kind, *_ in described}
    for key, column in (("doc_id", table.doc_id), ("ppl", table.ppl), ("pd", table.pd)):
        if column is not None and column not in kinds:
            raise UserError(
                f"scoring.table.{key}: {table.path} has no column {column!r}; it has: "
                f"{', '.join(kinds)}"
            )
    for key, column in (("ppl", table.ppl), ("pd", table.pd)):
        if column is not None and not NUMBERS.fullmatch(kinds[column]):
            raise UserError(
                f"scoring.table.{key}: the column {column!r} of {table.path} holds "
                f"{kinds[column]}, not numbers: name another"
            )
    if config.corpus.reference_fraction > 0:
        print_note(
            f"corpus.reference_fraction is {config.corpus.reference_fraction}: with scoring.table "
            "no reference model is trained, and these documents are left out of every order for "
            "nothing; set it to 0"
        )


def table_files(table: TableConfig) -> list[Path]:
    """The files of the table, on this machine.

    Raises:
        UserError: where there are none.
    """
    files, _ = list_files(table.path, (".parquet",))
    if not files:
        raise UserError(f"scoring.table.path: there is no Parquet file at {table.path}: correct it")
    return [cached(file.path) for file in files]


def unreadable(table: TableConfig, error: Exception) -> UserError:
    """That the table is not what it should be."""
    return UserError(f"scoring.table.path: {table.path} cannot be read as a Parquet table: {error}")


def run(config: RunConfig, directory: RunDirectory) -> dict[str, Any]:
    """Writes every part; called on every process, of which the first does it.

    Returns:
        documents with numbers, and which held-out documents and lines of the table found no partner
        (`warnings`).

    Raises:
        UserError: where a training document has no number or any document several lines, or where
            the numbers are not those that an earlier start has written.
    """
    if processes.is_first():
        import_table(config, directory)
    processes.barrier("score: table imported")
    found = read_json(directory.scores / "table.json")
    warnings = [
        f"scoring.table: {found[key]:,} {text}"
        for key, text in (
            ("ignored", "lines name no training or held-out document of the corpus: ignored"),
            ("held_out_without", "held-out documents have no numbers, and are in no quadrant"),
        )
        if found[key]
    ]
    if processes.is_first():
        for line in warnings:
            print_note(line)
    return {"documents": found["documents"], "warnings": warnings}


def import_table(config: RunConfig, directory: RunDirectory) -> None:
    """Joins the table with the corpus, checks what came out, and writes parts and table.json."""
    table = config.scoring.table
    assert table is not None
    parts = list_parts(directory.tokens, ".parquet")
    with database(directory.scores) as connection:
        try:
            join(connection, table, parts)
        except duckdb.Error as error:
            if is_full(error) or isinstance(error, duckdb.OutOfMemoryException):
                raise
            raise unreadable(table, error) from error
        problems = list(wrong(connection, table))
        if problems:
            raise UserError(f"scoring.table: {table.path}: {'; '.join(problems)}")
        found = counts(connection)
        require_same_numbers(directory.scores / "table.json", found)
        for number, part in enumerate(parts):
            with atomic_path(directory.scores / part.name) as path:
                query = f"SELECT doc_id, ppl, pd FROM joined WHERE part = {number} AND fine"
                connection.execute(write_parquet(f"{query} ORDER BY row", path, "zstd"))
    write_json(directory.scores / "table.json", found)


def join(connection: duckdb.DuckDBPyConnection, table: TableConfig, parts: list[Path]) -> None:
    """Makes the view `given` (doc_id, ppl, pd: the table as it is) and the table `joined`: a line
    for each document of the splits train and held_out, in the order of parts."""
    pd = "0" if table.pd is None else identifier(table.pd)
    connection.execute(
        f"CREATE VIEW given AS SELECT {identifier(table.doc_id)}::VARCHAR AS doc_id, "
        f"{identifier(table.ppl)} AS ppl, {pd} AS pd FROM {parquet(*table_files(table))}"
    )
    connection.execute(
        f"""
        CREATE TABLE joined AS
        WITH wanted AS (
            SELECT doc_id, part, row, split FROM {parquet(*parts)}
            WHERE split IN ('train', 'held_out'))
        SELECT wanted.*, count(given.doc_id) AS lines, any_value(try_cast(ppl AS DOUBLE)) AS ppl,
            any_value(try_cast(pd AS DOUBLE)) AS pd,
            lines = 1 AND coalesce(isfinite(any_value(try_cast(ppl AS DOUBLE)))
                AND isfinite(any_value(try_cast(pd AS DOUBLE))), false) AS fine
        FROM wanted LEFT JOIN given USING (doc_id) GROUP BY ALL ORDER BY part, row
        """
    )


def wrong(connection: duckdb.DuckDBPyConnection, table: TableConfig) -> Iterator[str]:
    """What makes the table useless for this corpus, in words, with counts and first examples."""

    def documents(condition: str) -> tuple[int, str]:
        count = f"SELECT count(*) FROM joined WHERE {condition}"
        [(number,)] = connection.execute(count).fetchall()
        first = connection.execute(
            f"SELECT doc_id FROM joined WHERE {condition} ORDER BY part, row LIMIT {SHOWN}"
        ).fetchall()
        return number, ", ".join(repr(doc_id) for (doc_id,) in first)

    number, first = documents("split = 'train' AND lines = 0")
    if number:
        yield (
            f"{number:,} training documents have no line ({first}). Ids are those of "
            "RUN/tokens/part-*.parquet, column doc_id"
        )
    number, first = documents("lines > 1")
    if number:
        yield f"{number:,} documents have several lines ({first}): keep one of each"
    for name, column in (("ppl", table.ppl), ("pd", table.pd)):
        condition = f"split = 'train' AND lines = 1 AND NOT coalesce(isfinite({name}), false)"
        number, _ = documents(condition)
        if number:
            examples = connection.execute(
                f"SELECT doc_id, given.{name}::VARCHAR FROM given JOIN (SELECT doc_id, part, row "
                f"FROM joined WHERE {condition} ORDER BY part, row LIMIT {SHOWN}) USING (doc_id) "
                "ORDER BY part, row"
            ).fetchall()
            shown = ", ".join(f"{doc_id!r}: {value or 'null'}" for doc_id, value in examples)
            yield f"{number:,} training documents have no number in the column {column!r} ({shown})"


def counts(connection: duckdb.DuckDBPyConnection) -> dict[str, Any]:
    """What table.json holds: `documents` with numbers, held-out ones without, lines of the table
    that name none of these (`ignored`), and a digest of the documents' numbers."""
    [(documents, without, used, digest)] = connection.execute(
        """
        SELECT count(*) FILTER (fine), count(*) FILTER (NOT fine), sum(lines)::BIGINT,
            bit_xor(md5_number_lower(concat_ws(' ', doc_id, ppl, pd))) FROM joined
        """
    ).fetchall()
    [(lines,)] = connection.execute("SELECT count(*) FROM given").fetchall()
    return {
        "documents": documents,
        "held_out_without": without,
        "ignored": lines - used,
        "digest": f"{digest:016x}",
    }


def require_same_numbers(path: Path, found: dict[str, Any]) -> None:
    """Refuses to replace parts by others than those that the partition may have been made from.

    Raises:
        UserError: where the table has changed.
    """
    if path.exists() and read_json(path)["digest"] != found["digest"]:
        raise UserError(
            f"scoring.table: its numbers are not those that the parts in {path.parent} were made "
            "of. Put the table back, or import it again: --redo score"
        )
