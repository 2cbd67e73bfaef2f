"""The partition phase: scores in, thresholds, quadrants of documents and training rows out."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

from frame_jax.config.quadrants import PartitionConfig
from frame_jax.config.run import RunConfig
from frame_jax.config.scoring import ScoringConfig
from frame_jax.errors import UserError
from frame_jax.parallel import processes
from frame_jax.quadrants import assign
from frame_jax.quadrants.axes import make_axes
from frame_jax.quadrants.partition_warnings import partition_warnings, require_sound_partition
from frame_jax.quadrants.rows import training_conditions, write_quadrant_rows
from frame_jax.quadrants.summary import summarise_partition
from frame_jax.run.directory import RunDirectory, atomic_path, list_parts
from frame_jax.run.partition_record import (
    PartitionRecord,
    read_partition_record,
    write_partition_record,
)
from frame_jax.sql import open_database

logger = logging.getLogger(__name__)


def partition_corpus(config: RunConfig, directory: RunDirectory) -> dict[str, Any]:
    """Writes RUN/quadrants/: assignment.parquet, partition.json, rows.json and Q*/part-*.

    Process 0 places the documents, then all processes make rows. Whatever is already there is
    kept.

    Returns:
        Rows, documents, text tokens and padding of each quadrant, documents without a place, and
        why the quadrants may mean little (`warnings`).

    Raises:
        UserError: when scores are missing, do not match the tokens or place no document, groups are
            so small that a quadrant is empty, or an axis tells no documents apart.
    """
    if processes.is_first() and not directory.partition.exists():
        write_assignment(config.partition, config.scoring, directory)
    processes.barrier("documents placed")
    record = read_partition_record(directory)
    if processes.is_first():
        for line in record.warnings:
            logger.warning("%s", line)
    rows = write_quadrant_rows(
        config.partition.rows,
        directory,
        directory.quadrants,
        [directory.assignment],
        training_conditions(config.partition.axes.quadrants),
        config.seed,
    )
    summary = record.to_json()
    return {**rows, **{key: summary[key] for key in ("without_quadrant", "warnings")}}


def write_assignment(
    config: PartitionConfig, scoring: ScoringConfig, directory: RunDirectory
) -> PartitionRecord:
    """Writes assignment.parquet and then partition.json, whose content is returned."""
    tokens = list_parts(directory.tokens, ".parquet")
    scores = list_parts(directory.scores, ".parquet")
    if not tokens or [path.name for path in tokens] != [path.name for path in scores]:
        raise UserError(
            f"{directory.tokens} has {len(tokens)} parts and {directory.scores} has {len(scores)}, "
            "which should have the same names: redo the score phase"
        )
    axes = make_axes(scoring)
    ppl_model = scoring.ppl_model if scoring.table is None else None
    with open_database(directory.quadrants) as connection:
        assign.load_scores(connection, axes, tokens, scores)
        assign.group_documents(connection, config)
        with atomic_path(directory.assignment) as path:
            assign.assign_quadrants(connection, config, axes, path)
        record = summarise_partition(connection, config, axes, directory.assignment, ppl_model)
    try:
        require_sound_partition(record)
    except UserError:
        directory.assignment.unlink()  # its quadrants are none
        raise
    record = dataclasses.replace(record, warnings=tuple(partition_warnings(record)))
    write_partition_record(directory, record)
    return record
