"""Values and files as DuckDB's SQL, and a database that spills to disk.

Every file that DuckDB reads or writes is named here and nowhere else (a test sees to it): left to
itself, it reads `runs/a[1]` as a pattern, which `runs/a1` meets, makes a folder `split=train` on
the way to a file a column, and takes a leading `~` for somebody's home.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import duckdb

from frame_jax.parallel.host import available_cores, in_worker

# Of these names no pattern can be made that means them alone.
UNREADABLE = re.compile(r"\\.*[*?[]|[*?[].*\\", re.DOTALL)


@contextmanager
def open_database(scratch: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """An empty DuckDB database that spills to a temporary folder in `scratch`.

    It has a thread for every core, in a worker one, and takes half a gigabyte a thread, but at
    least 2 GiB outside of workers, however large the corpus.
    """
    threads = available_cores()
    memory = 512 * (threads if in_worker() else max(4, threads))
    scratch.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=scratch, prefix=".tmp-") as spill, duckdb.connect() as connection:
        connection.execute(f"SET temp_directory = {sql_literal(spill)}")
        connection.execute(f"SET threads = {threads}")
        connection.execute(f"SET memory_limit = '{memory}MiB'")
        connection.execute("SET preserve_insertion_order = false")
        connection.execute("SET enable_progress_bar = false")
        yield connection


def sql_literal(value: str | Path) -> str:
    """A string in SQL, for the places that take no parameters.

    >>> sql_literal("it's")
    "'it''s'"
    """
    return "'" + str(value).replace("'", "''") + "'"


def sql_identifier(name: str) -> str:
    """A column's name in SQL.

    >>> sql_identifier("score of it")
    '"score of it"'
    """
    return '"' + name.replace('"', '""') + '"'


def sql_pattern(path: Path) -> str:
    """A string in SQL: the file pattern that matches exactly this file.

    >>> sql_pattern(Path("/runs/a[1]/x.parquet"))
    "'/runs/a[[]1]/x.parquet'"
    """
    return sql_literal(re.sub(r"[*?[]", r"[\g<0>]", str(path.absolute())))


def parquet_table(*paths: Path, lines: tuple[int, int] | None = None) -> str:
    """A table expression of exactly these Parquet files, or of a range of lines of one."""
    files = f"[{', '.join(map(sql_pattern, paths))}], hive_partitioning = false"
    if lines is None:
        return f"read_parquet({files})"
    within = f"file_row_number >= {lines[0]} AND file_row_number < {lines[1]}"
    numbered = f"FROM read_parquet({files}, file_row_number = true) WHERE {within}"
    return f"(SELECT * EXCLUDE (file_row_number) {numbered})"


def parquet_columns(path: Path) -> list[str]:
    """The names of a Parquet file's columns."""
    return query(lambda name, *_: str(name), f"DESCRIBE FROM {parquet_table(path)}")


def json_lines_table(path: Path, columns: Mapping[str, str]) -> str:
    """A table expression of exactly this file of JSON objects, one a line.

    Its bytes are taken as they are, whatever its name; keys that `columns` (name to type) does not
    have are passed over.
    """
    types = ", ".join(f"{sql_literal(name)}: {sql_literal(kind)}" for name, kind in columns.items())
    return (
        f"read_json({sql_pattern(path)}, format = 'newline_delimited', "
        f"compression = 'uncompressed', hive_partitioning = false, columns = {{{types}}})"
    )


def write_parquet(query: str, path: Path, compression: str = "snappy") -> str:
    """The statement that writes the rows of a query to this Parquet file."""
    where = sql_literal(path.absolute())
    return f"COPY ({query}) TO {where} (FORMAT parquet, COMPRESSION {compression})"


def write_json_lines(query: str, path: Path) -> str:
    """The statement that writes the rows of a query to this file, a JSON object a line."""
    return f"COPY ({query}) TO {sql_literal(path.absolute())} (FORMAT json)"


Row = TypeVar("Row")


def query(kind: Callable[..., Row], sql: str, *parameters: Any) -> list[Row]:
    """Calls `kind`, such as a dataclass, with the columns of each row, in their order."""
    with duckdb.connect() as connection:
        return [kind(*row) for row in connection.execute(sql, parameters).fetchall()]
