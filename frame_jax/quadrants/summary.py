"""Assigned documents in, what `partition.json` says about them out."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import duckdb

from frame_jax.config.quadrants import PartitionConfig
from frame_jax.quadrants.assign import DOCUMENT_STATUSES, ranked_documents_sql
from frame_jax.quadrants.axes import Axes
from frame_jax.sql import parquet_table


def summarise_partition(
    connection: duckdb.DuckDBPyConnection, config: PartitionConfig, axes: Axes, assignment: Path
) -> dict[str, Any]:
    """Thresholds and contents of every group and quadrant, after `assign.assign_quadrants`.

    Returns:
        mode, axes, their `names`, group_by; `without_quadrant`: documents and tokens without a
        quadrant, by split and reason; `small_groups`: groups below `min_group_tokens`, which share
        the thresholds of their language (`of`), with their training documents and tokens;
        `thin_groups`: those whose thresholds come from fewer training documents than there are
        quadrants; `tied`: see `tied_shares`; `negative_pd`: training documents with a PD below 0;
        `quadrants` and `groups`: for each quadrant its training documents and tokens, its held-out
        documents, and PPL and PD of its training tokens (the exponential of their mean loss, and
        their mean PD; of columns in their places, both means). `thresholds` of a group are where
        each bin but the first begins: at document `doc_id`, in the order of (value, doc_id); null
        where no document is left for the bin. Those of PD are one list for each PPL bin, or a
        single one under `independent`.
    """
    ppl_thresholds, pd_thresholds = (
        thresholds_by_scope(connection, table) for table in ("ppl_thresholds", "pd_thresholds")
    )
    nested = range(config.axes.ppl) if config.mode == "nested" else range(1)

    def thresholds(number: int) -> dict[str, Any]:
        pd_scopes = [number * config.axes.ppl + ppl_bin for ppl_bin in nested]
        return {
            "of": "language" if number % 2 else "group",
            "ppl": bin_starts(ppl_thresholds.get(number), config.axes.ppl, axes.ppl[1]),
            "pd": [
                bin_starts(pd_thresholds.get(scope), config.axes.pd, axes.pd[1])
                for scope in pd_scopes
            ],
        }

    groups = defaultdict(list)
    for line in quadrant_lines(connection, config, axes, assignment):
        names = tuple((column, line[column]) for column in config.group_by)
        groups[names, line["threshold_group"]].append(line)
    quadrants = config.axes.quadrants
    small = [line for (_, number), lines in groups.items() if number % 2 for line in lines]
    return {
        "mode": config.mode,
        "axes": {"ppl": config.axes.ppl, "pd": config.axes.pd},
        "names": list(axes.names),
        "group_by": list(config.group_by),
        "without_quadrant": without_quadrant(connection),
        "small_groups": {
            "min_group_tokens": config.min_group_tokens,
            "groups": sum(number % 2 for _, number in groups),
            "documents": sum(line["documents"] or 0 for line in small),
            "tokens": sum(line["tokens"] or 0 for line in small),
        },
        "thin_groups": thin_groups(connection, groups, len(quadrants)),
        "tied": tied_shares(connection, config),
        "negative_pd": query_rows(
            connection,
            "SELECT count(*) AS n FROM documents JOIN threshold_groups "
            "USING (label) WHERE status = 0 AND gap < 0 AND split = 'train'",
        )[0]["n"],
        "quadrants": quadrant_contents(
            [line for lines in groups.values() for line in lines], quadrants, axes
        ),
        "groups": [
            {
                **dict(names),
                "thresholds": thresholds(number),
                "quadrants": quadrant_contents(lines, quadrants, axes),
            }
            for (names, number), lines in groups.items()
        ],
    }


def thin_groups(
    connection: duckdb.DuckDBPyConnection, groups: dict[Any, list[dict[str, Any]]], quadrants: int
) -> dict[str, int]:
    """Groups, and their training documents, whose thresholds come from fewer than `quadrants`
    ones."""
    sizes = query_rows(
        connection,
        "SELECT threshold_group, count(*)::BIGINT AS documents FROM training GROUP BY ALL",
    )
    thin = {line["threshold_group"] for line in sizes if line["documents"] < quadrants}
    lines = [lines for (_, number), lines in groups.items() if number in thin]
    return {
        "groups": len(lines),
        "documents": sum(line["documents"] or 0 for of_group in lines for line in of_group),
    }


def tied_shares(connection: duckdb.DuckDBPyConnection, config: PartitionConfig) -> dict[str, float]:
    """Of each axis, `ppl` and `pd`, the share of the training tokens whose documents have, with
    others of their scope, the very value at which a bin begins: ids alone tell them apart."""
    found = {}
    for (axis, ranked), bins in zip(
        ranked_documents_sql(config).items(), (config.axes.ppl, config.axes.pd), strict=True
    ):
        values = ", ".join(f"value_{b}" for b in range(1, bins))
        [line] = query_rows(
            connection,
            f"""
            WITH ranked AS ({ranked}),
            begins AS (
                SELECT DISTINCT scope, unnest([{values}]::DOUBLE[]) AS value
                FROM {axis}_thresholds),
            same AS (
                SELECT sum(tokens) AS tokens FROM ranked SEMI JOIN begins USING (scope, value)
                GROUP BY scope, value HAVING count(*) > 1)
            SELECT coalesce((SELECT sum(tokens) FROM same), 0)
                / greatest((SELECT sum(tokens) FROM ranked), 1) AS share
            """,
        )
        found[axis] = round_nine_digits(float(line["share"]))
    return found


def query_rows(connection: duckdb.DuckDBPyConnection, sql: str) -> list[dict[str, Any]]:
    """The result's lines by column."""
    result = connection.execute(sql)
    columns = [column[0] for column in result.description or []]
    return [dict(zip(columns, line, strict=True)) for line in result.fetchall()]


