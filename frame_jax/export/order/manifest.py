"""A plan in, every row of the curriculum with its documents and digest out, in training order.

FOLDER/part-*.parquet hold, a line a row of the run: row (global index, from 0), step, stage,
quadrant, quadrant_row (numbered across the quadrant's parts), digest (of the row's ids, 16 bytes)
and documents, a list of doc_id, start, stop and first: the text tokens of the document from `first`
on are the row's ids from `start` to before `stop`. A document of which only BOS or EOS is in the
row has an empty span.

Rows lie on disk by quadrant and come in training from anywhere. So each part of a quadrant is read
once, from its beginning to its end, and its lines are sorted by where they go; each part of the
manifest then gathers its own from all of them. Both halves are shared out over processes, every
piece of either appears whole or not at all, and a run of the same command makes what is missing.
Memory holds one part of a quadrant, or PART_ROWS lines.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from frame_jax.config.parallel import ParallelConfig
from frame_jax.config.run import RunConfig
from frame_jax.curriculum import digest
from frame_jax.curriculum.selection import SelectionMap
from frame_jax.curriculum.stages import Schedule
from frame_jax.errors import UserError
from frame_jax.export.order.plan import Plan
from frame_jax.parallel import processes
from frame_jax.quadrants.packing import Pieces, best_fit, concat
from frame_jax.quadrants.rows import Documents, listed, training_documents
from frame_jax.records import TokenReader
from frame_jax.run import progress
from frame_jax.run.directory import (
    RunDirectory,
    atomic_path,
    list_parts,
    part_name,
    read_json,
    remove,
    remove_temporaries,
    write_json,
)
from frame_jax.run.ending import together
from frame_jax.run.markers import fingerprint_of
from frame_jax.run.storage import seen_by_all

PART_ROWS = 1 << 18
ROWS_AT_ONCE = 4096
BEGUN = "order.json"  # is there from the first moment on, and says of which order

NOTES = """# Rows of curriculum {curriculum}

`part-*.parquet`: the rows in the order in which training here reads them; `row` counts them from 0,
`step` is the optimizer step. `quadrant` and `quadrant_row` say where a row lies in the run
(`quadrants/<quadrant>/part-*.arrayrecord`, numbered across its parts). Of `documents`, the text
tokens of `doc_id` from `first` on are ids `start` to `stop` of the row (`stop` not included); the
rest of a row is BOS, EOS and padding.

