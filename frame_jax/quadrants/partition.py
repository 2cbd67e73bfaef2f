"""The phases that write training rows: of the partition, from scores; of the reference split."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from frame_jax.config.quadrants import PartitionConfig
from frame_jax.config.run import RunConfig
from frame_jax.config.scoring import ScoringConfig
from frame_jax.config.workers import WorkersConfig
from frame_jax.errors import UserError, print_warning
from frame_jax.parallel import processes
from frame_jax.quadrants import assign
from frame_jax.quadrants.assign import make_axes
from frame_jax.quadrants.mixture import count_read, mixture_table
from frame_jax.quadrants.reliability import measure_reliability, reliability_warnings
from frame_jax.quadrants.rows import training_conditions, write_quadrant_rows
from frame_jax.quadrants.summary import summarise_partition
from frame_jax.run.directory import RunDirectory, atomic_path, list_parts, remove, write_json
from frame_jax.run.map_parts import map_parts
from frame_jax.run.partition_record import (
    RELIABILITY_HEADER,
    PartitionRecord,
    read_partition_record,
)
from frame_jax.run.program_exit import run_on_all_processes
from frame_jax.run.progress import text_table, wide_console
from frame_jax.sql import open_database, parquet_table

WARN_DOCUMENT_SHARE = 0.1  # share of the documents that is worth a word
# Share of the tokens, likewise, that nothing but ids puts on a side of a threshold.
WARN_TIED_SHARE = 0.2
REMEDY = (
    "Name columns with few values in partition.group_by, or set partition.min_group_tokens (such "
    "as 1000000): groups with fewer tokens share the thresholds of their language."
)


def write_reference_rows(config: RunConfig, directory: RunDirectory) -> dict[str, Any]:
    """Writes the rows that train the reference models: RUN/reference/rows/reference/part-*.

    Returns:
        The content of RUN/reference/rows/rows.json, see `write_quadrant_rows`.

    Raises:
        UserError: where there is no such document.
    """
    tables = list_parts(directory.tokens, ".parquet")
    conditions = {"reference": "split = 'reference'"}
    folder = directory.reference("rows")
    rows = write_quadrant_rows(
        config.reference.rows, directory, folder, tables, conditions, config.seed, config.workers
    )
    if rows["reference"]["documents"] == 0:
        raise UserError(
            "no document of the corpus fell into the split that trains the reference models "
            f"(corpus.reference_fraction: {config.corpus.reference_fraction}): raise it, or give a "
            "larger corpus, and repeat with --redo tokenize; or name trained models in "
            "reference.weak.checkpoint and reference.strong.checkpoint"
        )
    return rows


def partition_corpus(config: RunConfig, directory: RunDirectory) -> dict[str, Any]:
    """Writes RUN/quadrants/: assignment.parquet, partition.json, rows.json and Q*/part-*.

    All processes join documents with scores, process 0 places them, then all make rows. Whatever is
    already there is kept.

    Returns:
        Rows, documents, text tokens and padding of each quadrant, documents without a place, and
        why the quadrants may mean little (`warnings`).

    Raises:
        UserError: when scores are missing, do not match the tokens or place no document, groups are
            so small that a quadrant is empty, or an axis tells no documents apart.
    """
    if not processes.all_agree(directory.partition.exists()):
        write_assignment(config.partition, config.scoring, directory, config.workers)
    record = read_partition_record(directory)
    if processes.is_first():
        for line in record.warnings:
            print_warning(line)
        console = wide_console(stderr=True)
        if record.mixture is not None:
            console.print(mixture_table(record.mixture))
        if record.reliability:
            lines = [RELIABILITY_HEADER, *(each.line() for each in record.reliability)]
            console.print(text_table("the same documents under other reference models", lines))
    rows = write_quadrant_rows(
        config.partition.rows,
        directory,
        directory.quadrants,
        [directory.assignment],
        training_conditions(config.partition.axes.quadrants),
        config.seed,
        config.workers,
    )
    summary = record.to_json()
    return {**rows, **{key: summary[key] for key in ("without_quadrant", "warnings")}}


def write_assignment(
    config: PartitionConfig,
    scoring: ScoringConfig,
    directory: RunDirectory,
    workers: WorkersConfig = WorkersConfig(),
) -> PartitionRecord:
    """Writes assignment.parquet and then partition.json, whose content is returned; called on every
    process."""
    tokens = list_parts(directory.tokens, ".parquet")
    scores = list_parts(directory.scores, ".parquet")
    if not tokens or [path.name for path in tokens] != [path.name for path in scores]:
        raise UserError(
            f"{directory.tokens} has {len(tokens)} parts and {directory.scores} has {len(scores)}, "
            "which should have the same names: redo the score phase"
        )
    axes, labels = make_axes(scoring), directory.quadrants / ".tmp-scored" / "labels.parquet"
    ppl_model = scoring.ppl_model if scoring.table is None else None
    mixture = run_on_all_processes(
        lambda: assign.write_labels(config, tokens, labels) if processes.is_first() else None
    )
    parts = assign.plan_documents(axes, tokens, scores, labels)
    map_parts(
        assign.write_documents,
        parts if len(parts) > 1 else {},
        workers,
        name="documents with scores",
        work_bytes=sum(path.stat().st_size for path in [*tokens, *scores]),
    )

    def partition_documents() -> None:
        assert mixture is not None
        with open_database(directory.quadrants) as connection:
            assign.load_documents(connection, labels, parts)
            assign.group_documents(connection, config)
            with atomic_path(directory.assignment) as path:
                assign.assign_quadrants(connection, config, axes, path)
                record = summarise_partition(connection, config, axes, path, ppl_model)
                require_sound_partition(record)
            if mixture.groups:
                table = parquet_table(directory.assignment)
                counted = count_read(connection, mixture, table, config.axes.quadrants)
                record = dataclasses.replace(record, mixture=counted)
            others = sorted(path for path in directory.reliability.glob("*") if path.is_dir())
            compared = tuple(measure_reliability(connection, config, axes, others))
            record = dataclasses.replace(record, reliability=compared)
        record = dataclasses.replace(record, warnings=tuple(partition_warnings(record)))
        write_json(directory.partition, record.to_json())
        remove(labels.parent)

    run_on_all_processes(lambda: partition_documents() if processes.is_first() else None)
    return read_partition_record(directory)


def partition_warnings(record: PartitionRecord) -> Iterator[str]:
    """Yields what makes the quadrants differ by something else than PPL and PD."""
    thin = record.thin_groups
    if thin.groups > 1 and thin.documents > WARN_DOCUMENT_SHARE * record.documents:
        yield f"{small_groups_message(record)} {REMEDY}"
    for name, share in zip(record.names, record.tied.values(), strict=True):
        if share > WARN_TIED_SHARE:
            yield (
                f"{share:.0%} of the training tokens are in documents whose {name} is exactly a "
                "threshold's, as others' is: on which side they come is decided by their ids, in "
                f"alphabetical order. Numbers with more different values than {name} has tell more"
            )
    yield from reliability_warnings(record.reliability, record.names[1])


def require_sound_partition(record: PartitionRecord) -> None:
    """Refuses a partition whose quadrants are none.

    A document alone in its group is its own threshold, so all such land in the last quadrant, and
    an order of quadrants is no order.

    Raises:
        UserError: where most documents are in groups with fewer documents than there are quadrants
            and some quadrant has none, though the documents would fill them all; and, naming the
            axis, where all documents of each quadrant have the same value on it.
    """
    thin = record.thin_groups
    empty = [name for name, quadrant in record.quadrants.items() if quadrant.documents == 0]
    crowded = record.documents >= len(record.quadrants) and thin.groups > 1
    if empty and crowded and 2 * thin.documents > record.documents:
        raise UserError(
            f"{small_groups_message(record)} Nothing is left for {', '.join(empty)}. {REMEDY}"
        )
    for name, share in zip(record.names, record.tied.values(), strict=True):
        if share == 1:
            raise UserError(
                f"{name} has one value for all training documents that it should tell apart, and "
                "quadrants would be cut by the alphabetical order of their ids: name another "
                "column in scoring.table, or cut along the other axis alone (partition.axes)"
            )


def small_groups_message(record: PartitionRecord) -> str:
    """Says how many documents are in groups too small to be cut."""
    thin = record.thin_groups
    return (
        f"{thin.documents:,} of {record.documents:,} training documents are in groups (by "
        f"{' and '.join(record.group_by) or 'nothing'}) with fewer documents than there are "
        f"quadrants ({thin.groups:,} groups), where thresholds say nothing of PPL or PD."
    )
