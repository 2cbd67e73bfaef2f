"""Imports scores made elsewhere, a table of documents, in place of the scoring phase.

A Parquet table with a line for each document and one or two columns of numbers takes the place of
both reference models. Parts have the names of the token shards and hold doc_id, ppl and pd: the
numbers as they are, whatever they mean. A held-out document may have none, and then is in no
quadrant; a training document must have them.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from frame_jax.config.run import RunConfig
from frame_jax.config.scoring import TableConfig
from frame_jax.corpus.sources.inputs import escape_name, is_ignored
from frame_jax.corpus.sources.listing import list_files
from frame_jax.errors import UserError, find_storage_error, is_disk_full, print_note, storage_error
from frame_jax.files import local_copy
from frame_jax.parallel import processes
from frame_jax.run.directory import RunDirectory, atomic_path, list_parts, read_json, write_json
from frame_jax.run.program_exit import run_on_first_process
from frame_jax.sql import UNREADABLE, open_database, parquet_table, sql_identifier, write_parquet

SHOWN = 3  # documents named in a message
NUMBERS = re.compile(  # or their text, in DuckDB's words
    r"U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?|FLOAT|DOUBLE|DECIMAL\(.*\)|BOOLEAN|VARCHAR"
)
IDS = re.compile(
    r"U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?|FLOAT|DOUBLE|DECIMAL\(.*\)|VARCHAR|UUID|BLOB|DATE"
)

# A column's name in DuckDB, which tells no capitals from small letters and calls the second of
# `PPL` and `ppl` `ppl_1`; and its type.
Column = tuple[str, str]
Files = dict[tuple[Column, ...], list[Path]]  # those whose columns have the same types


def check_table(config: RunConfig) -> None:
    """Refuses a table that cannot be used, before the corpus is tokenized; process 0 only.

    Raises:
        UserError: where it is not there, is no Parquet, or a file of it lacks a column or has one
            that holds no ids or no numbers.
    """
    table = config.scoring.table
    if table is None or not processes.is_first():
        return
    files, aside = table_files(table)
    files_by_type(table, files)
    if aside:
        more = f" and {len(aside) - SHOWN:,} more" if len(aside) > SHOWN else ""
        print_note(
            f"scoring.table.path: left out of {table.path}, as no data by the names: "
            f"{', '.join(aside[:SHOWN])}{more}"
        )
    if config.corpus.reference_fraction > 0:
        print_note(
            f"corpus.reference_fraction is {config.corpus.reference_fraction}: with scoring.table "
            "no reference model is trained, and these documents are left out of every order for "
            "nothing; set it to 0"
        )


def table_files(table: TableConfig) -> tuple[dict[str, Path], list[str]]:
    """The table's files on this machine by their original location, and ignored files beside them.

    Raises:
        UserError: where there are none, or one has a name that DuckDB does not read.
    """
    listed, single = list_files(table.path, (".parquet",))
    files = [file for file in listed if single or not is_ignored(escape_name(file.name))]
    if not files:
        raise UserError(f"scoring.table.path: there is no Parquet file at {table.path}: correct it")
    found = {file.path: local_copy(file.path) for file in files}
    for path in map(str, map(Path.absolute, found.values())):
        if escape_name(path) != path or UNREADABLE.search(path) is not None:
            raise UserError(
                f"scoring.table.path: {escape_name(path)}: DuckDB reads no path that is not "
                "UTF-8, and none with both a backslash and one of * ? [: rename it"
            )
    everything = [] if single else list_files(table.path, ("",))[0]
    return found, [escape_name(file.name) for file in everything if file not in files]


def files_by_type(table: TableConfig, files: dict[str, Path]) -> Files:
    """Groups the table's files by the DuckDB types of their ids and numbers.

    Raises:
        UserError: naming the first file that is no Parquet, lacks a column, or has one that holds
            no ids or no numbers.
    """
    found: Files = {}
    with duckdb.connect() as connection:
        for path_, path in files.items():
            try:
                query = f"DESCRIBE SELECT * FROM {parquet_table(path)}"
                columns = [(name, kind) for name, kind, *_ in connection.execute(query).fetchall()]
                names = pq.read_schema(path).names
            except (duckdb.Error, pa.ArrowException) as error:
                raise unreadable_table_error(path_, error) from error
            found.setdefault(columns_of(table, path_, names, columns), []).append(path)
    return found


def columns_of(
    table: TableConfig, file: str, names: list[str], columns: list[Column]
) -> tuple[Column, ...]:
    """The columns of a file that the table names: of ids, PPL and, if there is one, PD.

    `names` are its columns as it calls them, `columns` the same as DuckDB has them.

    Raises:
        UserError: where one is not there, there twice, or of no use.
    """
    found = []
    for key, wanted, what in (
        ("doc_id", IDS, "ids: write them as text, as RUN/tokens/part-*.parquet has them"),
        ("ppl", NUMBERS, "numbers: name another"),
        ("pd", NUMBERS, "numbers: name another"),
    ):
        column = getattr(table, key)
        if column is None:
            continue
        if names.count(column) != 1:
            has = f"several columns {column!r}" if column in names else f"no column {column!r}"
            raise UserError(f"scoring.table.{key}: {file} has {has}; it has: {', '.join(names)}")
        kind = columns[names.index(column)][1]
        if not wanted.fullmatch(kind):
            raise UserError(
                f"scoring.table.{key}: the column {column!r} of {file} holds {kind}, not {what}"
            )
        found.append(columns[names.index(column)])
    return tuple(found)


def unreadable_table_error(path: str, error: Exception) -> UserError:
    """Error for a file that is no table, or that the storage does not give."""
    if find_storage_error(error):
        return storage_error(path, error)
    return UserError(f"scoring.table.path: {path} cannot be read as a Parquet table: {error}")


def import_scores(config: RunConfig, directory: RunDirectory) -> dict[str, Any]:
    """Writes every part of RUN/scores; every process calls it, and the first one does the work.

    Returns:
        documents with numbers, and which held-out documents and lines of the table found no partner
        (`warnings`).

    Raises:
        UserError: where a training document has no number or any document several lines, or where
            the numbers are not those that an earlier start has written.
    """
    found = run_on_first_process(lambda: import_table(config, directory))
    warnings = [
        f"scoring.table: {found[key]:,} {text}"
        for key, text in (
            ("ignored", "lines name no training or held-out document of the corpus: ignored"),
            ("held_out_without", "held-out documents have no numbers, and are in no quadrant"),
        )
        if found[key]
    ]
    processes.print_notes(warnings)
    return {"documents": found["documents"], "warnings": warnings}


def import_table(config: RunConfig, directory: RunDirectory) -> dict[str, Any]:
    """Joins the table with the corpus, checks it, writes parts and table.json; returns the last."""
    table = config.scoring.table
    assert table is not None
    parts = list_parts(directory.tokens, ".parquet")
    with open_database(directory.scores) as connection:
        try:
            join_table(connection, table, parts)
        except duckdb.Error as error:
            if is_disk_full(error) or isinstance(error, duckdb.OutOfMemoryException):
                raise
            raise unreadable_table_error(table.path, error) from error
        problems = list(table_errors(connection, table))
        if problems:
            raise UserError(f"scoring.table: {table.path}: {'; '.join(problems)}")
        found = table_counts(connection)
        before = directory.scores / "table.json"  # a partition may have been made from its parts
        if before.exists() and read_json(before)["digest"] != found["digest"]:
            raise UserError(
                f"scoring.table: its numbers are not those that the parts in {before.parent} were "
                "made of. Put the table back, or import it again: --redo score"
            )
        for number, part in enumerate(parts):
            with atomic_path(directory.scores / part.name) as path:
                query = f"SELECT doc_id, ppl, pd FROM joined WHERE part = {number} AND fine"
                connection.execute(write_parquet(f"{query} ORDER BY row", path, "zstd"))
    write_json(before, found)
    return found


def join_table(
    connection: duckdb.DuckDBPyConnection, table: TableConfig, parts: list[Path]
) -> None:
    """Makes the views `given` (the table as it is) and `joined` (a line for each document of the
    splits train and held_out, in the order of parts)."""
    files, _ = table_files(table)
    # Those of one type each, because DuckDB takes the types of the first file for those of all.
    queries = [
        f"SELECT {id_in_sql(*doc_id)} AS doc_id, {sql_identifier(ppl[0])} AS ppl, "
        f"{sql_identifier(pd[0][0]) if pd else 0} AS pd FROM {parquet_table(*paths)}"
        for (doc_id, ppl, *pd), paths in files_by_type(table, files).items()
    ]
    connection.execute(f"CREATE VIEW given AS {' UNION ALL '.join(queries)}")
    connection.execute(
        f"""
        CREATE TABLE joined AS
        WITH wanted AS (
            SELECT doc_id, part, row, split FROM {parquet_table(*parts)}
            WHERE split IN ('train', 'held_out'))
        SELECT wanted.*, count(given.doc_id) AS lines, any_value(try_cast(ppl AS DOUBLE)) AS ppl,
            any_value(try_cast(pd AS DOUBLE)) AS pd,
            lines = 1 AND coalesce(isfinite(any_value(try_cast(ppl AS DOUBLE)))
                AND isfinite(any_value(try_cast(pd AS DOUBLE))), false) AS fine
        FROM wanted LEFT JOIN given USING (doc_id) GROUP BY ALL ORDER BY part, row
        """
    )


def id_in_sql(column: str, kind: str) -> str:
    """SQL for a column of ids as text, equal to what `corpus.documents.get_id` makes of them."""
    name = sql_identifier(column)
    if kind == "BLOB":
        return f"coalesce(try(decode({name})), lower(hex({name})))"
    if kind in ("FLOAT", "DOUBLE"):
        value = f"{name}::DOUBLE"
        whole = f"CASE WHEN {value} = trunc({value}) THEN try_cast({value} AS HUGEINT)::VARCHAR END"
        return f"CASE WHEN isfinite({value}) THEN coalesce({whole}, {value}::VARCHAR) END"
    return f"{name}::VARCHAR"


def table_errors(connection: duckdb.DuckDBPyConnection, table: TableConfig) -> Iterator[str]:
    """Yields everything that makes the table useless for this corpus, with counts and examples."""

    def documents(condition: str) -> tuple[int, str]:
        [(number, first)] = connection.execute(
            f"SELECT count(*), arg_min(doc_id, (part, row), {SHOWN}) FROM joined WHERE {condition}"
        ).fetchall()
        return number, ", ".join(map(repr, first or []))

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


def table_counts(connection: duckdb.DuckDBPyConnection) -> dict[str, Any]:
    """The content of table.json: counts of documents and lines, and a digest of the numbers."""
    found = connection.sql(
        """
        SELECT count(*) FILTER (fine) AS documents, count(*) FILTER (NOT fine) AS held_out_without,
            (SELECT count(*) FROM given) - sum(lines)::BIGINT AS ignored,
            format('{:016x}', bit_xor(md5_number_lower(concat_ws(' ', doc_id, ppl, pd)))) AS digest
        FROM joined
        """
    )
    return found.to_arrow_table().to_pylist()[0]
