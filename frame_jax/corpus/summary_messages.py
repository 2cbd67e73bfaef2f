"""Messages about a tokenized corpus: what was rejected, and which fields were absent.

Each part counts, for every source, its records and those without a field that was looked for; the
counts are kept in the metadata of the part's Parquet file.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from frame_jax.config.corpus import CorpusConfig
from frame_jax.corpus.documents import Document
from frame_jax.run.directory import RunDirectory, list_parts
from frame_jax.run.markers import read_marker

METADATA = b"frame_jax.fields"
SETTINGS = {"domain_field": "domain", "language_field": "language"}
SHOWN = 3


def count_fields(counts: Counter[str], source: int, document: Document) -> None:
    """Counts a record of the source of that index, and the fields that were looked for in vain."""
    counts.update(f"{source} {name}" for name in ("records", *document.absent))


def counts_metadata(counts: Counter[str]) -> dict[bytes, bytes]:
    """The counts of a part as they are kept."""
    return {METADATA: json.dumps(counts, sort_keys=True).encode()}


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
    """Counts the reasons of rejections, the most frequent first."""
    with rejected.open(encoding="utf-8") as lines:
        counts = Counter(_general_reason(json.loads(line)["reason"]) for line in lines)
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


def _general_reason(reason: str) -> str:
    """A reason without what is specific to its record."""
    if reason.startswith("duplicate id "):
        return "duplicate id"
    return reason.split(": ")[0].split(" at character ")[0]


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


def read_summary_messages(directory: RunDirectory) -> list[str]:
    """Reads the messages about a corpus that is tokenized."""
    marker = read_marker(directory, "tokenize")
    return [] if marker is None else summary_messages(marker.summary, directory)
