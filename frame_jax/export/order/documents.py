"""Writes order.parquet: the documents of a run in the order in which training reads them.

One line each time that an epoch reads a training document. A later epoch has the same stages with
other shuffles. Documents that a shortened run does not reach are left out. docs/order.md says what
the columns hold, how far a trainer that follows the order deviates, and why.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from frame_jax.config.run import RunConfig
from frame_jax.export.order.trial_order import RowFile, TrialOrder, list_row_files
from frame_jax.quadrants.rows import pack_documents, read_shuffled, shuffle_training_documents
from frame_jax.run.directory import RunDirectory, remove
from frame_jax.run.map_parts import Advance, map_parts
from frame_jax.sql import open_database, parquet_table, write_parquet

LINE_BYTES = 100  # read for a row, about


def write_documents(
    config: RunConfig, directory: RunDirectory, trial_order: TrialOrder, folder: Path
) -> None:
    """Writes order.parquet and NOTES.md to `folder`; memory does not grow with the corpus."""
    scratch, listed, order = (folder / name for name in (".rows", ".listed", "order.parquet"))
    scratch.mkdir(parents=True)
    row_files = list_row_files(directory, trial_order.schedule)
    map_parts(
        functools.partial(
            write_row_file_positions,
            trial_order=trial_order,
            config=config,
            shuffled=shuffle_training_documents(config, directory, listed),
            scratch=scratch,
        ),
        {f"{row_file.quadrant_name} {row_file.part}": row_file for row_file in row_files},
        config.workers,
        name="rows",
        work_bytes=LINE_BYTES * trial_order.schedule.rows,
    )
    remove(listed)
    documents = parquet_table(*sorted(scratch.iterdir()))
    with open_database(folder) as connection:
        connection.execute("SET preserve_insertion_order = true")
        query = f"""
            SELECT row_number() OVER (ORDER BY position, number) - 1 AS rank,
                doc_id, quadrant, stage, weight, step, tokens, source, domain, language, ppl,
                pd, part, row
            FROM {documents} positions
            JOIN {parquet_table(directory.assignment)} USING (part, row)
            WHERE position >= 0 ORDER BY rank
            """
        connection.execute(write_parquet(query, order, "zstd"))
    remove(scratch)
    notes = Path(__file__).with_suffix(".md").read_text("utf-8")
    (folder / "NOTES.md").write_text(notes.format(curriculum=trial_order.trial), "utf-8")


def write_row_file_positions(
    row_file: RowFile,
    advance: Advance,
    *,
    trial_order: TrialOrder,
    config: RunConfig,
    shuffled: Sequence[Path],
    scratch: Path,
) -> None:
    """Writes of each document of a row file, to `scratch`, part, row, its number among them and the
    `row_positions` of the row in which it begins; `shuffled` is the order of documents."""
    index, part, rows = row_file.quadrant, row_file.part, config.partition.rows
    documents = read_shuffled(shuffled, index * rows.parts + part)
    packed = pack_documents(documents, rows, trial_order.special_tokens)
    columns = row_positions(trial_order, row_file, config.pretrain.training.batch_size)
    begins = np.full(len(documents.tokens), packed.rows)
    np.minimum.at(begins, packed.document, packed.row)
    first = {name: column[begins] for name, column in columns.items()}
    first |= {"number": np.arange(len(begins)), "row": documents.row}
    first["part"] = documents.part.astype(np.int32)
    pq.write_table(pa.table(first), scratch / f"{index}-{part:05d}.parquet")


def row_positions(
    trial_order: TrialOrder, row_file: RowFile, batch_size: int
) -> dict[str, np.ndarray]:
    """Where the first epoch uses the rows of a file: position (-1 for a row that is left out, whose
    other columns say nothing), stage, weight and step."""
    schedule, selection = trial_order.schedule, trial_order.selection
    rows = row_file.first + np.arange(row_file.rows)
    positions = selection.inverse(row_file.quadrant, rows, epoch=0)
    names = np.array([stage.name for stage in schedule.stages])
    stops = np.array([stage.stop for stage in schedule.stages])
    asked = np.diff(schedule.cumulative(selection.edges), axis=0)[:, row_file.quadrant]
    block = np.searchsorted(selection.edges, positions, side="right") - 1
    return {
        "position": positions,
        "stage": names[np.searchsorted(stops, positions, side="right")],
        "weight": (asked / np.diff(selection.edges))[block],
        "step": positions // batch_size,
    }
