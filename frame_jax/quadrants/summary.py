"""Placed documents in, what `partition.json` says about them out."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import duckdb

from frame_jax.config.quadrants import PartitionConfig
from frame_jax.quadrants.assign import FATES
from frame_jax.quadrants.assign import ranked as ranked_documents
from frame_jax.quadrants.axes import Axes
from frame_jax.sql import parquet


def summarise(
    connection: duckdb.DuckDBPyConnection, config: PartitionConfig, axes: Axes, assignment: Path
) -> dict[str, Any]:
    """Thresholds and contents of every group and cell, after `assign.place`.

    Returns:
        mode, axes, their `names`, group_by; `without_place`: documents and tokens without a
        quadrant, by split and reason; `small_groups`: groups below `min_group_tokens`, which share
        the thresholds of their language (`of`), with their training documents and tokens;
        `thin_groups`: those whose thresholds come from fewer training documents than there are
        cells; `tied`: see there; `negative_pd`: training documents with a PD below 0; `cells` and
        `groups`: for each cell its training documents and tokens, its held-out documents, and PPL
        and PD of its training tokens (the exponential of their mean loss, and their mean PD; of
        columns in their places, both means). `thresholds` of a group are where each bin but the
        first begins: at document `doc_id`, in the order of (value, doc_id); null where no document
        is left for the bin. Those of PD are one list for each PPL bin, or a single one under
        `independent`.
    """
    ppl_cuts, pd_cuts = (cuts_by_cell(connection, table) for table in ("ppl_cuts", "pd_cuts"))
    nested = range(config.axes.ppl) if config.mode == "nested" else range(1)

    def thresholds(number: int) -> dict[str, Any]:
        pd_cells = [number * config.axes.ppl + ppl_bin for ppl_bin in nested]
        return {
            "of": "language" if number % 2 else "group",
            "ppl": begins(ppl_cuts.get(number), config.axes.ppl, axes.ppl[1]),
            "pd": [begins(pd_cuts.get(cell), config.axes.pd, axes.pd[1]) for cell in pd_cells],
        }

    groups = defaultdict(list)
    for line in cell_lines(connection, config, axes, assignment):
        names = tuple((column, line[column]) for column in config.group_by)
        groups[names, line["set"]].append(line)
    cells = config.axes.cells
    small = [line for (_, number), lines in groups.items() if number % 2 for line in lines]
    return {
        "mode": config.mode,
        "axes": {"ppl": config.axes.ppl, "pd": config.axes.pd},
        "names": list(axes.names),
        "group_by": list(config.group_by),
        "without_place": without_place(connection),
        "small_groups": {
            "min_group_tokens": config.min_group_tokens,
            "groups": sum(number % 2 for _, number in groups),
            "documents": sum(line["documents"] or 0 for line in small),
            "tokens": sum(line["tokens"] or 0 for line in small),
        },
        "thin_groups": thin_groups(connection, groups, len(cells)),
        "tied": tied(connection, config),
        "negative_pd": query(
            connection,
            "SELECT count(*) AS n FROM documents JOIN sets "
            "USING (label) WHERE fate = 0 AND gap < 0 AND split = 'train'",
        )[0]["n"],
        "cells": contents([line for lines in groups.values() for line in lines], cells, axes),
        "groups": [
            {**dict(names), "thresholds": thresholds(number), "cells": contents(lines, cells, axes)}
            for (names, number), lines in groups.items()
        ],
    }


def thin_groups(
    connection: duckdb.DuckDBPyConnection, groups: dict[Any, list[dict[str, Any]]], cells: int
) -> dict[str, int]:
    """Groups, and their training documents, whose thresholds come from fewer than `cells` ones."""
    sizes = query(
        connection, "SELECT set, count(*)::BIGINT AS documents FROM training GROUP BY ALL"
    )
    thin = {line["set"] for line in sizes if line["documents"] < cells}
    lines = [lines for (_, number), lines in groups.items() if number in thin]
    return {
        "groups": len(lines),
        "documents": sum(line["documents"] or 0 for of_group in lines for line in of_group),
    }


def tied(connection: duckdb.DuckDBPyConnection, config: PartitionConfig) -> dict[str, float]:
    """Of each axis, `ppl` and `pd`, the share of the training tokens whose documents have, with
    others of their cell, the very value at which a bin begins: ids alone tell them apart."""
    found = {}
    for (axis, ranked), bins in zip(
        ranked_documents(config).items(), (config.axes.ppl, config.axes.pd), strict=True
    ):
        values = ", ".join(f"value_{b}" for b in range(1, bins))
        [line] = query(
            connection,
            f"""
            WITH ranked AS ({ranked}),
            begins AS (
                SELECT DISTINCT cell, unnest([{values}]::DOUBLE[]) AS value FROM {axis}_cuts),
            same AS (
                SELECT sum(tokens) AS tokens FROM ranked SEMI JOIN begins USING (cell, value)
                GROUP BY cell, value HAVING count(*) > 1)
            SELECT coalesce((SELECT sum(tokens) FROM same), 0)
                / greatest((SELECT sum(tokens) FROM ranked), 1) AS share
            """,
        )
        found[axis] = rounded(float(line["share"]))
    return found


def query(connection: duckdb.DuckDBPyConnection, sql: str) -> list[dict[str, Any]]:
    """The result's lines by column."""
    result = connection.execute(sql)
    columns = [column[0] for column in result.description or []]
    return [dict(zip(columns, line, strict=True)) for line in result.fetchall()]


