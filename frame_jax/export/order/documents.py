"""Writes order.parquet: the documents of a run in the order in which training reads them.

One line each time that an epoch reads a training document. A later epoch has the same stages with
other shuffles. Documents that a shortened run does not reach are left out. docs/order.md says what
the columns hold, how far a trainer that follows the order deviates, and why.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from frame_jax.config.quadrants import RowsConfig
from frame_jax.config.run import RunConfig
from frame_jax.export.order.trial_order import RowFile, TrialOrder, list_row_files
from frame_jax.quadrants.rows import (
    PackedSegments,
    pack_documents,
    read_shuffled,
    shuffle_training_documents,
)
from frame_jax.run.directory import RunDirectory, remove
from frame_jax.run.map_parts import Advance, map_parts
from frame_jax.run.special_tokens import SpecialTokens
from frame_jax.sql import open_database, parquet_table, write_parquet

ROWS_AT_ONCE = 1 << 20
LINE_BYTES = 100  # read for a row, about

NOTES = """# Curriculum {curriculum}

`order.parquet`: the training documents in the order in which this run's training comes to their
first tokens, each as often as an epoch reads it, with rank, quadrant, stage, weight (the share of
the quadrant at that place), PPL, PD and step. Join your texts on `doc_id`; `part` and `row` say
where the tokens lie in the run directory (`tokens/part-*.arrayrecord`), and `--shards` writes
texts. To use the order elsewhere, keep it: read documents by `rank`, pack them in that order and do
not shuffle across stages.

A row here holds pieces of documents, and a piece that is not its document's first may be read
earlier or later than the document. Whoever reads whole documents in this order has, after any row,
read of each quadrant as many text tokens as training here, but for at most those in such pieces:

| quadrant | text tokens | in other pieces than the first |
|---|---:|---:|
{quadrants}

What that comes to at the ends of the stages, in text tokens of an epoch:

| stage | here | by documents | difference |
|---|---:|---:|---:|
{stages}

