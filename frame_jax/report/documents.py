"""Reads what the report shows of the documents: density and token balance.

DuckDB does the counting, so memory does not grow with the corpus.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from frame_jax.run.directory import RunDirectory
from frame_jax.run.partition_record import PartitionRecord
from frame_jax.sql import Row, parquet_table, query

GROUPS = 12  # drawn in the density figure, the largest first
BINS = 40  # on each axis of the density
SEPARATOR, NO_NAME = " / ", "none"  # in labels


def query_documents(
    kind: Callable[..., Row],
    sql: str,
    directory: RunDirectory,
    columns: Sequence[str],
    *parameters: Any,
) -> list[Row]:
    """Runs a query over `documents`: the training documents that are read, with a label of each
    and `read_tokens`, theirs as often as an epoch reads them.

    See `sql.query` for `kind` and `parameters`. `sql` comes after the table `documents` in a WITH
    clause; labels are made of `columns`, which are some of domain, language and source.
    """
    names = ", ".join(f"coalesce({column}, '{NO_NAME}')" for column in columns)
    table = f"""
        WITH documents AS (
            SELECT *, tokens * copies AS read_tokens, concat_ws('{SEPARATOR}', {names}) AS label
            FROM {parquet_table(directory.assignment)} WHERE copies > 0)
        """
    return query(kind, table + sql, *parameters)


@dataclass(frozen=True)
class DensityTile:
    """Tokens of a group in a cell of the grid of PPL and PD."""

    label: str
    ppl: float
    ppl_end: float
    pd: float
    pd_end: float
    tokens: int


def token_density(
    directory: RunDirectory,
    columns: Sequence[str],
    scale: Literal["log", "linear"] = "log",
    bins: int = BINS,
) -> list[DensityTile]:
    """Counts tokens of training documents on a grid of PPL (on that scale) and PD, by group.

    All groups share one grid, which spans all but the outermost thousandth on each side; what lies
    outside is counted in the outermost cells. Cells without tokens are left out.
    """
    value, ppl, pd = "ppl", "x0 + {} * dx", "y0 + {} * dy"
    if scale == "log":
        value, ppl, pd = "log10(ppl)", f"round(pow(10, {ppl}), 4)", f"round({pd}, 5)"
    return query_documents(
        DensityTile,
        f"""
        , train AS (SELECT label, {value} AS x, pd AS y, read_tokens AS tokens
                   FROM documents),
        largest AS (SELECT label FROM train GROUP BY label ORDER BY sum(tokens) DESC, label
                    LIMIT ?),
        edges AS (SELECT approx_quantile(x, 0.001) AS x0, approx_quantile(x, 0.999) AS x1,
                         approx_quantile(y, 0.001) AS y0, approx_quantile(y, 0.999) AS y1
                  FROM train SEMI JOIN largest USING (label)),
        grid AS (SELECT x0, greatest(x1 - x0, 1e-6) / {int(bins)} AS dx, y0,
                        greatest(y1 - y0, 1e-6) / {int(bins)} AS dy FROM edges),
        cells AS (SELECT label, x0, dx, y0, dy, tokens,
                         least(greatest(floor((x - x0) / dx), 0), {int(bins)} - 1) AS i,
                         least(greatest(floor((y - y0) / dy), 0), {int(bins)} - 1) AS j
                  FROM train SEMI JOIN largest USING (label), grid)
        SELECT label, {ppl.format("i")} AS ppl, {ppl.format("(i + 1)")} AS ppl_end,
               {pd.format("j")} AS pd, {pd.format("(j + 1)")} AS pd_end,
               CAST(sum(tokens) AS BIGINT) AS tokens
        FROM cells GROUP BY label, x0, dx, y0, dy, i, j ORDER BY label, i, j
        """,
        directory,
        columns,
        GROUPS,
    )


@dataclass(frozen=True)
class GroupTokens:
    """Training tokens and documents of a group in a quadrant."""

    label: str
    quadrant: str
    tokens: int
    documents: int


def token_balance(directory: RunDirectory, columns: Sequence[str]) -> list[GroupTokens]:
    """Counts training tokens of each group in each quadrant, largest groups first."""
    return query_documents(
        GroupTokens,
        """
        , cells AS (SELECT label, quadrant, CAST(sum(read_tokens) AS BIGINT) AS tokens,
                           count(*) AS documents
                    FROM documents GROUP BY label, quadrant)
        SELECT * FROM cells
        ORDER BY sum(tokens) OVER (PARTITION BY label) DESC, label, quadrant
        """,
        directory,
        columns,
    )


@dataclass(frozen=True)
class ThresholdLine:
    """A line from (x, y) to (x2, y2), PPL and PD, in a group's density; None is the edge."""

    label: str
    x: float | None
    x2: float | None
    y: float | None
    y2: float | None


def threshold_lines(partition: PartitionRecord, labels: Sequence[str]) -> list[ThresholdLine]:
    """Draws thresholds as lines of the density figure; all labels share those of one group."""
    lines = []
    for group in partition.groups:
        names = [getattr(group, column) for column in partition.group_by]
        own = [SEPARATOR.join(NO_NAME if name is None else name for name in names)]
        ppl = [start.value for start in group.thresholds.ppl if start]
        # Without nesting, PD has one threshold for all bins of PPL.
        edges = [None, *(ppl if partition.mode == "nested" else []), None]
        spans = list(zip(itertools.pairwise(edges), group.thresholds.pd, strict=False))
        for label in own if names else labels:
            lines += [ThresholdLine(label, value, value, None, None) for value in ppl]
            lines += [
                ThresholdLine(label, left, right, start.value, start.value)
                for (left, right), starts in spans
                for start in starts
                if start
            ]
    return lines
