"""Parts of quadrants in, parts of a manifest out.

Rows lie on disk by quadrant and come in training from anywhere. So each part of a quadrant is read
once, from its beginning to its end, and its lines are sorted by where they go (`gather`); each part
of the manifest then takes its own from all of them (`write_part`). Memory holds one part of a
quadrant, or PART_ROWS lines.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from frame_jax.config.run import RunConfig
from frame_jax.curriculum import digest
from frame_jax.curriculum.selection import SelectionMap
from frame_jax.errors import UserError
from frame_jax.export.order.plan import Plan
from frame_jax.export.order.quadrant_rows import Unit, read_rows
from frame_jax.parallel import processes
from frame_jax.quadrants.packing import Pieces, best_fit, concat
from frame_jax.quadrants.rows import Documents, listed, training_documents
from frame_jax.run import progress
from frame_jax.run.directory import RunDirectory, atomic_path, read_json, write_json

PART_ROWS = 1 << 18
SPANS = pa.list_(
    pa.struct(
        [
            ("doc_id", pa.large_string()),
            ("start", pa.int32()),
            ("stop", pa.int32()),
            ("first", pa.int64()),
        ]
    )
)
LINES = pa.schema(
    [
        ("row", pa.int64()),
        ("quadrant_row", pa.int64()),
        ("digest", pa.binary(digest.BYTES)),
        ("documents", SPANS),
    ]
)


def gather(
    config: RunConfig,
    directory: RunDirectory,
    plan: Plan,
    left: list[tuple[Unit, Path]],
    scratch: Path,
) -> None:
    """Writes a file for each part of a quadrant: batch i has its lines of part i, in order."""
    special = read_json(directory.tokenizer.with_name("special_tokens.json"))
    rows_config, show = config.partition.rows, processes.is_first()
    framing = 1 if special["bos_id"] == special["eos_id"] else 2
    pack = concat if rows_config.packing == "concat" else best_fit
    cells = plan.schedule.cells
    with (
        listed(
            [directory.assignment],
            training_documents(cells),
            [(unit.name, unit.part) for unit, _ in left],
            rows_config.parts,
            config.seed,
            scratch,
            doc_ids=True,
        ) as select,
        progress.bar("rows", sum(unit.rows for unit, _ in left), "rows", show=show) as update,
    ):
        for unit, path in left:
            documents = select(unit.name, unit.part)
            pieces = pack(documents.tokens + framing, rows_config.sequence_length + 1)
            digests = np.empty((unit.rows, digest.BYTES), np.uint8)
            # What the rows' documents were is not kept with them, so it is found out again.
            led = (pieces.start == 0) | (pieces.lead > 0)  # pieces that BOS begins, or leads
            begins, begin_rows = pieces.place[led] - pieces.lead, pieces.row[led]
            agree = pieces.rows == unit.rows
            for first, rows in read_rows(unit) if agree else ():
                digests[first : first + len(rows)] = digest.of_rows(rows)
                lo, hi = np.searchsorted(begin_rows, [first, first + len(rows)])
                ids = rows[begin_rows[lo:hi] - first, begins[lo:hi]]
                agree &= bool((ids == special["bos_id"]).all())
                update(len(rows), path.stem)
            if not agree:
                raise UserError(
                    f"{unit.path} does not hold the documents that {directory.assignment} has for "
                    "it: one of them has changed since; redo the partition phase"
                )
            write_lines(plan.selection, unit, digests, spans(documents, pieces), path)


def spans(documents: Documents, pieces: Pieces) -> pa.ListArray:
    """The documents of each row and where their text tokens lie in it: SPANS [rows]."""
    first, stop = pieces.text(documents.tokens)
    start = pieces.place + first + 1 - pieces.start  # a framed document has BOS before its text
    assert documents.doc_id is not None
    columns = [
        documents.doc_id.cast(pa.large_string()).combine_chunks().take(pa.array(pieces.document)),
        pa.array(start, pa.int32()),
        pa.array(start + stop - first, pa.int32()),
        pa.array(first),
    ]
    offsets = np.searchsorted(pieces.row, np.arange(pieces.rows + 1))
    fields = list(SPANS.value_type)
    return pa.ListArray.from_arrays(
        pa.array(offsets, pa.int32()), pa.StructArray.from_arrays(columns, fields=fields)
    )


def write_lines(
    selection: SelectionMap, unit: Unit, digests: np.ndarray, documents: pa.ListArray, path: Path
) -> None:
    """Writes the lines of a part of a quadrant, of all epochs, a batch for each part."""
    rows = unit.first + np.arange(unit.rows)
    epochs = range(selection.schedule.epochs)
    place = np.concatenate([selection.places(unit.cell, rows, epoch) for epoch in epochs])
    order = np.argsort(place)
    order = order[np.searchsorted(place[order], 0) :]  # -1 is of rows that are left out
    place, own = place[order], order % max(unit.rows, 1)
    parts = -(-len(selection) // PART_ROWS)
    edges = np.searchsorted(place, np.arange(parts + 1) * PART_ROWS)
    with atomic_path(path) as temporary, pa.ipc.new_file(temporary, LINES) as writer:
        for lo, hi in itertools.pairwise(edges):
            chosen = own[lo:hi]
            flat = pa.py_buffer(digests[chosen].tobytes())
            columns = [
                pa.array(place[lo:hi]),
                pa.array(rows[chosen]),
                pa.Array.from_buffers(LINES.field("digest").type, len(chosen), [None, flat]),
                documents.take(pa.array(chosen)),
            ]
            writer.write_batch(pa.record_batch(columns, schema=LINES))


@contextlib.contextmanager
def opened(paths: list[Path]) -> Iterator[list[pa.ipc.RecordBatchFileReader]]:
    """The files that `write_lines` wrote."""
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(pa.OSFile(str(path))) for path in paths]
        yield [stack.enter_context(pa.ipc.open_file(file)) for file in files]


def write_part(
    plan: Plan,
    batch_rows: int,
    units: list[Unit],
    sources: list[pa.ipc.RecordBatchFileReader],
    index: int,
    path: Path,
) -> None:
    """Writes one part of the manifest, and beside it how many rows it has and its digests."""
    batches = [source.get_batch(index) for source in sources]
    table = pa.Table.from_batches(batches, LINES).combine_chunks()
    cells = np.repeat([unit.cell for unit in units], [len(batch) for batch in batches])
    order = np.argsort(table["row"].to_numpy())
    table, cells = table.take(pa.array(order)), cells[order]
    rows, digests = table["row"].to_numpy(), digests_of(table["digest"])
    schedule = plan.schedule
    stops = np.array([stage.stop for stage in schedule.stages])
    stages = np.searchsorted(stops, rows % schedule.epoch_rows, side="right")
    columns = {
        "row": table["row"],
        "step": pa.array(rows // batch_rows),
        "stage": named(stages, [stage.name for stage in schedule.stages]),
        "quadrant": named(cells, schedule.cells),
        "quadrant_row": table["quadrant_row"],
        "digest": table["digest"],
        "documents": table["documents"],
    }
    with atomic_path(path) as temporary:
        names = ["stage", "quadrant"]
        pq.write_table(pa.table(columns), temporary, use_dictionary=names, compression="zstd")
        with temporary.open("rb") as file:
            sha256 = hashlib.file_digest(file, hashlib.sha256).hexdigest()
    total = digest.number(digest.of_places(rows, digests).sum(0, dtype=np.uint64))
    described = {"first_row": int(rows[0]), "rows": len(rows), "digest": digest.text(total)}
    write_json(path.with_suffix(".json"), {**described, "sha256": sha256})


def named(indices: np.ndarray, names: Any) -> pa.DictionaryArray:
    """A column of names, by index."""
    return pa.DictionaryArray.from_arrays(pa.array(indices, pa.int32()), pa.array(list(names)))


def digests_of(column: pa.ChunkedArray) -> np.ndarray:
    """The column `digest` of a manifest: uint8 [n, 16]."""
    array = column.combine_chunks()
    flat = np.frombuffer(array.buffers()[1], np.uint8)
    return flat[array.offset * digest.BYTES :].reshape(-1, digest.BYTES)[: len(array)]
