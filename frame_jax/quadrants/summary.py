"""Summarises a partition: thresholds and contents of every group and quadrant."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import duckdb

from frame_jax.config.quadrants import PartitionConfig
from frame_jax.quadrants.assign import DOCUMENT_STATUSES, Axes, ranked_documents_sql
from frame_jax.run.partition_record import (
    BinStart,
    DocumentCount,
    GroupRecord,
    PartitionRecord,
    QuadrantContents,
    ThinGroups,
    Thresholds,
)
from frame_jax.sql import parquet_table

Lines = Sequence[dict[str, Any]]


def summarise_partition(
    connection: duckdb.DuckDBPyConnection,
    config: PartitionConfig,
    axes: Axes,
    assignment: Path,
    ppl_model: str | None,
) -> PartitionRecord:
    """Makes the record of a partition, but for its warnings, once documents are assigned."""
    ppl_thresholds, pd_thresholds = (
        {line["scope"]: line for line in query_rows(connection, f"FROM {axis}_thresholds")}
        for axis in ("ppl", "pd")
    )
    ppl_bins = config.axes.ppl

    def thresholds(number: int) -> Thresholds:
        scopes = range(number * ppl_bins, (number + 1) * ppl_bins)
        return Thresholds(
            "language" if number % 2 else "group",
            bin_starts(ppl_thresholds.get(number), ppl_bins, axes.ppl[1]),
            [
                bin_starts(pd_thresholds.get(scope), config.axes.pd, axes.pd[1])
                for scope in (scopes if config.mode == "nested" else scopes[:1])
            ],
        )

    groups = defaultdict(list)
    for line in quadrant_lines(connection, config, axes, assignment):
        names = tuple((column, line[column]) for column in config.group_by)
        groups[names, line["threshold_group"]].append(line)
    quadrants = config.axes.quadrants
    sizes = dict(
        connection.execute(
            "SELECT threshold_group, count(*)::BIGINT FROM training GROUP BY ALL"
        ).fetchall()
    )
    thin = [
        lines for (_, number), lines in groups.items() if 0 < sizes.get(number, 0) < len(quadrants)
    ]
    return PartitionRecord(
        ppl_model=ppl_model,
        mode=config.mode,
        axes={"ppl": ppl_bins, "pd": config.axes.pd},
        names=axes.names,
        group_by=tuple(config.group_by),
        without_quadrant=without_quadrant(connection),
        thin_groups=ThinGroups(len(thin), sum(total(lines, "documents") for lines in thin)),
        tied=tied_shares(connection, config),
        quadrants=quadrant_contents(
            [line for lines in groups.values() for line in lines], quadrants, axes
        ),
        groups=tuple(
            GroupRecord(
                **dict(names),
                thresholds=thresholds(number),
                quadrants=quadrant_contents(lines, quadrants, axes),
            )
            for (names, number), lines in groups.items()
        ),
    )


def total(lines: Lines, key: str) -> Any:
    """The sum of a column."""
    return sum(line[key] or 0 for line in lines)


def tied_shares(connection: duckdb.DuckDBPyConnection, config: PartitionConfig) -> dict[str, float]:
    """Share of training tokens in documents whose value equals a threshold, by axis."""
    found = {}
    for axis, bins, ranked in ranked_documents_sql(config):
        values = ", ".join(f"value_{b}" for b in range(1, bins))
        [(share,)] = connection.execute(
            f"""
            WITH ranked AS ({ranked}),
            begins AS (
                SELECT DISTINCT scope, unnest([{values}]::DOUBLE[]) AS value
                FROM {axis}_thresholds),
            same AS (
                SELECT sum(tokens) AS tokens FROM ranked SEMI JOIN begins USING (scope, value)
                GROUP BY scope, value HAVING count(*) > 1)
            SELECT coalesce((SELECT sum(tokens) FROM same), 0)
                / greatest((SELECT sum(tokens) FROM ranked), 1)
            """
        ).fetchall()
        found[axis] = round_nine_digits(float(share))
    return found


def query_rows(connection: duckdb.DuckDBPyConnection, sql: str) -> Lines:
    """The result of a query: one dictionary a line."""
    return connection.sql(sql).to_arrow_table().to_pylist()


def bin_starts(
    line: dict[str, Any] | None, bins: int, convert: Callable[[float], float]
) -> list[BinStart | None]:
    """Where bins 1, 2, ... begin by a line of `compute_thresholds`, values made by `convert`."""
    return [
        BinStart(convert(line[f"value_{b}"]), line[f"doc_{b}"])
        if line is not None and math.isfinite(line[f"value_{b}"])
        else None
        for b in range(1, bins)
    ]


def quadrant_lines(
    connection: duckdb.DuckDBPyConnection, config: PartitionConfig, axes: Axes, assignment: Path
) -> Lines:
    """Sums over the documents of each group, threshold group and quadrant."""
    return query_rows(
        connection,
        f"""
        WITH sums AS (
            SELECT split, source, domain, language, quadrant,
                count(*) FILTER (copies > 0 OR split = 'held_out') AS documents,
                sum(tokens * copies) AS tokens, sum(tokens * copies * {axes.loss}) AS loss,
                sum(tokens * copies * pd) AS pd
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
    lines: Lines, quadrants: tuple[str, ...], axes: Axes
) -> dict[str, QuadrantContents]:
    """What each quadrant holds, summed from `quadrant_lines`."""
    summary = {}
    for quadrant in quadrants:
        own = [line for line in lines if line["quadrant"] == quadrant]
        tokens = total(own, "tokens")
        summary[quadrant] = QuadrantContents(
            total(own, "documents"),
            tokens,
            total(own, "held_out_documents"),
            round_nine_digits(axes.ppl[1](total(own, "loss") / tokens)) if tokens else None,
            round_nine_digits(total(own, "pd") / tokens) if tokens else None,
        )
    return summary


def round_nine_digits(value: float) -> float:
    """Rounds to nine significant digits: later ones depend on the order in which threads add."""
    return float(f"{value:.9g}")


def without_quadrant(connection: duckdb.DuckDBPyConnection) -> dict[str, dict[str, DocumentCount]]:
    """Counts documents and tokens without a quadrant, by split and reason."""
    lost: dict[str, dict[str, DocumentCount]] = {"train": {}, "held_out": {}}
    for split, status, documents, tokens in connection.execute(
        """
        SELECT split, status, count(*)::BIGINT, sum(tokens)::BIGINT
        FROM documents JOIN threshold_groups USING (label)
        WHERE status > 0 OR threshold_group IS NULL
        GROUP BY ALL ORDER BY ALL
        """
    ).fetchall():
        reason = DOCUMENT_STATUSES[status] if status else "no_training_documents_in_language"
        lost[split][reason] = DocumentCount(documents, tokens)
    return lost
