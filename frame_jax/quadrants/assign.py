"""Assigns a quadrant to every document: token tables and scores in, thresholds and assignments out.

All of it is SQL in DuckDB over Parquet, out of core. An axis is cut by rank: the documents of a
group, in order of (value, doc_id), are laid end to end by their tokens, the line is cut into equal
lengths, and a document goes to the piece in which its middle lies. Only training documents shape
the cuts, each as often as it is read; held-out ones are placed by them.

Sorting everything would take most of the time. A cut lies in one narrow bucket of a histogram, so
only the documents around that bucket are sorted, with the same result.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import duckdb
import pyarrow.parquet as pq

from frame_jax.config.quadrants import PartitionConfig
from frame_jax.config.scoring import ScoringConfig
from frame_jax.errors import UserError
from frame_jax.quadrants.mixture import COPIES, register_repeats, resolve_mixture
from frame_jax.run import buckets
from frame_jax.run.directory import atomic_path
from frame_jax.run.map_parts import Advance
from frame_jax.run.partition_record import Mixture
from frame_jax.sql import open_database, parquet_table, sql_literal, write_parquet


class Axes(NamedTuple):
    """PPL and PD, or two columns of an imported table in their places.

    Documents are cut by `loss` and `gap`, which rank as the numbers that are shown.

    Attributes:
        names: What the two are called.
        scored: A query, of the scores of the part `{scores}`, for doc_id, counted (0 where there is
            nothing to predict), loss and gap.
        ppl: What is shown of a loss, in SQL with `{}` for it, and in Python.
        pd: What is shown of a gap, likewise.
        loss: The loss that `ppl`, a column, shows, in SQL.
    """

    names: tuple[str, str]
    scored: str
    ppl: tuple[str, Callable[[float], float]]
    pd: tuple[str, Callable[[float], float]]
    loss: str

    def query(self, *scores: Path) -> str:
        """SQL for the table `scored` of parts of RUN/scores."""
        return self.scored.replace("{scores}", parquet_table(*scores))


def make_axes(scoring: ScoringConfig) -> Axes:
    """The axes of a run.

    loss is the mean NLL of `ppl_model` and gap the mean loss of the weak minus that of the strong
    model, in nats a token or a byte: PPL = exp(loss) and PD = 1 - exp(-gap).
    """
    if scoring.table is not None:
        return Axes(
            names=(scoring.table.ppl, scoring.table.pd or "no second number"),
            scored="SELECT doc_id, 1 AS counted, ppl AS loss, pd AS gap FROM {scores}",
            ppl=("{}", float),
            pd=("{}", float),
            loss="ppl",
        )
    over, counted = "predicted_tokens", "predicted_tokens"
    names = ("PPL", "PD")
    if scoring.unit == "byte":
        over, counted = "bytes", "least(predicted_tokens_weak, predicted_tokens_strong)"
        names = ("PPL a byte", "PD a byte")
    return Axes(
        names=names,
        scored=f"SELECT doc_id, {counted} AS counted, nll_{scoring.ppl_model} / {over} AS loss, "
        f"nll_weak / {over} - nll_strong / {over} AS gap FROM {{scores}}",
        ppl=("exp({})", math.exp),
        pd=("1 - exp(-{})", lambda gap: 1 - math.exp(-gap)),
        loss="ln(ppl)",
    )


BUCKETS_PER_UNIT = 1024
DOCUMENT_STATUSES = ("placed", "unscored", "no_tokens", "not_finite")


def write_labels(config: PartitionConfig, tokens: Sequence[Path], path: Path) -> Mixture:
    """Writes each combination of labels of training and held-out documents once: label (a number),
    split, source, domain, language, repeats; returns what these are of."""
    mixture = Mixture("source", ()) if config.mixture is None else resolve_mixture(config, tokens)
    with open_database(path.parent) as connection, atomic_path(path) as temporary:
        register_repeats(connection, mixture)
        labels = (
            "SELECT row_number() OVER ()::INTEGER AS label, split, source, domain, language, "
            "coalesce(repeats, 1) AS repeats FROM (SELECT DISTINCT split, source, domain, language "
            f"FROM {parquet_table(*tokens)} WHERE split IN ('train', 'held_out')) "
            f"LEFT JOIN group_repeats ON {mixture.by} IS NOT DISTINCT FROM name"
        )
        connection.execute(write_parquet(labels, temporary))
    return mixture


def plan_documents(
    axes: Axes, tokens: Sequence[Path], scores: Sequence[Path], labels: Path
) -> dict[str, tuple[str, Path]]:
    """What to call `write_documents` with, by name: SQL for the labelled documents of a part, or of
    all where they are few, and the path of a file beside `labels`.

    loss and gap are as `axes` says. status is an index into DOCUMENT_STATUSES; documents that are
    not scored have neither loss nor gap. copies is how often an epoch reads a document, 0 for one
    that is held out or not scored.
    """
    shown = f"{axes.ppl[0].format('loss')} + {axes.pd[0].format('gap')}"
    few = sum(pq.read_metadata(path).num_rows for path in tokens) <= buckets.SLICE_LINES
    size, queries = len(tokens) if few else 1, {}
    # Part by part, because the join then fits into memory: both tables share their part numbers.
    for i in range(0, len(tokens), size):
        sql = f"""
            WITH scored AS NOT MATERIALIZED ({axes.query(*scores[i : i + size])}),
            with_status AS NOT MATERIALIZED (
                SELECT t.*, loss, gap, CASE
                    WHEN counted IS NULL THEN 1
                    WHEN counted = 0 OR tokens = 0 THEN 2
                    WHEN NOT coalesce(isfinite({shown} + loss + gap), false) THEN 3
                    ELSE 0 END AS status
                FROM {parquet_table(*tokens[i : i + size])} t LEFT JOIN scored USING (doc_id))
            SELECT doc_id, part::INTEGER AS part, row::BIGINT AS row, tokens::BIGINT AS tokens,
                bytes::BIGINT AS bytes, label, status, CASE WHEN status = 0 THEN loss END AS loss,
                CASE WHEN status = 0 THEN gap END AS gap,
                CASE WHEN status > 0 OR d.split <> 'train' THEN 0 ELSE {COPIES} END AS copies
            FROM with_status d JOIN {parquet_table(labels)} l ON d.split = l.split
                AND d.source IS NOT DISTINCT FROM l.source AND d.domain IS NOT DISTINCT FROM
                l.domain AND d.language IS NOT DISTINCT FROM l.language ORDER BY part, row
            """
        queries[tokens[i].stem] = sql, labels.with_name(tokens[i].name)
    return queries


def write_documents(part: tuple[str, Path], advance: Advance) -> None:
    """Writes what a query gives to a Parquet file."""
    sql, path = part
    with open_database(path.parent) as connection, atomic_path(path) as temporary:
        connection.execute(write_parquet(sql, temporary))


def load_documents(
    connection: duckdb.DuckDBPyConnection, labels: Path, parts: Mapping[str, tuple[str, Path]]
) -> None:
    """Creates the tables `labels`, as `write_labels` wrote them, and `documents`, of
    `plan_documents`: of files where there are several, else of the query.

    Raises:
        UserError: where no document is read.
    """
    connection.execute(f"CREATE TABLE labels AS FROM {parquet_table(labels)}")
    for column in ("split", "source", "domain", "language"):
        # Enumerations go into Parquet several times faster than the strings they stand for.
        connection.execute(
            f"CREATE TYPE {column}_names AS ENUM (SELECT '' UNION "
            f"SELECT {column} FROM labels WHERE {column} IS NOT NULL ORDER BY 1)"
        )
        connection.execute(f"ALTER TABLE labels ALTER {column} TYPE {column}_names")
    [(sql, _), *others] = parts.values()
    files = parquet_table(*(path for _, path in parts.values()))
    as_is = f"VIEW documents AS FROM {files}" if others else f"TABLE documents AS {sql}"
    connection.execute(f"CREATE {as_is}")
    if not connection.execute("FROM documents WHERE copies > 0 LIMIT 1").fetchall():
        raise UserError(
            "no document of the train split that is read has a finite score: the corpus is too "
            "small, partition.mixture reads too little of it, or the score phase went wrong"
        )


def group_documents(connection: duckdb.DuckDBPyConnection, config: PartitionConfig) -> None:
    """Creates the tables `threshold_groups` (label to threshold group) and `training`.

    A group with fewer than `min_group_tokens` training tokens, or none, uses the set of all
    training documents of its language; where those have none either, `threshold_group` is null. A
    document of a large group may belong to two of them: its group's, and its language's
    for the small groups.
    """
    columns = ", ".join(config.group_by) or "'all'"
    smallest = max(config.min_group_tokens, 1)
    connection.execute(
        f"""
        CREATE TABLE threshold_groups AS
        WITH weighed AS (
            SELECT labels.*, coalesce(sum(tokens * copies), 0) AS own_tokens
            FROM labels LEFT JOIN documents USING (label) GROUP BY ALL),
        ranked AS (
            SELECT *, 2 * dense_rank() OVER (ORDER BY {columns}) AS group_number,
                2 * dense_rank() OVER (ORDER BY language) + 1 AS language_number,
                sum(own_tokens) OVER (PARTITION BY {columns}) >= {smallest} AS large,
                sum(own_tokens) OVER (PARTITION BY language) > 0 AS language_has_training
            FROM weighed)
        SELECT *, (CASE
            WHEN large THEN group_number
            WHEN language_has_training THEN language_number END)::INTEGER AS threshold_group
        FROM ranked
        """
    )
    connection.execute(
        """
        CREATE VIEW training AS
        WITH members AS MATERIALIZED (
            SELECT label, threshold_group FROM threshold_groups WHERE split = 'train' AND large
            UNION ALL
            SELECT label, language_number::INTEGER FROM threshold_groups
            WHERE split = 'train'
                AND language_number IN (SELECT threshold_group FROM threshold_groups))
        SELECT threshold_group, loss, gap, tokens * copies AS tokens, doc_id
        FROM documents JOIN members USING (label) WHERE copies > 0
        """
    )


def compute_thresholds(
    connection: duckdb.DuckDBPyConnection, name: str, ranked: str, bins: int
) -> None:
    """Creates a table of thresholds by scope: the lower ends of bins 1, 2, ... along one axis.

    `ranked` is a query for (scope, value, tokens, doc_id). Every scope is cut by itself into `bins`
    pieces of equal tokens: bin b begins with the first document, in order of (value, doc_id), whose
    middle lies at or beyond b / bins of the scope's tokens; without documents, at infinity.
    """
    bucket = f"floor(value * {BUCKETS_PER_UNIT}) + 0.0"  # + 0.0 makes -0.0 and 0.0 one bucket
    ends = "".join(
        f", coalesce(max(value) FILTER (boundary = {b}), 'infinity') AS value_{b}"
        f", coalesce(max(doc_id) FILTER (boundary = {b}), '') AS doc_{b}"
        for b in range(1, bins)
    )
    connection.execute(
        f"""
        CREATE TABLE {name} AS
        WITH ranked AS NOT MATERIALIZED ({ranked}),
        histogram AS MATERIALIZED (
            SELECT scope, {bucket} AS bucket, sum(tokens) AS tokens FROM ranked GROUP BY ALL),
        running AS (
            SELECT *, sum(tokens) OVER line - tokens AS before, lag(tokens, 1, 0) OVER line AS last,
                sum(tokens) OVER (PARTITION BY scope) AS total
            FROM histogram WINDOW line AS (PARTITION BY scope ORDER BY bucket)),
        -- The first document beyond a cut is in the cut's bucket or opens the next one.
        near AS (
            SELECT scope, boundary, bucket, before, total FROM running JOIN
                (SELECT unnest(range(1, {bins})) AS boundary)
                ON {bins} * (before - last) <= boundary * total
                AND {bins} * (before + tokens) >= boundary * total),
        sorted AS (
            SELECT ranked.scope, boundary, value, doc_id, tokens, total, before - tokens +
                sum(tokens) OVER (PARTITION BY ranked.scope, boundary, near.bucket
                    ORDER BY value, doc_id ROWS UNBOUNDED PRECEDING) AS before
            FROM ranked JOIN near ON ranked.scope = near.scope AND {bucket} = near.bucket),
        found AS (
            SELECT scope, boundary, arg_min(value, before) AS value,
                arg_min(doc_id, before) AS doc_id
            FROM sorted WHERE {bins} * (2 * before + tokens) >= 2 * boundary * total GROUP BY ALL)
        SELECT scope {ends}
        FROM (SELECT DISTINCT scope FROM histogram) LEFT JOIN found USING (scope) GROUP BY scope
        """
    )


def bin_index_sql(value: str, thresholds: str, bins: int) -> str:
    """SQL for the index, from 0, of a document's bin by a table of `compute_thresholds`.

    Documents of a scope that has no cuts, because no training document came there, are in bin 0.
    """
    passed = (
        f"({value} > {thresholds}.value_{b} OR ({value} = {thresholds}.value_{b} "
        f"AND doc_id >= {thresholds}.doc_{b}))::INTEGER"
        for b in range(1, bins)
    )
    return f"coalesce({' + '.join(passed)}, 0)" if bins > 1 else "0"


def ranked_documents_sql(config: PartitionConfig) -> list[tuple[str, int, str]]:
    """Name and bins of each axis, and SQL for the documents that its thresholds come from."""
    ppl = "SELECT threshold_group AS scope, loss AS value, tokens, doc_id FROM training"
    pd = (
        f"SELECT {pd_scope_sql(config)} AS scope, gap AS value, tokens, doc_id FROM training "
        "JOIN ppl_thresholds ON ppl_thresholds.scope = threshold_group"
    )
    return [("ppl", config.axes.ppl, ppl), ("pd", config.axes.pd, pd)]


def pd_scope_sql(config: PartitionConfig) -> str:
    """SQL for the scope of PD's thresholds: a threshold group, or one of its PPL bins if nested."""
    bins = config.axes.ppl
    inside = bin_index_sql("loss", "ppl_thresholds", bins) if config.mode == "nested" else "0"
    return f"threshold_group * {bins} + {inside}"


