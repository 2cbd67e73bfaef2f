"""`assignment.parquet` and the token files in; density, token balance and example documents out.

DuckDB does the counting, so memory does not grow with the corpus.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import duckdb

from frame_jax.corpus.tokenizer import load_tokenizer
from frame_jax.records import TokenReader
from frame_jax.run.directory import RunDirectory, list_parts
from frame_jax.sql import parquet_table

GROUPS = 12  # drawn in the density figure, the largest first
BINS = 40  # on each axis of the density
EXAMPLES = 4  # documents of each quadrant
EXAMPLE_TOKENS = 220
SEPARATOR, NO_NAME = " / ", "none"  # in labels


def query_documents(
    sql: str, assignment: Path, columns: Sequence[str], *parameters: Any
) -> list[dict[str, Any]]:
    """Rows of a query over `documents`: the placed training documents and the label of each.

    Args:
        sql: What comes after the table `documents` in a WITH clause.
        assignment: `assignment.parquet`.
        columns: What labels are made of, of domain, language and source.
        parameters: Values for the question marks in `sql`.
    """
    names = [f"coalesce({column}, '{NO_NAME}')" for column in columns]
    with duckdb.connect() as connection:
        cursor = connection.execute(
            f"WITH documents AS (SELECT *, concat_ws('{SEPARATOR}', {', '.join(names)}) AS label "
            f"FROM {parquet_table(assignment)} WHERE split = 'train' AND quadrant IS NOT NULL) "
            f"{sql}",
            parameters,
        )
        keys = [column[0] for column in cursor.description]
        return [dict(zip(keys, row, strict=True)) for row in cursor.fetchall()]


def token_density(
    assignment: Path,
    columns: Sequence[str],
    scale: Literal["log", "linear"] = "log",
    bins: int = BINS,
) -> list[dict[str, Any]]:
    """Token counts of training documents on a grid of PPL (on that scale) and PD, by group.

    All groups share one grid, which spans all but the outermost thousandth on each side; what lies
    outside is counted in the outermost cells.

    Returns:
        Rows of label, ppl, ppl_end, pd, pd_end and tokens, one for each cell that is not empty.
    """
    value, ppl, pd = "ppl", "x0 + {} * dx", "y0 + {} * dy"
    if scale == "log":
        value, ppl, pd = "log10(ppl)", f"round(pow(10, {ppl}), 4)", f"round({pd}, 5)"
    return query_documents(
        f"""
        , train AS (SELECT label, {value} AS x, pd AS y, tokens FROM documents),
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
        assignment,
        columns,
        GROUPS,
    )


def token_balance(assignment: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of label, quadrant, tokens and documents of the training split, largest groups first."""
    return query_documents(
        """
        , cells AS (SELECT label, quadrant, CAST(sum(tokens) AS BIGINT) AS tokens,
                           count(*) AS documents
                    FROM documents GROUP BY label, quadrant)
        SELECT * FROM cells
        ORDER BY sum(tokens) OVER (PARTITION BY label) DESC, label, quadrant
        """,
        assignment,
        columns,
    )


@dataclasses.dataclass(frozen=True)
class Example:
    """A training document as the report shows it.

    Attributes:
        quadrant: Its cell.
        doc_id: Its id.
        source: Where it comes from.
        label: Domain and language.
        ppl: Perplexity.
        pd: Perplexity difference.
        tokens: Length of the whole document.
        text: Its beginning.
        truncated: Whether the text goes on.
    """

    quadrant: str
    doc_id: str
    source: str
    label: str
    ppl: float
    pd: float
    tokens: int
    text: str
    truncated: bool


def choose_examples(
    directory: RunDirectory, columns: Sequence[str], count: int = EXAMPLES
) -> list[Example]:
    """`count` training documents of each quadrant, chosen by a hash of their ids.

    The largest groups give one each before any gives a second, so that a quadrant shows what it
    holds and the choice does not depend on the text.
    """
    chosen = query_documents(
        """
        , best AS (SELECT quadrant, label, sum(tokens) AS size,
                          arg_min({doc_id: doc_id, source: source, ppl: ppl, pd: pd,
                                   tokens: tokens, part: part, "row": "row"}, md5(doc_id), ?) AS few
                   FROM documents GROUP BY quadrant, label),
        flat AS (SELECT quadrant, label, size, unnest(few) AS d,
                        unnest(range(len(few))) AS turn FROM best)
        SELECT quadrant, label, d.doc_id, d.source, d.ppl, d.pd, d.tokens, d.part, d.row
        FROM flat QUALIFY row_number() OVER (
            PARTITION BY quadrant ORDER BY turn, size DESC, label) <= ?
        ORDER BY quadrant, turn, size DESC, label
        """,
        directory.assignment,
        columns,
        count,
        count,
    )
    tokenizer = load_tokenizer(directory)
    parts = list_parts(directory.tokens, ".arrayrecord")
    found = []
    for row in chosen:
        reader = TokenReader(parts[row["part"]])
        ids = reader.read([row["row"]])[0]
        reader.close()
        shown_tokens = len(ids) > EXAMPLE_TOKENS
        text = tokenizer.decode(ids[:EXAMPLE_TOKENS].tolist())
        found.append(
            Example(
                row["quadrant"],
                row["doc_id"],
                row["source"],
                row["label"],
                row["ppl"],
                row["pd"],
                row["tokens"],
                text.rstrip("\ufffd") if shown_tokens else text,  # half a character at the cut
                shown_tokens,
            )
        )
    return found


def label_columns(partition: dict[str, Any]) -> list[str]:
    """What the report groups documents by: as the thresholds do, or by domain if there is one set.

    Args:
        partition: The contents of `partition.json`.
    """
    return partition["group_by"] or ["domain"]


def threshold_lines(partition: dict[str, Any], labels: Sequence[str]) -> list[dict[str, Any]]:
    """The cuts in `partition.json` as lines of the density figure.

    Args:
        partition: The contents of `partition.json`.
        labels: All labels; they share the thresholds of a global partition.

    Returns:
        Rows of label, x, x2 (PPL), y, y2 (PD): the ends of a line; None is the edge of the figure.
    """
    lines = []
    for group in partition["groups"]:
        names = [group[column] for column in partition["group_by"]]
        own = [SEPARATOR.join(NO_NAME if name is None else name for name in names)]
        ppl, pd = group["thresholds"]["ppl"], group["thresholds"]["pd"]
        edges = [None, *(cut["value"] for cut in ppl if cut), None]
        if partition["mode"] != "nested":
            edges = [None, None]  # PD is cut once, across all bins of PPL
        for label in own if names else labels:
            lines += [
                {"label": label, "x": cut["value"], "x2": cut["value"], "y": None, "y2": None}
                for cut in ppl
                if cut
            ]
            lines += [
                {"label": label, "x": left, "x2": right, "y": cut["value"], "y2": cut["value"]}
                for (left, right), thresholds_ in zip(itertools.pairwise(edges), pd, strict=False)
                for cut in thresholds_
                if cut
            ]
    return lines
