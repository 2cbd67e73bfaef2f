"""Writes the data that another trainer reads: documents by quadrant, or rows in training order.

Kinds of text hold the training documents: DIR/<quadrant>/00000.jsonl (or .parquet, .arrayrecord)
with doc_id, text, source, domain, language, tokens, ppl, pd, in the shuffled order in which the
run's own rows hold them, and as often. ArrayRecord files hold tf.train.Example messages with the
one feature `text`, which MaxText reads.

Kinds of rows hold the training rows in the order of the curriculum, a folder a stage and every row
of an epoch once: DIR/01/00000.npy is uint32 ids without a header, which OLMo-core memory-maps;
DIR/01/shard.00000.mds and index.json are what MosaicML streaming reads.
"""

import contextlib
import functools
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from array_record.python.array_record_module import ArrayRecordWriter

from frame_jax import sql
from frame_jax.config.run import RunConfig
from frame_jax.config.workers import WorkersConfig
from frame_jax.corpus.tokenizer import load_tokenizer
from frame_jax.curriculum.loader import QuadrantRows
from frame_jax.export.order.trial_order import TrialOrder, row_stages
from frame_jax.quadrants.rows import copies_sql, position_sql
from frame_jax.records import TOKEN_DTYPE, OpenFiles
from frame_jax.run import progress
from frame_jax.run.directory import RunDirectory, list_parts, write_json
from frame_jax.run.map_parts import Advance, map_parts

TEXT = {"jsonl": ".jsonl", "parquet": ".parquet", "arrayrecord": ".arrayrecord"}
ROWS = {"npy": ".npy", "mds": ".mds"}
KINDS = TEXT | ROWS
COLUMNS = ("doc_id", "source", "domain", "language", "tokens", "ppl", "pd")
DOCUMENTS_AT_ONCE = 2048
SHARD_BYTES = 256_000_000  # of text in a file, about
ROW_BYTES = 1 << 26  # of rows in a file; MosaicML's own limit, whole shards are fetched

DocumentRow = dict[str, Any]
Append = Callable[[list[DocumentRow]], None]


def write_shards(
    config: RunConfig, directory: RunDirectory, trial_order: TrialOrder, kind: str, folder: Path
) -> None:
    """Writes the files under `folder`; memory does not grow with the corpus."""
    if kind in ROWS:
        write_rows(config.workers, directory, trial_order, kind, folder)
    else:
        write_documents(config, directory, trial_order, kind, folder)


