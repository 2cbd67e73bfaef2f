"""The tokenize phase: the corpus in, token parts with a table of their documents out."""

import contextlib
import functools
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from frame_jax.config.corpus import SourceConfig
from frame_jax.config.run import RunConfig
from frame_jax.corpus.documents import Document, Rejection, assign_split
from frame_jax.corpus.inventory import expected_signature, keep_inventory
from frame_jax.corpus.parts import Chunk, plan_parts
from frame_jax.corpus.rejected import (
    LOST,
    METADATA,
    reject_duplicates,
    rejection_line,
    require_few_rejected,
    summarise,
    summary_messages,
)
from frame_jax.corpus.sources.inputs import Input, other_files
from frame_jax.corpus.tokenizer import Tokenizer, load_tokenizer
from frame_jax.corpus.tokenizer_training import prepare_tokenizer
from frame_jax.packing import batch_by_size
from frame_jax.parallel import processes
from frame_jax.records import write_tokens
from frame_jax.run.directory import RunDirectory, atomic_path, part_name, remove_temporaries
from frame_jax.run.map_parts import map_parts, missing
from frame_jax.run.program_exit import run_on_first_process
from frame_jax.run.special_tokens import read_special_tokens

# `file` and `line` say where the record was read: which of several with one id came first.
COLUMNS = pa.schema(
    [
        ("doc_id", pa.string()),
        ("part", pa.int32()),
        ("row", pa.int64()),
        ("split", pa.string()),
        ("source", pa.string()),
        ("domain", pa.string()),
        ("language", pa.string()),
        ("tokens", pa.int64()),
        ("bytes", pa.int64()),
        ("file", pa.string()),
        ("line", pa.int64()),
    ]
)
GROUP_ROWS = 1 << 16
BATCH_BYTES = 2_000_000
SHOWN = 3  # files in a message

DocumentRow = tuple[Any, ...]  # of a value for each of COLUMNS


def tokenize_corpus(config: RunConfig, directory: RunDirectory) -> dict[str, Any]:
    """Writes RUN/tokenizer and RUN/tokens; parts that exist are left alone.

    Returns:
        Documents, tokens and bytes by split, rejected records and why, fields that no record has,
        parts, and what was decided about the tokenizer; the same on every process.

    Raises:
        UserError: for a source or tokenizer that cannot be used, too many unusable records, or a
            corpus that has changed meanwhile.
    """
    if processes.is_first():
        for folder in (directory.tokens, directory.tokenizer.parent):
            remove_temporaries(folder)  # of a run that was killed; no process writes parts yet
        keep_inventory(config, directory)
        prepare_tokenizer(config, directory)
    processes.barrier("tokenizer")
    messages = read_special_tokens(directory).notes
    processes.print_notes(f"tokenizer: {line}" for line in messages)
    parts = plan_parts(config.corpus)
    processes.print_notes(ignored_inputs_message(parts))
    tables = [_part_path(directory, number, config, ".parquet") for number in range(len(parts))]
    map_parts(
        PartWriter(config),
        {tables[number].stem: (number, parts[number]) for number in missing(tables)},
        config.workers,
        name="tokenize",
        unit="documents",
        work_bytes=sum(item.size for item in {chunk.item for part in parts for chunk in part}),
    )
    # Of a file that grew meanwhile, some of what came late may be in the parts.
    run_on_first_process(lambda: expected_signature(config, directory))
    reject_duplicates(directory, config.workers)
    summary = run_on_first_process(lambda: summarise(directory, config.corpus))
    require_few_rejected(summary, config.corpus, directory)
    processes.print_notes(summary_messages(summary, directory))
    return {**summary, "tokenizer": messages}


@dataclass(frozen=True)
class PartWriter:
    """Tokenises parts of the corpus, each given by its number and its chunks, by one tokenizer."""

    config: RunConfig

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(RunDirectory(self.config.run_directory))

    def __call__(self, part: tuple[int, list[Chunk]], advance: Callable[[int], None]) -> None:
        number, chunks = part
        directory = RunDirectory(self.config.run_directory)
        write_part(chunks, number, self.config, self.tokenizer, directory, advance)