def assign_quadrants(
    connection: duckdb.DuckDBPyConnection, config: PartitionConfig, axes: Axes, assignment: Path
) -> None:
    """Computes thresholds along both axes and writes a line for every scored document.

    Columns: doc_id, ppl, pd, quadrant (these null for documents without a quadrant), split, source,
    domain, language, tokens, bytes, part, row, copies (how often an epoch reads it). Lines are in
    no particular order: sorting 20 million of them took 13 to 18 s of processor time, all the rest
    21 to 25 s.
    """
    ppl, pd = config.axes.ppl, config.axes.pd
    for axis, bins, ranked in ranked_documents_sql(config):
        compute_thresholds(connection, f"{axis}_thresholds", ranked, bins)
    ppl_bin, pd_scope = bin_index_sql("loss", "ppl_thresholds", ppl), pd_scope_sql(config)
    names = ", ".join(sql_literal(name) for name in config.axes.quadrants)
    connection.execute(f"CREATE TYPE quadrant_names AS ENUM ({names})")
    pd_bin = bin_index_sql("gap", "pd_thresholds", pd)
    quadrant = f"([{names}]::quadrant_names[])[1 + ppl_bin * {pd} + {pd_bin}]"
    assigned = f"""
        WITH half AS NOT MATERIALIZED (
            SELECT documents.*, threshold_groups.* EXCLUDE (label), {ppl_bin} AS ppl_bin,
                {pd_scope} AS pd_scope
            FROM documents JOIN threshold_groups USING (label)
                LEFT JOIN ppl_thresholds ON ppl_thresholds.scope = threshold_group)
        SELECT doc_id, {axes.ppl[0].format("loss")} AS ppl, {axes.pd[0].format("gap")} AS pd,
            CASE WHEN status = 0 AND threshold_group IS NOT NULL THEN {quadrant} END AS quadrant,
            split, source, domain, language, tokens, bytes, part, row, copies
        FROM half LEFT JOIN pd_thresholds ON pd_thresholds.scope = pd_scope
        """
    connection.execute(write_parquet(assigned, assignment))