def cuts_by_cell(connection: duckdb.DuckDBPyConnection, table: str) -> dict[int, dict[str, Any]]:
    """A table that `assign.cut` made: {cell: {value_1, doc_1, ...}}."""
    return {line["cell"]: line for line in query(connection, f"SELECT * FROM {table}")}


def begins(line: dict[str, Any] | None, bins: int, unit: Any) -> list[dict[str, Any] | None]:
    """Where bins 1, 2, ... begin, values converted by `unit`."""
    if line is None:
        return [None] * (bins - 1)
    found = [(line[f"value_{b}"], line[f"doc_{b}"]) for b in range(1, bins)]
    return [
        {"value": unit(value), "doc_id": doc_id} if math.isfinite(value) else None
        for value, doc_id in found
    ]


def cell_lines(
    connection: duckdb.DuckDBPyConnection, config: PartitionConfig, axes: Axes, assignment: Path
) -> list[dict[str, Any]]:
    """Sums over the documents of each group, set of thresholds and cell."""
    return query(
        connection,
        f"""
        WITH sums AS (
            SELECT split, source, domain, language, quadrant, count(*) AS documents,
                sum(tokens) AS tokens, sum(tokens * {axes.loss}) AS loss, sum(tokens * pd) AS pd
            FROM {parquet(assignment)} WHERE quadrant IS NOT NULL GROUP BY ALL)
        SELECT {"".join(f"sums.{column}, " for column in config.group_by)} set, quadrant,
            sum(documents) FILTER (sums.split = 'train')::BIGINT AS documents,
            sum(tokens) FILTER (sums.split = 'train')::BIGINT AS tokens,
            sum(documents) FILTER (sums.split = 'held_out')::BIGINT AS held_out_documents,
            sum(loss) FILTER (sums.split = 'train') AS loss,
            sum(sums.pd) FILTER (sums.split = 'train') AS pd
        FROM sums JOIN sets ON sums.split = sets.split
            AND sums.source IS NOT DISTINCT FROM sets.source
            AND sums.domain IS NOT DISTINCT FROM sets.domain
            AND sums.language IS NOT DISTINCT FROM sets.language
        GROUP BY ALL ORDER BY ALL
        """,
    )


def contents(
    lines: list[dict[str, Any]], cells: tuple[str, ...], axes: Axes
) -> dict[str, dict[str, Any]]:
    """What each cell holds, from its lines."""

    def total(cell: str, key: str) -> Any:
        return sum(line[key] or 0 for line in lines if line["quadrant"] == cell)

    summary = {}
    for cell in cells:
        tokens = total(cell, "tokens")
        summary[cell] = {
            "documents": total(cell, "documents"),
            "tokens": tokens,
            "held_out_documents": total(cell, "held_out_documents"),
            "ppl": rounded(axes.ppl[1](total(cell, "loss") / tokens)) if tokens else None,
            "pd": rounded(total(cell, "pd") / tokens) if tokens else None,
        }
    return summary


def rounded(value: float) -> float:
    """Nine digits: those after depend on the order in which threads add."""
    return float(f"{value:.9g}")


def without_place(connection: duckdb.DuckDBPyConnection) -> dict[str, dict[str, dict[str, int]]]:
    """Documents and tokens without a quadrant: {split: {reason: {documents, tokens}}}."""
    lost: dict[str, dict[str, dict[str, int]]] = {"train": {}, "held_out": {}}
    for line in query(
        connection,
        """
        SELECT split, fate, count(*)::BIGINT AS documents, sum(tokens)::BIGINT AS tokens
        FROM documents JOIN sets USING (label) WHERE fate > 0 OR set IS NULL
        GROUP BY ALL ORDER BY ALL
        """,
    ):
        reason = FATES[line["fate"]] if line["fate"] else "no_training_documents_in_language"
        lost[line["split"]][reason] = {k: line[k] for k in ("documents", "tokens")}
    return lost