def write_part(
    chunks: Iterable[Chunk],
    part: int,
    config: RunConfig,
    tokenizer: Tokenizer,
    directory: RunDirectory,
    advance: Callable[[int], None],
) -> None:
    """Tokenises the documents of one part.

    Its Parquet file appears last and says that the part is whole. `chunks` are what the part of
    this index is made of; `advance` is called with the number of documents done since the last
    call.
    """
    counts: Counter[str] = Counter()
    shares = (config.corpus.held_out_fraction, config.corpus.reference_fraction)
    with (
        _write_rows(_part_path(directory, part, config, ".parquet"), counts) as add,
        atomic_path(_part_path(directory, part, config, ".rejected.jsonl")) as temporary,
        temporary.open("w", encoding="utf-8") as rejected,
        write_tokens(_part_path(directory, part, config, ".arrayrecord")) as records,
    ):
        usable = _documents(chunks, config.corpus.sources, rejected, counts)
        for batch in batch_by_size(usable, itemgetter(1), BATCH_BYTES):
            documents = [document for document, _ in batch]
            texts = [document.text for document in documents]
            encoded = tokenizer.encode_arrays(texts)
            losses: list[str | None] = [None] * len(texts)  # of one that was trained here
            if config.tokenizer.path is not None:
                losses = tokenizer.losses(texts, encoded)
            for (document, size), ids, loss in zip(batch, encoded, losses, strict=True):
                if len(ids) == 0 or loss is not None:
                    reason = f"{LOST}: {loss}" if len(ids) else "the tokenizer makes no token of it"
                    rejection = Rejection(document.file, document.line, reason)
                    rejected.write(rejection_line(rejection))
                    continue
                split = assign_split(document.id, config.seed, *shares)
                labels = document.source, document.domain, document.language
                origin = document.file, document.line
                add((document.id, part, records.records, split, *labels, len(ids), size, *origin))
                records.append(ids)
            advance(len(documents))


def _documents(
    chunks: Iterable[Chunk],
    sources: list[SourceConfig],
    rejected: TextIO,
    counts: Counter[str],
) -> Iterator[tuple[Document, int]]:
    """Yields documents with their UTF-8 bytes; lists rejections, and counts the other records of
    each source and the fields that they lack."""
    for chunk in chunks:
        number = sources.index(chunk.source)
        for record in chunk.read_records():
            if isinstance(record, Rejection):
                rejected.write(rejection_line(record))
                continue
            counts.update(f"{number} {name}" for name in ("records", *record.absent))
            yield record, len(record.text.encode("utf-8"))


def ignored_inputs_message(parts: list[list[Chunk]]) -> Iterator[str]:
    """A sentence about files among the data that are ignored, if there are any."""
    inputs: dict[SourceConfig, dict[Input, None]] = {}
    for chunk in itertools.chain(*parts):
        inputs.setdefault(chunk.source, {})[chunk.item] = None
    found: dict[str, set[str]] = {}
    for source, items in inputs.items():
        for item in items:
            found.setdefault(item.ignored, set()).add(item.display_path)
        found.setdefault("of how their names end", set()).update(other_files(source, items))
    for reason, names in found.items():
        if reason and names:
            more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
            shown = ", ".join(sorted(names)[:SHOWN])
            yield f"corpus: not read, because {reason}: {shown}{more}"


def _part_path(directory: RunDirectory, part: int, config: RunConfig, suffix: str) -> Path:
    return directory.tokens / part_name(part, config.corpus.parts, suffix)


@contextlib.contextmanager
def _write_rows(path: Path, counts: Counter[str]) -> Iterator[Callable[[DocumentRow], None]]:
    """Yields a function that adds one row to the Parquet file `path`; `counts` go in at the end."""
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, COLUMNS) as writer:
        rows: list[DocumentRow] = []

        def flush() -> None:
            arrays = map(pa.array, zip(*rows, strict=True), COLUMNS.types)
            writer.write_table(pa.Table.from_arrays(list(arrays), schema=COLUMNS))
            rows.clear()

        def add(row: DocumentRow) -> None:
            rows.append(row)
            if len(rows) == GROUP_ROWS:
                flush()

        yield add
        if rows:
            flush()
        writer.add_key_value_metadata({METADATA: json.dumps(counts, sort_keys=True).encode()})
