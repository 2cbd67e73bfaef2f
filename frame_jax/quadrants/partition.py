"""The partition phase: scores in; thresholds, the quadrant of every document and rows out."""

from __future__ import annotations

import sys
from typing import Any

from frame_jax.config.quadrants import PartitionConfig
from frame_jax.config.run import RunConfig
from frame_jax.config.scoring import ScoringConfig
from frame_jax.errors import UserError
from frame_jax.parallel import processes
from frame_jax.quadrants import assign
from frame_jax.quadrants.axes import axes_of
from frame_jax.quadrants.doubts import doubts, require_groups, require_values
from frame_jax.quadrants.rows import training_documents, write_cells
from frame_jax.quadrants.summary import summarise
from frame_jax.run.directory import RunDirectory, atomic_path, list_parts, read_json, write_json
from frame_jax.sql import database


def run(config: RunConfig, directory: RunDirectory) -> dict[str, Any]:
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
        place_documents(config.partition, config.scoring, directory)
    processes.barrier("documents placed")
    placed = read_json(directory.partition)
    warnings = placed.get("warnings", [])
    if processes.is_first():
        for line in warnings:
            print(f"warning: {line}", file=sys.stderr, flush=True)
    rows = write_cells(
        config.partition.rows,
        directory,
        directory.quadrants,
        [directory.assignment],
        training_documents(config.partition.axes.cells),
        config.seed,
    )
    return {**rows, "without_place": placed["without_place"], "warnings": warnings}


def place_documents(
    config: PartitionConfig, scoring: ScoringConfig, directory: RunDirectory
) -> None:
    """Writes assignment.parquet and then partition.json, whose `ppl_model` is null where scores
    were made elsewhere."""
    tokens = list_parts(directory.tokens, ".parquet")
    scores = list_parts(directory.scores, ".parquet")
    if not tokens or [path.name for path in tokens] != [path.name for path in scores]:
        raise UserError(
            f"{directory.tokens} has {len(tokens)} parts and {directory.scores} has {len(scores)}, "
            "which should have the same names: redo the score phase"
        )
    axes = axes_of(scoring)
    with database(directory.quadrants) as connection:
        assign.load(connection, axes, tokens, scores)
        assign.group(connection, config)
        with atomic_path(directory.assignment) as path:
            assign.place(connection, config, axes, path)
        summary = summarise(connection, config, axes, directory.assignment)
    try:
        require_groups(summary)
        require_values(summary)
    except UserError:
        directory.assignment.unlink()  # its quadrants are none
        raise
    ppl_model = scoring.ppl_model if scoring.table is None else None
    found = {"ppl_model": ppl_model, **summary, "warnings": list(doubts(summary, ppl_model))}
    write_json(directory.partition, found)