Steps of another size move an end by less than one of them. Another tokenizer changes the lengths of
documents, not their order: let the stages be those of `stage`, not counts of tokens.
"""


def write_documents(
    config: RunConfig, directory: RunDirectory, trial_order: TrialOrder, folder: Path
) -> None:
    """Writes order.parquet and NOTES.md to `folder`; memory does not grow with the corpus."""
    scratch, order = folder / ".rows", folder / "order.parquet"
    scratch.mkdir(parents=True)
    write_first_rows(config, directory, trial_order, scratch)
    write_row_positions(trial_order, config.pretrain.training.batch_size, scratch)
    documents, rows, positions = (
        parquet_table(*sorted(scratch.glob(f"{name}-*.parquet")))
        for name in ("documents", "rows", "positions")
    )
    with open_database(folder) as connection:
        connection.execute("SET preserve_insertion_order = true")
        query = f"""
            SELECT row_number() OVER (ORDER BY positions.position, first_rows.number) - 1 AS rank,
                doc_id, quadrant, stage, weight, step, tokens, source, domain, language, ppl,
                pd, part, row
            FROM {documents} first_rows
            JOIN {positions} positions USING (quadrant_index, quadrant_row)
            JOIN {parquet_table(directory.assignment)} USING (part, row)
            ORDER BY rank
            """
        connection.execute(write_parquet(query, order, "zstd"))
        by_quadrant = connection.execute(
            f"SELECT quadrant_index, sum(tokens), sum(cut) FROM {rows} GROUP BY 1 ORDER BY 1"
        ).fetchall()
        by_rows, by_documents = (
            dict(
                connection.execute(f"SELECT stage, sum(tokens) FROM {table} GROUP BY 1").fetchall()
            )
            for table in (
                f"{rows} JOIN {positions} USING (quadrant_index, quadrant_row)",
                parquet_table(order),
            )
        )
    remove(scratch)
    schedule = trial_order.schedule
    quadrants = [
        f"| {schedule.quadrants[quadrant]} | {tokens:,} | {cut:,} ({cut / max(tokens, 1):.1%}) |"
        for quadrant, tokens, cut in by_quadrant
    ]
    stages = []
    for name in dict.fromkeys(stage.name for stage in schedule.stages):
        here, there = by_rows.get(name, 0), by_documents.get(name, 0)
        stages.append(f"| {name} | {here:,} | {there:,} | {there / max(here, 1) - 1:+.1%} |")
    notes = NOTES.format(
        curriculum=trial_order.trial, quadrants="\n".join(quadrants), stages="\n".join(stages)
    )
    (folder / "NOTES.md").write_text(notes, "utf-8")


def write_first_rows(
    config: RunConfig, directory: RunDirectory, trial_order: TrialOrder, scratch: Path
) -> None:
    """Writes the row of its quadrant in which each document begins.

    And of each row: quadrant_index, quadrant_row, tokens (of text), cut (those of documents that
    begin in another row).
    """
    row_files = list_row_files(directory, trial_order.schedule)
    listed = scratch.with_name(".listed")
    shuffled = shuffle_training_documents(config, directory, listed)
    map_parts(
        FirstRowWriter(config.partition.rows, trial_order.special_tokens, shuffled, scratch),
        {f"{row_file.quadrant_name} {row_file.part}": row_file for row_file in row_files},
        config.workers,
        name="rows",
        work_bytes=LINE_BYTES * trial_order.schedule.rows,
    )
    remove(listed)


@dataclass(frozen=True)
class FirstRowWriter:
    """Writes what `write_first_rows` does of a row file; `shuffled` is the order of documents."""

    rows: RowsConfig
    special_tokens: SpecialTokens
    shuffled: list[Path]
    scratch: Path

    def __call__(self, row_file: RowFile, advance: Advance) -> None:
        index, part = row_file.quadrant, row_file.part
        documents = read_shuffled(self.shuffled, index * self.rows.parts + part)
        packed = pack_documents(documents, self.rows, self.special_tokens)
        first = np.full(len(documents.tokens), np.iinfo(np.int64).max)
        np.minimum.at(first, packed.document, packed.row)
        write_columns(
            self.scratch / f"documents-{index}-{part:05d}.parquet",
            quadrant_index=np.full(len(first), index, np.int32),
            quadrant_row=row_file.first + first,
            number=np.arange(len(first)),
            part=documents.part.astype(np.int32),
            row=documents.row,
        )
        tokens, cut = row_tokens(packed, documents.tokens)
        write_columns(
            self.scratch / f"rows-{index}-{part:05d}.parquet",
            quadrant_index=np.full(packed.rows, index, np.int32),
            quadrant_row=row_file.first + np.arange(packed.rows),
            tokens=tokens,
            cut=cut,
        )


def write_columns(path: Path, **columns: np.ndarray) -> None:
    """Writes a Parquet file of these columns."""
    pq.write_table(pa.table(columns), path)


def row_tokens(packed: PackedSegments, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts text tokens of each row, and those whose document begins in another: two int64 [rows].

    `tokens` are the text tokens of each document.
    """
    first, stop = packed.text_spans(tokens)
    begins = np.full(len(tokens), packed.rows)
    np.minimum.at(begins, packed.document, packed.row)
    cut = np.where(packed.row == begins[packed.document], 0, stop - first)
    whole, others = (np.bincount(packed.row, n, packed.rows) for n in (stop - first, cut))
    return whole.astype(np.int64), others.astype(np.int64)


def write_row_positions(trial_order: TrialOrder, batch_size: int, scratch: Path) -> None:
    """Writes where the first epoch uses each row: quadrant_index, quadrant_row, position, stage,
    weight, step."""
    schedule, selection = trial_order.schedule, trial_order.selection
    names = np.array([stage.name for stage in schedule.stages])
    stops = np.array([stage.stop for stage in schedule.stages])
    asked = np.diff(schedule.cumulative(selection.edges), axis=0)
    weights = asked / np.diff(selection.edges)[:, None]
    for start in range(0, schedule.epoch_rows, ROWS_AT_ONCE):
        row_index = np.arange(start, min(start + ROWS_AT_ONCE, schedule.epoch_rows))
        quadrants, rows = selection.select(row_index)
        block = np.searchsorted(selection.edges, row_index, side="right") - 1
        write_columns(
            scratch / f"positions-{start:012d}.parquet",
            quadrant_index=quadrants.astype(np.int32),
            quadrant_row=rows,
            position=row_index,
            stage=names[np.searchsorted(stops, row_index, side="right")],
            weight=weights[block, quadrants],
            step=row_index // batch_size,
        )