def thresholds_by_scope(
    connection: duckdb.DuckDBPyConnection, table: str
) -> dict[int, dict[str, Any]]:
    """A table that `assign.compute_thresholds` made: {scope: {value_1, doc_1, ...}}."""
    return {line["scope"]: line for line in query_rows(connection, f"SELECT * FROM {table}")}


def bin_starts(line: dict[str, Any] | None, bins: int, convert: Any) -> list[dict[str, Any] | None]:
    """Where bins 1, 2, ... begin, values converted by `convert`."""
    if line is None:
        return [None] * (bins - 1)
    found = [(line[f"value_{b}"], line[f"doc_{b}"]) for b in range(1, bins)]
    return [
        {"value": convert(value), "doc_id": doc_id} if math.isfinite(value) else None
        for value, doc_id in found
    ]


def quadrant_lines(
    connection: duckdb.DuckDBPyConnection, config: PartitionConfig, axes: Axes, assignment: Path
) -> list[dict[str, Any]]:
    """Sums over the documents of each group, group of thresholds and quadrant."""
    return query_rows(
        connection,
        f"""
        WITH sums AS (
            SELECT split, source, domain, language, quadrant, count(*) AS documents,
                sum(tokens) AS tokens, sum(tokens * {axes.loss}) AS loss, sum(tokens * pd) AS pd
            FROM {parquet_table(assignment)} WHERE quadrant IS NOT NULL GROUP BY ALL)
        SELECT {"".join(f"sums.{column}, " for column in config.group_by)}
            threshold_group, quadrant,
            sum(documents) FILTER (sums.split = 'train')::BIGINT AS documents,
            sum(tokens) FILTER (sums.split = 'train')::BIGINT AS tokens,
            sum(documents) FILTER (sums.split = 'held_out')::BIGINT AS held_out_documents,
            sum(loss) FILTER (sums.split = 'train') AS loss,
            sum(sums.pd) FILTER (sums.split = 'train') AS pd
        FROM sums JOIN threshold_groups ON sums.split = threshold_groups.split
            AND sums.source IS NOT DISTINCT FROM threshold_groups.source
            AND sums.domain IS NOT DISTINCT FROM threshold_groups.domain
            AND sums.language IS NOT DISTINCT FROM threshold_groups.language
        GROUP BY ALL ORDER BY ALL
        """,
    )


def quadrant_contents(
    lines: list[dict[str, Any]], quadrants: tuple[str, ...], axes: Axes
) -> dict[str, dict[str, Any]]:
    """What each quadrant holds, from its lines."""

    def total(quadrant: str, key: str) -> Any:
        return sum(line[key] or 0 for line in lines if line["quadrant"] == quadrant)

    summary = {}
    for quadrant in quadrants:
        tokens = total(quadrant, "tokens")
        summary[quadrant] = {
            "documents": total(quadrant, "documents"),
            "tokens": tokens,
            "held_out_documents": total(quadrant, "held_out_documents"),
            "ppl": round_nine_digits(axes.ppl[1](total(quadrant, "loss") / tokens))
            if tokens
            else None,
            "pd": round_nine_digits(total(quadrant, "pd") / tokens) if tokens else None,
        }
    return summary


def round_nine_digits(value: float) -> float:
    """Nine digits: those after depend on the order in which threads add."""
    return float(f"{value:.9g}")


def without_quadrant(connection: duckdb.DuckDBPyConnection) -> dict[str, dict[str, dict[str, int]]]:
    """Documents and tokens without a quadrant: {split: {reason: {documents, tokens}}}."""
    lost: dict[str, dict[str, dict[str, int]]] = {"train": {}, "held_out": {}}
    for line in query_rows(
        connection,
        """
        SELECT split, status, count(*)::BIGINT AS documents, sum(tokens)::BIGINT AS tokens
        FROM documents JOIN threshold_groups USING (label)
        WHERE status > 0 OR threshold_group IS NULL
        GROUP BY ALL ORDER BY ALL
        """,
    ):
        reason = (
            DOCUMENT_STATUSES[line["status"]]
            if line["status"]
            else "no_training_documents_in_language"
        )
        lost[line["split"]][reason] = {k: line[k] for k in ("documents", "tokens")}
    return lost