def write_rows(
    workers: WorkersConfig,
    directory: RunDirectory,
    trial_order: TrialOrder,
    kind: str,
    folder: Path,
) -> None:
    """Writes the rows of every stage, in order."""
    ids, beginning = trial_order.sequence_length + 1, "shard." if kind == "mds" else ""
    at_once = max(1, ROW_BYTES // (TOKEN_DTYPE.itemsize * ids))
    shards: dict[str, tuple[str, range]] = {}
    for stage, start, stop in row_stages(trial_order):
        (folder / stage).mkdir(parents=True)
        for number, first in enumerate(range(start, stop, at_once)):
            name = f"{stage}/{beginning}{number:05d}{KINDS[kind]}"
            shards[name] = name, range(first, min(first + at_once, stop))
    quadrants = [directory.quadrants / name for name in trial_order.schedule.quadrants]
    files = QuadrantRows([list_parts(quadrant, ".arrayrecord") for quadrant in quadrants])
    map_parts(
        functools.partial(write_row_shard, files=files, trial_order=trial_order, folder=folder),
        shards,
        workers,
        name="write rows",
        unit="rows",
        work_bytes=TOKEN_DTYPE.itemsize * ids * trial_order.schedule.rows,
    )
    if kind == "mds":
        for path, own in itertools.groupby(shards.values(), lambda shard: Path(shard[0]).parent):
            entries = [mds_entry(folder / name, len(rows), ids) for name, rows in own]
            write_json(folder / path / "index.json", {"version": 2, "shards": entries})


def write_row_shard(
    shard: tuple[str, range],
    advance: Advance,
    *,
    files: QuadrantRows,
    trial_order: TrialOrder,
    folder: Path,
) -> None:
    """Writes a file of rows, given by its name and its positions in the order."""
    name, positions = shard
    rows = read_rows(files, trial_order, positions.start, positions.stop)
    if name.endswith(ROWS["mds"]):
        write_mds(rows, folder / name)
    else:
        (folder / name).write_bytes(rows.tobytes())
    advance(len(rows))


def read_rows(files: QuadrantRows, trial_order: TrialOrder, start: int, stop: int) -> np.ndarray:
    """Reads rows [start, stop) of the order: uint32 [stop - start, sequence_length + 1]."""
    rows = np.empty((stop - start, trial_order.sequence_length + 1), TOKEN_DTYPE)
    files.read_into(
        rows, np.arange(len(rows)), *trial_order.selection.select(np.arange(start, stop))
    )
    return rows


def mds_settings(ids: int) -> dict[str, Any]:
    """What a shard of MosaicML's MDS format says of its samples, arrays of `ids` tokens."""
    return {
        "version": 2,
        "format": "mds",
        "compression": None,
        "hashes": [],
        "size_limit": ROW_BYTES,
        "column_names": ["tokens"],
        "column_encodings": [f"ndarray:int32:{ids}"],
        "column_sizes": [4 * ids],
    }


def mds_entry(path: Path, samples: int, ids: int) -> dict[str, Any]:
    """The entry of a shard in index.json."""
    file = {"basename": path.name, "bytes": path.stat().st_size, "hashes": {}}
    return mds_settings(ids) | {"samples": samples, "raw_data": file, "zip_data": None}


def write_mds(rows: np.ndarray, path: Path) -> None:
    """Writes a shard of MosaicML's MDS format.

    The file: number of samples; where each begins, and the end; the settings as JSON; the samples.
    Each sample is one column, `tokens`, an array of fixed shape without a header.
    """
    header = json.dumps(mds_settings(rows.shape[1]), sort_keys=True).encode()
    before = 4 * (len(rows) + 2) + len(header)
    begins = before + 4 * rows.shape[1] * np.arange(len(rows) + 1)
    numbers = np.concatenate([[len(rows)], begins]).astype("<u4")
    path.write_bytes(numbers.tobytes() + header + rows.astype("<i4").tobytes())


def write_documents(
    config: RunConfig, directory: RunDirectory, trial_order: TrialOrder, kind: str, folder: Path
) -> None:
    """Writes the documents of every quadrant."""
    parts = config.partition.rows.parts
    query = f"""
        SELECT {", ".join(COLUMNS)}, part, row
        FROM ({copies_sql(sql.parquet_table(directory.assignment), parts)})
        WHERE split = 'train' AND quadrant = $quadrant
        ORDER BY row_part, {position_sql(parts)}, doc_id
        """
    with sql.open_database(folder) as connection:
        for quadrant in trial_order.schedule.quadrants:
            found = connection.sql(query, params={"quadrant": quadrant, "seed": config.seed})
            (folder / quadrant).mkdir(parents=True)
            with (
                progress.progress_bar(f"write {quadrant}", None, "documents") as update,
                contextlib.ExitStack() as shard,
            ):
                number, filled = 0, SHARD_BYTES
                for batch in read_documents(directory, found.fetch_arrow_reader(DOCUMENTS_AT_ONCE)):
                    if filled >= SHARD_BYTES:
                        shard.close()
                        path = folder / quadrant / f"{number:05d}{KINDS[kind]}"
                        append = shard.enter_context(WRITERS[kind](path))
                        number, filled = number + 1, 0
                    append(batch)
                    filled += sum(len(document["text"].encode()) for document in batch)
                    update(len(batch))


def read_documents(
    directory: RunDirectory, batches: pa.RecordBatchReader
) -> Iterator[list[DocumentRow]]:
    """Yields the documents in `batches` (part and row of each), with their texts."""
    tokenizer, files = load_tokenizer(directory), OpenFiles()
    token_files = list_parts(directory.tokens, ".arrayrecord")
    for batch in batches:
        parts, rows = (np.asarray(batch.column(name)) for name in ("part", "row"))
        texts = map(tokenizer.decode, files.read(token_files, parts, rows))
        documents = batch.select(COLUMNS).to_pylist()
        yield [{**document, "text": t} for document, t in zip(documents, texts, strict=True)]


@contextlib.contextmanager
def jsonl_writer(path: Path) -> Iterator[Append]:
    """Opens a writer of JSON lines."""
    with path.open("w", encoding="utf-8") as file:
        yield lambda documents: file.writelines(
            json.dumps(document, ensure_ascii=False) + "\n" for document in documents
        )


@contextlib.contextmanager
def parquet_writer(path: Path) -> Iterator[Append]:
    """Opens a writer of Parquet."""
    types = {"tokens": pa.int64(), "ppl": pa.float64(), "pd": pa.float64()}
    schema = pa.schema([(name, types.get(name, pa.string())) for name in (*COLUMNS, "text")])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        yield lambda documents: writer.write_table(pa.Table.from_pylist(documents, schema))


@contextlib.contextmanager
def arrayrecord_writer(path: Path) -> Iterator[Append]:
    """Opens a writer of ArrayRecord files of tf.train.Example."""
    from tensorflow_datasets.proto import tf_example_pb2

    with contextlib.closing(ArrayRecordWriter(str(path), "group_size:1,zstd:1")) as writer:

        def append(documents: list[DocumentRow]) -> None:
            for document in documents:
                example = tf_example_pb2.Example()
                example.features.feature["text"].bytes_list.value.append(document["text"].encode())
                writer.write(example.SerializeToString())

        yield append


WRITERS = {"jsonl": jsonl_writer, "parquet": parquet_writer, "arrayrecord": arrayrecord_writer}