`digest` is the first 16 bytes of SHA-256 of the row's ids (uint32, little-endian). `manifest.json`
has a digest for each part and for the whole: the sum modulo 2**128, over rows, of the first 16
bytes of SHA-256 of `row` (int64, little-endian) and `digest`, as a little-endian integer; it is
written in hexadecimal, lowest byte first. The trainer keeps the same sum: `order_digest` in its
`metrics.jsonl`.
"""

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


def add_process_options(options: argparse.ArgumentParser) -> None:
    """Adds those that several processes need to write a manifest together."""
    group = options.add_argument_group("processes that write a manifest together")
    group.add_argument("--distributed", action="store_true", help="they find each other as main's")
    group.add_argument("--coordinator", help="host:port of process 0")
    group.add_argument("--processes", type=int, help="their number")
    group.add_argument("--process", type=int, help="index of this one")


def join(options: argparse.Namespace) -> None:
    """Joins the other processes, if there are any."""
    fields = ("distributed", "coordinator", "processes", "process")
    processes.start(ParallelConfig(**{name: getattr(options, name) for name in fields}))


@dataclass(frozen=True)
class Unit:
    """One part of a quadrant's rows.

    Attributes:
        cell: Index of the quadrant.
        name: Its name.
        part: Index of the part.
        path: Its file.
        first: Rows of the quadrant before it.
        rows: Rows in it.
    """

    cell: int
    name: str
    part: int
    path: Path
    first: int
    rows: int


def units_of(directory: RunDirectory, schedule: Schedule) -> list[Unit]:
    """All parts of all quadrants, in order.

    Raises:
        UserError: if they do not hold the rows that the schedule was made for.
    """
    units = []
    for cell, name in enumerate(schedule.cells):
        first = 0
        for part, path in enumerate(list_parts(directory.quadrants / name, ".arrayrecord")):
            with contextlib.closing(TokenReader(path)) as reader:
                units.append(Unit(cell, name, part, path, first, len(reader)))
            first += units[-1].rows
        if first != schedule.available[cell]:
            raise UserError(
                f"{directory.quadrants / name} holds {first:,} rows, and the order is of "
                f"{schedule.available[cell]:,}: a part is missing or has changed; redo the "
                "partition phase"
            )
    return units


def header(config: RunConfig, directory: RunDirectory, plan: Plan) -> dict[str, Any]:
    """What tells a manifest from that of another order or of other rows."""
    schedule, batch = plan.schedule, config.pretrain.training.batch_rows
    made = directory.marker("partition").exists()
    return {
        "curriculum": plan.curriculum,
        "seed": plan.selection.seed,
        "shuffle": plan.selection.shuffle,
        "schedule": schedule.fingerprint,
        "rows": schedule.rows,
        "steps": schedule.steps(batch),
        "batch_rows": batch,
        "sequence_length": plan.sequence_length,
        "part_rows": PART_ROWS,
        "partition": fingerprint_of(directory, "partition") if made else None,
    }


def write_manifest(config: RunConfig, directory: RunDirectory, plan: Plan, folder: Path) -> None:
    """Writes FOLDER/part-*.parquet, what each holds beside it, and FOLDER/manifest.json at the end.

    Called on every process.

    Raises:
        UserError: if `folder` holds something else, some process sees another folder or another
            run, or the rows are not those of the assignment.
    """
    expected = header(config, directory, plan)
    seen_by_all(
        folder,
        lambda: make_folder(folder, expected),
        "--out",
        "All processes that write a manifest need one and the same folder, on a file system that "
        "all hosts share: name it with --out",
    )
    if processes.is_first():
        write_json(folder / BEGUN, expected)
        remove_temporaries(folder)
        (folder / "NOTES.md").write_text(NOTES.format(curriculum=plan.curriculum), "utf-8")
    processes.barrier("the manifest is begun")
    together(lambda: require_same_order(directory, read_json(folder / BEGUN), expected))
    count = -(-plan.schedule.rows // PART_ROWS)
    paths = [folder / part_name(index, count, ".parquet") for index in range(count)]
    missing = [i for i, path in enumerate(paths) if not path.with_suffix(".json").exists()]
    processes.barrier("parts of the manifest listed")
    show, scratch = processes.is_first(), folder / ".rows"
    if missing:
        units = units_of(directory, plan.schedule)
        gathered = [scratch / f"{unit.name}-{unit.part:05d}.arrow" for unit in units]
        left = [pair for pair in zip(units, gathered, strict=True) if not pair[1].exists()]
        processes.barrier("rows of the manifest listed")
        gather(config, directory, plan, processes.mine(left), scratch)
        processes.barrier("rows of the manifest read")
        with (
            progress.bar("manifest", len(missing), "parts", show=show) as update,
            opened(gathered) as sources,
        ):
            for index in processes.mine(missing):
                write_part(plan, expected["batch_rows"], units, sources, index, paths[index])
                update(1, paths[index].name)
        processes.barrier("parts of the manifest written")
    if processes.is_first():
        remove(scratch)
        parts = [{"file": p.name, **read_json(p.with_suffix(".json"))} for p in paths]
        whole = sum(digest.value_of(part["digest"]) for part in parts) % digest.MODULUS
        write_json(
            folder / "manifest.json", {**expected, "digest": digest.text(whole), "parts": parts}
        )
    processes.barrier("the manifest is written")


def make_folder(folder: Path, expected: dict[str, Any]) -> None:
    """Makes the folder of a manifest, or finds it as an earlier start has left it.

    Raises:
        UserError: if it holds something else.
    """
    if holds_other(folder, expected):
        raise UserError(
            f"{folder} is there already, and is no manifest of this order: choose another --out, "
            "or remove it"
        )
    folder.mkdir(parents=True, exist_ok=True)


def require_same_order(
    directory: RunDirectory, begun: dict[str, Any], expected: dict[str, Any]
) -> None:
    """Refuses a process whose run has another order than that of process 0.

    Raises:
        UserError: naming its run directory.
    """
    if begun != expected:
        keys = [key for key in begun if begun[key] != expected.get(key)]
        raise UserError(
            f"{directory.root.absolute()} is not the run that process 0 writes a manifest of: "
            f"they differ in {', '.join(keys)}. Give every process one and the same run directory"
        )


def holds_other(folder: Path, expected: dict[str, Any]) -> bool:
    """Whether there is something in `folder` that is not the beginning of this manifest."""
    if (folder / BEGUN).exists():
        return read_json(folder / BEGUN) != expected
    return folder.exists() and any(not p.name.startswith(".tmp-") for p in folder.iterdir())


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


def read_rows(unit: Unit) -> Iterator[tuple[int, np.ndarray]]:
    """The rows of a part from its beginning: the index of the first, and uint32 [n, ids]."""
    with contextlib.closing(TokenReader(unit.path)) as reader:
        for first in range(0, unit.rows, ROWS_AT_ONCE):
            yield first, np.stack(reader.read(range(first, min(first + ROWS_AT_ONCE, unit.rows))))


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
