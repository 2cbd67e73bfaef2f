"""Held-out losses of two arms, document by document, in; their differences by seed and part out.

DuckDB does the sums, so memory does not grow with the held-out split.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow.parquet as pq

from frame_jax.run.directory import RunDirectory, list_parts
from frame_jax.sql import parquet_table

DIMENSIONS = ("domain", "language", "quadrant")
ALL = "all"


@dataclass(frozen=True)
class Differences:
    """Bits per byte of one arm minus another's, on one part of the held-out split.

    Attributes:
        by_seed: One for each seed.
        document_error: Standard error of their mean over documents. With d_i the difference of
            document i, averaged over seeds, b_i its bytes and D = sum(d) / sum(b), it is that of a
            ratio of two means, sqrt(sum((d_i - D b_i)^2)) / sum(b): documents are compared with
            themselves, so what makes one hard for every arm cancels. [ours]
    """

    by_seed: tuple[float, ...]
    document_error: float


def differences(
    directory: RunDirectory, pairs: Sequence[tuple[Path, Path]]
) -> dict[str, Differences]:
    """Differences overall and by domain, language and quadrant, by label (`all`, `domain: code`).

    Args:
        directory: The run.
        pairs: For each seed the folders of losses by document of the arm and of the other one.
    """
    tokens = list_parts(directory.tokens, ".parquet")
    union = " UNION ALL ".join(
        f"SELECT {seed} AS seed, doc_id, arm.nll - other.nll AS d "
        f"FROM {parquet_table(*list_parts(one, '.parquet'))} arm "
        f"JOIN {parquet_table(*list_parts(two, '.parquet'))} other USING (doc_id)"
        for seed, (one, two) in enumerate(pairs)
    )
    with duckdb.connect() as connection:
        connection.execute("SET threads = 1")  # the order of a sum is in its last digits
        connection.execute(
            f"""
            CREATE TABLE losses AS
            WITH documents AS (
                SELECT doc_id, domain, language, bytes FROM {parquet_table(*tokens)}
                WHERE split = 'held_out'),
            places AS (
                SELECT doc_id, quadrant FROM {parquet_table(directory.assignment)}
                WHERE split = 'held_out')
            SELECT seed, doc_id, domain, language, quadrant, bytes::DOUBLE AS b, d / ln(2) AS d
            FROM ({union}) JOIN documents USING (doc_id) LEFT JOIN places USING (doc_id)
            """
        )
        sets = "GROUPING_ID(domain, language, quadrant) AS part, domain, language, quadrant"
        seeds = connection.execute(
            f"""
            SELECT {sets}, seed, sum(d) / sum(b) FROM losses
            GROUP BY GROUPING SETS
                ((seed), (seed, domain), (seed, language), (seed, quadrant)) ORDER BY ALL
            """
        ).fetchall()
        errors = connection.execute(
            f"""
            WITH means AS (
                SELECT doc_id, any_value(domain) AS domain, any_value(language) AS language,
                    any_value(quadrant) AS quadrant, any_value(b) AS b, avg(d) AS d
                FROM losses GROUP BY doc_id)
            SELECT {sets}, sum(d) / sum(b) AS mean,
                sqrt(greatest(0, sum(d * d) - 2 * mean * sum(d * b) + mean * mean * sum(b * b)))
                    / sum(b)
            FROM means GROUP BY GROUPING SETS ((), (domain), (language), (quadrant)) ORDER BY ALL
            """
        ).fetchall()
    found = {}
    for grouping, *values, _, error in errors:
        label = label_of(grouping, values)
        own = [line for line in seeds if label_of(line[0], line[1:4]) == label]
        if label is not None and own:  # without a document in common there is no seed
            found[label] = Differences(tuple(line[5] for line in own), error)
    return dict(sorted(found.items(), key=lambda item: item[0] != ALL))


def label_of(grouping: int, values: Sequence[str | None]) -> str | None:
    """`all`, `domain: code`, ...; None for documents without a value."""
    present = [i for i in range(3) if not grouping >> (2 - i) & 1]
    if not present:
        return ALL
    value = values[present[0]]
    return None if value is None else f"{DIMENSIONS[present[0]]}: {value}"


def task_differences(pairs: Sequence[tuple[Path, Path]]) -> Differences:
    """The same for the right answers of a task's items.

    Args:
        pairs: For each seed the folders of the task's parts under the arm and under the other one.
    """
    seeds, sizes = [], np.zeros(0)
    for one, two in pairs:
        (bits, sizes), (other, _) = (right_answer_bits(folder) for folder in (one, two))
        seeds.append(bits - other)
    by_seed = tuple(float(d.sum() / sizes.sum()) for d in seeds)
    mean = np.mean(seeds, axis=0)
    off = mean - mean.sum() / sizes.sum() * sizes
    return Differences(by_seed, float(math.sqrt((off**2).sum()) / sizes.sum()))


def right_answer_bits(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Bits and bytes of the right answer of each item: float64 [items] each."""
    rows = [
        row
        for path in list_parts(folder, ".parquet")
        for row in pq.read_table(path, columns=["answer", "nll", "bytes"]).to_pylist()
    ]
    bits = np.array([row["nll"][row["answer"]] for row in rows]) / math.log(2)
    return bits, np.array([row["bytes"][row["answer"]] for row in rows], np.float64)
