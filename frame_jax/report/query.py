"""Runs a DuckDB query and makes an object of each of its rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import duckdb

Row = TypeVar("Row")


def query(kind: Callable[..., Row], sql: str, *parameters: Any) -> list[Row]:
    """Calls `kind`, such as a dataclass, with the columns of each row, in their order."""
    with duckdb.connect() as connection:
        return [kind(*row) for row in connection.execute(sql, parameters).fetchall()]
