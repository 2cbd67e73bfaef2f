"""Finds, lists and counts duplicate ids and unusable records of all parts, and says what was found.

Each part counts, for every source, its records and those without a field that was looked for; the
counts are kept in the metadata of the part's Parquet file.
"""

import dataclasses
import functools
import itertools
import json
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from frame_jax.config.corpus import CorpusConfig
from frame_jax.config.workers import WorkersConfig
from frame_jax.corpus.documents import Rejection
from frame_jax.errors import UserError
from frame_jax.parallel import processes
from frame_jax.run.buckets import plan_slices, read_bucket, write_slice
from frame_jax.run.directory import RunDirectory, atomic_path, list_parts, remove
from frame_jax.run.map_parts import Advance, map_parts
from frame_jax.run.program_exit import run_on_first_process
from frame_jax.sql import open_database, parquet_table, query, write_parquet

SHOWN = 3  # records or reasons in a message
ARROW_SCHEMA = b"ARROW:schema"  # which every writer adds itself
SAME_IDS = (
    " Of {:,} the id came before: where several sources have files of the same name, give each "
    "source a `name`, with which the ids of its records will begin; where their records carry the "
    "same ids (parallel texts), give each a `name` and say `id_field: null`"
)

LOST = "the tokenizer loses text"
LOSSY = (
    " Of {:,} the tokenizer in tokenizer.path does not give back the text: take the added tokens "
    "or the normalizer that change it out of its file, choose a byte-level one, or leave it out"
)
GENERAL = re.compile(r"duplicate id(?= )|.*?(?=: | at character |\Z)", re.DOTALL)  # of a reason
METADATA = b"frame_jax.fields"
COLUMNS = "part, row, doc_id, file, line"
BUCKET = "(hash(doc_id) % $buckets)::INTEGER AS bucket"
SETTINGS = {"domain_field": "domain", "language_field": "language"}


def rejection_line(rejection: Rejection) -> str:
    """Formats one line of rejected.jsonl."""
    return json.dumps(dataclasses.asdict(rejection), ensure_ascii=False) + "\n"


def reject_duplicates(directory: RunDirectory, workers: WorkersConfig) -> None:
    """Keeps the first document of every id, by file and line, and lists the rejected ones.

    The others keep their record but get the split `rejected`; parts that have some are written
    again. And rejected.jsonl is written: the parts' unusable records, and the duplicates. Called on
    every process. Doing it again changes nothing, so a killed run just does it again.
    """
    tables, scratch = list_parts(directory.tokens, ".parquet"), directory.tokens / ".tmp-ids"
    size = sum(path.stat().st_size for path in tables)
    work = functools.partial(map_parts, workers=workers, work_bytes=size)
    ids = plan_slices(tables, lambda table: f"SELECT {COLUMNS}, {BUCKET} FROM {table}", scratch)
    write = functools.partial(write_slice, buckets=len(ids), parameters={"buckets": len(ids)})
    work(write, ids, name="ids")
    find = functools.partial(_find_duplicates, ids=[path for _, path in ids.values()])
    found = {name: (bucket, scratch / f"{name}.parquet") for bucket, name in enumerate(ids)}
    work(find, found, name="duplicate ids")
    duplicates = [path for _, path in found.values()]
    marked = run_on_first_process(lambda: _list_rejected(directory, duplicates, scratch))
    rows = {tables[part].stem: (tables[part], scratch / f"{part}.npy") for part in marked}
    work(_mark_rejected, rows, name="rejected")
    if processes.is_first():
        remove(scratch)


def summarise(directory: RunDirectory, corpus: CorpusConfig) -> dict[str, Any]:
    """Counts documents, tokens and UTF-8 bytes by split, rejected records by reason, and parts;
    and says which fields no record has."""
    parts = list_parts(directory.tokens, ".parquet")
    rows = query(
        lambda *row: row,
        f"SELECT split, count(*), sum(tokens)::BIGINT, sum(bytes)::BIGINT "
        f"FROM {parquet_table(*parts)} WHERE split != 'rejected' GROUP BY split ORDER BY split",
    )
    reasons = rejection_reasons(directory.rejected)
    return {
        "documents": {split: documents for split, documents, _, _ in rows},
        "tokens": {split: tokens for split, _, tokens, _ in rows},
        "bytes": {split: size for split, _, _, size in rows},
        "rejected": sum(reasons.values()),
        "parts": len(parts),
        "rejected_for": reasons,
        "fields_never_found": absent_field_warnings(directory, corpus),
    }


def require_few_rejected(
    summary: dict[str, Any], corpus: CorpusConfig, directory: RunDirectory
) -> None:
    """Stops a run most of whose records are rejected: the corpus is not what the user thinks.

    Raises:
        UserError: where too many records were rejected, or no document is left.
    """
    rejected, documents = summary["rejected"], sum(summary["documents"].values())
    records = rejected + documents
    if documents > 0 and rejected <= corpus.max_rejected_fraction * records:
        return
    if records == 0:
        raise UserError("corpus.sources: the files hold no records at all: correct `path`")
    with directory.rejected.open(encoding="utf-8") as file:
        first = [json.loads(line) for line in itertools.islice(file, SHOWN)]
    repeated = summary["rejected_for"].get("duplicate id", 0)
    advice = SAME_IDS.format(repeated) if repeated else ""
    lost = summary["rejected_for"].get(LOST, 0)
    advice += LOSSY.format(lost) if lost else ""
    examples = "; ".join(f"{r['file']} line {r['line']}: {r['reason']}" for r in first)
    raise UserError(
        f"corpus: {rejected:,} of {records:,} records ({rejected / records:.2%}) cannot be used, "
        f"more than corpus.max_rejected_fraction ({corpus.max_rejected_fraction:.2%}). The first: "
        f"{examples}. All of them are listed in {directory.rejected}. Correct the files or the "
        f"field names in corpus.sources, or raise corpus.max_rejected_fraction.{advice}"
    )


