"""Values and files in, pieces of DuckDB's SQL out."""

from __future__ import annotations

import re
from pathlib import Path


def literal(value: str | Path) -> str:
    """A string in SQL, for the places that take no parameters.

    >>> literal("it's")
    "'it''s'"
    """
    return "'" + str(value).replace("'", "''") + "'"


def parquet(*paths: Path) -> str:
    """A table of what is in exactly these Parquet files.

    Left to itself, DuckDB reads `runs/a[1]` as a pattern, which `runs/a1` meets, and makes a folder
    `split=train` on the way to a file a column.
    """
    exact = (re.sub(r"[*?[]", r"[\g<0>]", str(path)) for path in paths)
    return f"read_parquet([{', '.join(map(literal, exact))}], hive_partitioning = false)"
