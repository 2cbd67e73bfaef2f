"""Writes the lines and the parts of a manifest, quadrant by quadrant.

Rows lie on disk by quadrant and come in training from anywhere. So each part of a quadrant is read
once, from its beginning to its end, and its lines are sorted by where they go
(`LinesWriter`); each part of the manifest then takes its own from all of them
(`write_part`). Memory holds one part of a quadrant, or PART_ROWS lines.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from frame_jax.config.quadrants import RowsConfig
from frame_jax.curriculum import digest
from frame_jax.curriculum.selection import SelectionMap
from frame_jax.errors import UserError
from frame_jax.export.order.trial_order import RowFile, TrialOrder, read_rows
from frame_jax.quadrants.rows import (
    PackedSegments,
    ShuffledDocuments,
    pack_documents,
    read_shuffled,
)
from frame_jax.run.directory import atomic_path, file_sha256, write_json
from frame_jax.run.map_parts import Advance

PART_ROWS = 1 << 18
SPAN = {"doc_id": pa.large_string(), "start": pa.int32(), "stop": pa.int32(), "first": pa.int64()}
SPANS = pa.list_(pa.struct(SPAN))
LINES = pa.schema(
    {
        "row": pa.int64(),
        "quadrant_row": pa.int64(),
        "digest": pa.binary(digest.BYTES),
        "documents": SPANS,
    }
)


@dataclass(frozen=True)
class LinesWriter:
    """Sorts the lines of a row file into one batch for each part of the manifest.

    Attributes:
        assignment: The table of documents, for messages.
        shuffled: Their order, with ids, from `shuffle_training_documents`.
    """

    rows: RowsConfig
    trial_order: TrialOrder
    assignment: Path
    shuffled: list[Path]

    def __call__(self, part: tuple[RowFile, Path], advance: Advance) -> None:
        row_file, path = part
        special_tokens = self.trial_order.special_tokens
        number = row_file.quadrant * self.rows.parts + row_file.part
        documents = read_shuffled(self.shuffled, number)
        segments = pack_documents(documents, self.rows, special_tokens)
        digests = np.empty((row_file.rows, digest.BYTES), np.uint8)
        # What the rows' documents were is not kept with them, so it is found out again.
        led = (segments.start == 0) | (segments.num_bos > 0)  # pieces that BOS begins, or leads
        begins, begin_rows = segments.offset[led] - segments.num_bos, segments.row[led]
        agree = segments.rows == row_file.rows
        for first, rows in read_rows(row_file) if agree else ():
            digests[first : first + len(rows)] = digest.row_digests(rows)
            lo, hi = np.searchsorted(begin_rows, [first, first + len(rows)])
            ids = rows[begin_rows[lo:hi] - first, begins[lo:hi]]
            agree &= bool((ids == special_tokens.bos_id).all())
            advance(len(rows))
        if not agree:
            raise UserError(
                f"{row_file.path} does not hold the documents that {self.assignment} has for it: "
                "one of them has changed since; redo the partition phase"
            )
        spans = document_spans(documents, segments)
        write_lines(self.trial_order.selection, row_file, digests, spans, path)


def document_spans(documents: ShuffledDocuments, segments: PackedSegments) -> pa.ListArray:
    """The documents of each row and the text tokens of theirs that it holds: SPANS [rows]."""
    first, stop = segments.text_spans(documents.tokens)
    start = segments.offset + first + 1 - segments.start  # BOS stands before a document's text
    assert documents.doc_id is not None
    columns = [
        documents.doc_id.cast(pa.large_string()).combine_chunks().take(pa.array(segments.document)),
        pa.array(start, pa.int32()),
        pa.array(start + stop - first, pa.int32()),
        pa.array(first),
    ]
    offsets = np.searchsorted(segments.row, np.arange(segments.rows + 1))
    fields = list(SPANS.value_type)
    return pa.ListArray.from_arrays(
        pa.array(offsets, pa.int32()), pa.StructArray.from_arrays(columns, fields=fields)
    )


def write_lines(
    selection: SelectionMap,
    row_file: RowFile,
    digests: np.ndarray,
    documents: pa.ListArray,
    path: Path,
) -> None:
    """Writes the lines of a part of a quadrant, of all epochs, one batch for each part."""
    rows = row_file.first + np.arange(row_file.rows)
    epochs = range(selection.schedule.epochs)
    row_index = np.concatenate(
        [selection.inverse(row_file.quadrant, rows, epoch) for epoch in epochs]
    )
    order = np.argsort(row_index)
    order = order[np.searchsorted(row_index[order], 0) :]  # -1 is of rows that are left out
    row_index, row_in_file = row_index[order], order % max(row_file.rows, 1)
    parts = -(-len(selection) // PART_ROWS)
    edges = np.searchsorted(row_index, np.arange(parts + 1) * PART_ROWS)
    with atomic_path(path) as temporary, pa.ipc.new_file(temporary, LINES) as writer:
        for lo, hi in itertools.pairwise(edges):
            chosen = row_in_file[lo:hi]
            flat = pa.py_buffer(digests[chosen].tobytes())
            columns = [
                pa.array(row_index[lo:hi]),
                pa.array(rows[chosen]),
                pa.Array.from_buffers(LINES.field("digest").type, len(chosen), [None, flat]),
                documents.take(pa.array(chosen)),
            ]
            writer.write_batch(pa.record_batch(columns, schema=LINES))


def write_part(
    trial_order: TrialOrder,
    batch_size: int,
    row_files: list[RowFile],
    sources: list[pa.ipc.RecordBatchFileReader],
    index: int,
    path: Path,
) -> None:
    """Writes one part of the manifest and, beside it, its number of rows and its digests."""
    batches = [source.get_batch(index) for source in sources]
    table = pa.Table.from_batches(batches, LINES).combine_chunks()
    quadrants = np.repeat(
        [row_file.quadrant for row_file in row_files], [len(batch) for batch in batches]
    )
    order = np.argsort(table["row"].to_numpy())
    table, quadrants = table.take(pa.array(order)), quadrants[order]
    rows, digests = table["row"].to_numpy(), digests_of(table["digest"])
    schedule = trial_order.schedule
    stops = np.array([stage.stop for stage in schedule.stages])
    stages = np.searchsorted(stops, rows % schedule.epoch_rows, side="right")
    columns = {
        "row": table["row"],
        "step": pa.array(rows // batch_size),
        "stage": name_column(stages, [stage.name for stage in schedule.stages]),
        "quadrant": name_column(quadrants, schedule.quadrants),
        **{name: table[name] for name in ("quadrant_row", "digest", "documents")},
    }
    with atomic_path(path) as temporary:
        names = ["stage", "quadrant"]
        pq.write_table(pa.table(columns), temporary, use_dictionary=names, compression="zstd")
        sha256 = file_sha256(temporary)
    total = digest.digest_value(digest.ordered_row_digests(rows, digests).sum(0, dtype=np.uint64))
    described: dict[str, Any] = {"first_row": int(rows[0]), "rows": len(rows)}
    described |= {"digest": digest.format_digest(total), "sha256": sha256}
    write_json(path.with_suffix(".json"), described)


def name_column(indices: np.ndarray, names: Any) -> pa.DictionaryArray:
    """Makes a column of names from their indices."""
    return pa.DictionaryArray.from_arrays(pa.array(indices, pa.int32()), pa.array(list(names)))


def digests_of(column: pa.ChunkedArray) -> np.ndarray:
    """Reads the column `digest` of a manifest: uint8 [n, 16]."""
    array = column.combine_chunks()
    flat = np.frombuffer(array.buffers()[1], np.uint8)
    return flat[array.offset * digest.BYTES :].reshape(-1, digest.BYTES)[: len(array)]