def _find_duplicates(part: tuple[int, Path], advance: Advance, *, ids: Sequence[Path]) -> None:
    """Writes all but the first document of every id in a bucket of `ids`, with the first one's file
    and line."""
    bucket, path = part
    with open_database(path.parent) as database, atomic_path(path) as temporary:
        database.register("documents", read_bucket(ids, bucket))
        duplicates = f"""
            WITH repeated AS (SELECT doc_id FROM documents GROUP BY doc_id HAVING count(*) > 1)
            SELECT {COLUMNS},
                first_value(file) OVER first_in_order AS first_file,
                first_value(line) OVER first_in_order AS first_line
            FROM documents SEMI JOIN repeated USING (doc_id)
            WINDOW first_in_order AS (PARTITION BY doc_id ORDER BY file, line, part, row)
            QUALIFY row_number() OVER first_in_order > 1
            """
        database.execute(write_parquet(duplicates, temporary))


def _list_rejected(directory: RunDirectory, found: Sequence[Path], scratch: Path) -> list[int]:
    """Writes rejected.jsonl, and the rows of duplicates in each part that has some to a file in
    `scratch`; returns these parts."""
    parts = []
    with (
        open_database(scratch) as database,
        atomic_path(directory.rejected) as path,
        path.open("w", encoding="utf-8") as merged,
    ):
        for source in list_parts(directory.tokens, ".rejected.jsonl"):
            with source.open(encoding="utf-8") as lines:
                shutil.copyfileobj(lines, merged)
        cursor = database.execute(f"FROM {parquet_table(*found)} ORDER BY part, row")
        duplicates = itertools.chain.from_iterable(iter(lambda: cursor.fetchmany(1024), []))
        for part, own in itertools.groupby(duplicates, itemgetter(0)):
            rows = []
            for _, row, doc_id, file, line, first_file, first_line in own:
                rows.append(row)
                reason = f"duplicate id {doc_id!r}, first in {first_file} line {first_line}"
                merged.write(rejection_line(Rejection(file, line, reason)))
            np.save(scratch / f"{part}.npy", rows)
            parts.append(part)
    return parts


def _mark_rejected(marked: tuple[Path, Path], advance: Advance) -> None:
    """Sets the split of some rows of a part, listed in a file, to `rejected`, row group by row
    group."""
    path, rows = marked[0], np.load(marked[1])
    with pq.ParquetFile(path) as part:
        schema = part.schema_arrow
        splits = np.array(part.read(["split"])["split"])
        if (splits[rows] == "rejected").all():
            return
        splits[rows] = "rejected"
        column = schema.get_field_index("split")
        done = 0
        with atomic_path(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
            for group in range(part.num_row_groups):
                table = part.read_row_group(group)
                split = pa.array(splits[done : done + len(table)], pa.string())
                writer.write_table(table.set_column(column, schema.field("split"), split))
                done += len(table)
            kept = part.metadata.metadata or {}
            writer.add_key_value_metadata({k: v for k, v in kept.items() if k != ARROW_SCHEMA})


def absent_field_warnings(directory: RunDirectory, corpus: CorpusConfig) -> list[str]:
    """A sentence for each field that was looked for and that no record of its source has."""
    total: Counter[str] = Counter()
    for part in list_parts(directory.tokens, ".parquet"):
        total.update(json.loads(pq.read_metadata(part).metadata[METADATA]))
    return [
        f"corpus.sources[{index}]: no record has the field {getattr(source, setting)!r} "
        f"({setting}), so the {value} of all {records:,} is {getattr(source, value)!r}"
        for index, source in enumerate(corpus.sources)
        if (records := total[f"{index} records"])
        for setting, value in SETTINGS.items()
        if total[f"{index} {setting}"] == records
    ]


def rejection_reasons(rejected: Path) -> dict[str, int]:
    """Counts the reasons of rejections, without what is of one record, the most frequent first."""
    with rejected.open(encoding="utf-8") as lines:
        counts = Counter(GENERAL.findall(json.loads(line)["reason"])[0] for line in lines)
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


def summary_messages(summary: dict[str, Any], directory: RunDirectory) -> list[str]:
    """Formats a summary of the phase as lines for the terminal."""
    documents, rejected = sum(summary["documents"].values()), summary["rejected"]
    line = f"corpus: {documents:,} documents, {rejected:,} records rejected"
    if rejected:
        kinds = [f"{count:,} {kind}" for kind, count in summary["rejected_for"].items()]
        shown = "; ".join(kinds[:SHOWN]) + ("; ..." if len(kinds) > SHOWN else "")
        line += f" ({shown})" if kinds else ""
        line += f", listed in {directory.rejected}"
    empty = [split for split in ("train", "held_out") if not summary["documents"].get(split)]
    return [
        line,
        *(f"corpus: no document fell into the split {split!r}" for split in empty),
        *summary.get("fields_never_found", []),
    ]
