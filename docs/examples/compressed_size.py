"""Scores of a corpus without any model: how small compressors make each document.

    python docs/examples/compressed_size.py CONFIG OUT.parquet

A strong compressor's bytes a byte of text take the place of PPL, and what it saves beside a weak
one, (weak - strong) / weak, that of PD. CONFIG names the corpus, and OUT in `scoring.table`:

    scoring:
      table: {path: OUT.parquet, ppl: bytes_per_byte, pd: saved}
"""

from __future__ import annotations

import sys
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from frame_jax.config.file import load
from frame_jax.corpus.documents import Document
from frame_jax.corpus.parts import plan_parts

SCHEMA = pa.schema([("doc_id", pa.string()), ("bytes_per_byte", "float64"), ("saved", "float64")])


def compressed_sizes(text: str) -> tuple[float, float]:
    """Bytes that a strong compressor makes of a byte of `text`, and the share that it saves beside
    a weak one."""
    data = text.encode("utf-8")
    weak = len(zlib.compress(data, 1))
    strong = len(zstandard.compress(data, 19))
    return strong / len(data), (weak - strong) / weak


def main(config_path: str, out: str) -> None:
    """Writes a line for each document of the corpus that CONFIG names."""
    with pq.ParquetWriter(Path(out), SCHEMA) as writer:
        for part in plan_parts(load(config_path).corpus):
            records = (record for chunk in part for record in chunk.read_records())
            documents = (record for record in records if isinstance(record, Document))
            rows = [(document.id, *compressed_sizes(document.text)) for document in documents]
            columns = [[row[column] for row in rows] for column in range(len(SCHEMA))]
            writer.write_table(pa.table(columns, SCHEMA))


if __name__ == "__main__":
    main(*sys.argv[1:])
