"""Writes the lines and the parts of a manifest, quadrant by quadrant.

Rows lie on disk by quadrant and come in training from anywhere. So each part of a quadrant is read
once, from its beginning to its end, and its lines go into buckets, the parts of the manifest
(`describe_rows`); each of these then takes its own from all of them (`write_part`). Memory holds
one part of a quadrant, or PART_ROWS lines.
"""

from collections.abc import Sequence
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
from frame_jax.run.buckets import read_bucket, write_buckets
from frame_jax.run.directory import atomic_path, file_sha256, write_json
from frame_jax.run.map_parts import Advance

PART_ROWS = 1 << 18
SPAN = {"doc_id": pa.large_string(), "start": pa.int32(), "stop": pa.int32(), "first": pa.int64()}
SPANS = pa.list_(pa.struct(SPAN))


def describe_rows(
    part: tuple[RowFile, Path],
    advance: Advance,
    *,
    config: RowsConfig,
    trial_order: TrialOrder,
    assignment: Path,
    shuffled: Sequence[Path],
) -> None:
    """Writes the lines of a row file to a file, in buckets of parts of the manifest.

    `shuffled` is the order of documents, with ids, from `shuffle_training_documents`; `assignment`
    is their table, for messages.
    """
    row_file, path = part
    special_tokens = trial_order.special_tokens
    documents = read_shuffled(shuffled, row_file.quadrant * config.parts + row_file.part)
    segments = pack_documents(documents, config, special_tokens)
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
            f"{row_file.path} does not hold the documents that {assignment} has for it: "
            "one of them has changed since; redo the partition phase"
        )
    spans = document_spans(documents, segments)
    write_lines(trial_order.selection, row_file, digests, spans, path)


def document_spans(documents: ShuffledDocuments, segments: PackedSegments) -> pa.ListArray:
    """The documents of each row and the text tokens of theirs that it holds: SPANS [rows]."""
    first = np.maximum(segments.start, 1) - 1  # BOS is before the text
    stop = np.minimum(segments.stop - 1, documents.tokens[segments.document])
    stop = np.maximum(stop, first)  # of a piece of BOS or EOS alone
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
    """Writes the lines of a part of a quadrant, of all epochs, in buckets."""
    rows = row_file.first + np.arange(row_file.rows)
    epochs = range(selection.schedule.epochs)
    row_index = np.concatenate(
        [selection.inverse(row_file.quadrant, rows, epoch) for epoch in epochs]
    )
    used = np.flatnonzero(row_index >= 0)  # -1 is of rows that are left out
    row_index, chosen = row_index[used], used % max(row_file.rows, 1)
    flat = pa.py_buffer(digests[chosen].tobytes())
    columns = {
        "row": row_index,
        "quadrant": np.full(len(used), row_file.quadrant, np.int32),
        "quadrant_row": rows[chosen],
        "digest": pa.Array.from_buffers(pa.binary(digest.BYTES), len(used), [None, flat]),
        "documents": documents.take(pa.array(chosen)),
        "bucket": row_index // PART_ROWS,
    }
    write_buckets(pa.table(columns), -(-len(selection) // PART_ROWS), path)


def write_part(
    part: tuple[int, Path],
    advance: Advance,
    *,
    trial_order: TrialOrder,
    batch_size: int,
    described: Sequence[Path],
) -> None:
    """Writes one part of the manifest, given by its index and path, from files of `describe_rows`
    and, beside it, its number of rows and its digests."""
    index, path = part
    table = read_bucket(described, index).sort_by("row")
    rows, digests = table["row"].to_numpy(), digests_of(table["digest"])
    schedule = trial_order.schedule
    stops = np.array([stage.stop for stage in schedule.stages])
    stages = np.searchsorted(stops, rows % schedule.epoch_rows, side="right")
    columns = {
        "row": table["row"],
        "step": pa.array(rows // batch_size),
        "stage": name_column(stages, [stage.name for stage in schedule.stages]),
        "quadrant": name_column(table["quadrant"].to_numpy(), schedule.quadrants),
        **{name: table[name] for name in ("quadrant_row", "digest", "documents")},
    }
    with atomic_path(path) as temporary:
        names = ["stage", "quadrant"]
        pq.write_table(pa.table(columns), temporary, use_dictionary=names, compression="zstd")
        sha256 = file_sha256(temporary)
    total = digest.digest_value(digest.ordered_row_digests(rows, digests).sum(0, dtype=np.uint64))
    counts = {"first_row": int(rows[0]), "rows": len(rows)}
    digests_found = {"digest": digest.format_digest(total), "sha256": sha256}
    write_json(path.with_suffix(".json"), counts | digests_found)


def name_column(indices: np.ndarray, names: Any) -> pa.DictionaryArray:
    """Makes a column of names from their indices."""
    return pa.DictionaryArray.from_arrays(pa.array(indices, pa.int32()), pa.array(list(names)))


def digests_of(column: pa.ChunkedArray) -> np.ndarray:
    """Reads the column `digest` of a manifest: uint8 [n, 16]."""
    array = column.combine_chunks()
    flat = np.frombuffer(array.buffers()[1], np.uint8)
    return flat[array.offset * digest.BYTES :].reshape(-1, digest.BYTES)[: len(array)]
