"""How often an epoch reads each training document: `partition.mixture` in, copies out.

A document of a group that is read 2.4 times has three copies where its number u, a hash of its id
between 0 and 1, is below 0.4, and two elsewhere: those k >= 0 with k + u < 2.4. So what is read at
0.4 is read at 0.7, by every arm and under every seed. [ours]
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from frame_jax.config.quadrants import PartitionConfig
from frame_jax.config.run import RunConfig
from frame_jax.errors import UserError
from frame_jax.parallel import processes
from frame_jax.run.directory import RunDirectory, list_parts
from frame_jax.run.partition_record import Mixture, MixtureGroup
from frame_jax.run.progress import text_table
from frame_jax.sql import parquet_table, query

NAMED = 40  # groups that a message names

# Of the hash 53 bits, which a double holds exactly: u stays below 1.
COPIES = (
    "CASE WHEN repeats = floor(repeats) THEN repeats::INTEGER ELSE greatest(ceil(repeats - "
    "(md5_number_lower(concat('mixture ', doc_id)) >> 11) / 9007199254740992e0), 0)::INTEGER END"
)


def resolve_mixture(config: PartitionConfig, tokens: Sequence[Path]) -> Mixture:
    """Finds how often each group is read, from the tables of the tokenize phase.

    Raises:
        UserError: for a name that no training document has, more repeats than are allowed, more
            copies than row files, and where nothing would be read.
    """
    mixture = config.mixture
    assert mixture is not None
    by, most = mixture.by, mixture.max_repeats
    available = dict(
        query(
            lambda name, size: (name, size),
            f"SELECT {by}, sum(tokens)::BIGINT FROM {parquet_table(*tokens)} "
            "WHERE split = 'train' AND tokens > 0 GROUP BY 1 ORDER BY 1 NULLS LAST",
        )
    )
    if unknown := [repr(name) for name in mixture.numbers if name not in available]:
        there = [repr(name) for name in available if name is not None]
        others = f" and {len(there) - NAMED:,} more" if len(there) > NAMED else ""
        raise UserError(
            f"partition.mixture: no training document has the {by} {', '.join(unknown)}; there "
            f"are: {', '.join(there[:NAMED])}{others}"
        )
    if mixture.weights is not None:
        assert mixture.tokens is not None
        total = sum(mixture.weights.values())
        shares = {name: weight / total for name, weight in mixture.weights.items() if weight > 0}
        allowed = {name: most * available[name] / share for name, share in shares.items()}
        if over := [
            f"{name} {most * mixture.tokens / largest:.2f} times (of {available[name]:,} tokens)"
            for name, largest in allowed.items()
            if mixture.tokens > largest
        ]:
            raise UserError(
                f"partition.mixture: an epoch of {mixture.tokens:,.0f} tokens under these weights "
                f"reads {', '.join(over)}, and max_repeats is {most:g}. The most that this corpus "
                f"allows under them is tokens: {math.floor(min(allowed.values()))}; or change the "
                "weights, or raise max_repeats"
            )
        repeats = {
            name: min(mixture.tokens * shares.get(name, 0.0) / size, most)
            for name, size in available.items()
        }
    else:
        repeats = {name: float(mixture.numbers.get(name, 1.0)) for name in available}
    config.require_parts(max(repeats.values(), default=0.0))
    read = sum(repeats[name] * size for name, size in available.items())
    if read == 0:
        raise UserError("partition.mixture leaves no training document to read: raise its repeats")
    groups = (
        MixtureGroup(name, size, repeats[name], share=repeats[name] * size / read)
        for name, size in available.items()
    )
    return Mixture(by, tuple(groups))


def check_mixture(config: RunConfig, directory: RunDirectory) -> None:
    """Refuses a mixture that a tokenized corpus cannot give; process 0 looks.

    Raises:
        UserError: as `resolve_mixture`.
    """
    if config.partition.mixture is not None and processes.is_first():
        resolve_mixture(config.partition, list_parts(directory.tokens, ".parquet"))


def register_repeats(connection: duckdb.DuckDBPyConnection, mixture: Mixture) -> None:
    """Makes the table `group_repeats`: name and repeats of each group."""
    names = pa.array([group.name for group in mixture.groups], pa.string())
    repeats = pa.array([group.repeats for group in mixture.groups], pa.float64())
    connection.register("group_repeats", pa.table({"name": names, "repeats": repeats}))


def tokenized_mixture(config: PartitionConfig, directory: RunDirectory) -> Mixture:
    """What an epoch will read, as far as it is known before documents have scores.

    Raises:
        UserError: as `resolve_mixture`.
    """
    tokens = list_parts(directory.tokens, ".parquet")
    mixture = resolve_mixture(config, tokens)
    with duckdb.connect() as connection:
        register_repeats(connection, mixture)
        table = (
            f"(SELECT *, {COPIES} AS copies, '' AS quadrant FROM {parquet_table(*tokens)} "
            f"JOIN group_repeats ON {mixture.by} IS NOT DISTINCT FROM name WHERE split = 'train')"
        )
        return count_read(connection, mixture, table, ())


def count_read(
    connection: duckdb.DuckDBPyConnection, mixture: Mixture, table: str, quadrants: Sequence[str]
) -> Mixture:
    """Adds what an epoch reads of the documents of a table, which has their copies."""
    counts: dict[str | None, dict[str, int]] = {}
    for name, quadrant, tokens in connection.execute(
        f"SELECT {mixture.by}, quadrant, sum(tokens * copies)::BIGINT FROM {table} "
        "WHERE copies > 0 GROUP BY ALL"
    ).fetchall():
        counts.setdefault(name, {})[quadrant] = tokens
    groups = (
        dataclasses.replace(
            group,
            read=sum(counts.get(group.name, {}).values()),
            quadrants={q: counts.get(group.name, {}).get(q, 0) for q in quadrants},
        )
        for group in mixture.groups
    )
    return dataclasses.replace(mixture, groups=tuple(groups))


def mixture_table(mixture: Mixture) -> Any:
    """Formats a mixture for the terminal."""
    return text_table(f"what an epoch reads, by {mixture.by}", mixture.lines())
