"""DuckDB is told of files in one place, by names that mean exactly these files."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from frame_jax.sql import json_lines_table, parquet_table, write_parquet

REPOSITORY = Path(__file__).parents[1]
RAW = re.compile(
    r"\b(read_\w+|\w+_scan|parquet_\w+|glob)\s*\(|\b(COPY|EXPORT|IMPORT|ATTACH)\b|FROM\s+'",
)
NAMES = (
    *("split=train", "quadrant=Q1", "a[1]", "a*b", "a?b", "a{1,2}", "[!a]", "**", "it's", 'a"b'),
    *("a\\b", "a%20b", "a#b", "a;b", "~", "s3:", "two\nlines", "é", "x.gz"),
)
NEIGHBOURS = ("a1", "ab", "axb", "a1b", "b")


def raw_sql(source: str) -> Iterator[tuple[int, str]]:
    """Line and piece of each text in a program, docstrings apart, that names files to DuckDB."""
    tree = ast.parse(source)
    described = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found = RAW.search(node.value)
            if found and id(node) not in described:
                yield node.lineno, found[0]


def test_only_sql_py_names_files_to_duckdb() -> None:
    files = [
        *sorted((REPOSITORY / "frame_jax").rglob("*.py")),
        *sorted((REPOSITORY / "tools").glob("*.py")),
    ]
    offences = [
        f"{path.relative_to(REPOSITORY)}:{line} {text}"
        for path in files
        if path != REPOSITORY / "frame_jax" / "sql.py"
        for line, text in raw_sql(path.read_text("utf-8"))
    ]
    assert offences == []


@pytest.mark.parametrize(
    "source",
    [
        "f\"SELECT * FROM read_parquet('{path}')\"",
        "'WITH a AS (FROM read_json(?)) SELECT 1'",
        "f\"COPY (SELECT 1) TO '{path}'\"",
        "f\"SELECT * FROM '{path}'\"",
    ],
)
def test_a_raw_name_would_be_found(source: str) -> None:
    assert list(raw_sql(f"x = {source}"))


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_name_means_itself(
    name: str, relative: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for other in NEIGHBOURS:
        (tmp_path / other).mkdir()
        pq.write_table(pa.table({"split": ["wrong"]}), tmp_path / other / "t.parquet")
        (tmp_path / other / "m.jsonl").write_text('{"step": 9}\n')
    monkeypatch.chdir(tmp_path)
    folder = Path(name) if relative else tmp_path / name
    folder.mkdir()
    duckdb.execute(write_parquet("SELECT 'held_out' AS split", folder / "t.parquet"))
    (folder / "m.jsonl").write_text('{"step": 3}\n')
    assert duckdb.sql(f"FROM {parquet_table(folder / 't.parquet')}").fetchall() == [("held_out",)]
    lines = json_lines_table(folder / "m.jsonl", {"step": "BIGINT"})
    assert duckdb.sql(f"FROM {lines}").fetchall() == [(3,)]
