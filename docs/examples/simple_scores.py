"""Scores of a corpus without any model: compression, length, pairs of bytes.

    python docs/examples/simple_scores.py CONFIG OUT.parquet

OUT has a line for each document of the corpus that CONFIG names: `bytes_per_byte`, what a strong
compressor makes of a byte of its text; `saved`, the share that this saves of what a weak one makes;
`bytes`, its length; and `bigram`, its bits a byte where each byte is guessed from the one before,
by the pairs that the whole corpus has. Any of them takes the place of PPL, and any other that of
PD, in `scoring.table`:

    scoring:
      table: {path: OUT.parquet, ppl: bytes_per_byte, pd: saved}
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from frame_jax.config.file import load
from frame_jax.corpus.documents import Document
from frame_jax.corpus.parts import plan_parts

COLUMNS = ("bytes_per_byte", "saved", "bytes", "bigram")
SCHEMA = pa.schema([("doc_id", pa.string()), *((name, pa.float64()) for name in COLUMNS)])


def compressed_sizes(text: str) -> tuple[float, float]:
    """Bytes that a strong compressor makes of a byte of `text`, and the share that it saves beside
    a weak one."""
    data = text.encode("utf-8")
    weak = len(zlib.compress(data, 1))
    strong = len(zstandard.compress(data, 19))
    return strong / len(data), (weak - strong) / weak


def byte_pairs(text: str) -> np.ndarray:
    """Each byte with the one before it, as 256 x (the one before) + byte: int64 [bytes].

    The first one stands after a line break.
    """
    data = np.frombuffer(("\n" + text).encode("utf-8"), np.uint8).astype(np.int64)
    return 256 * data[:-1] + data[1:]


def bigram_bits(texts: Iterator[str]) -> np.ndarray:
    """Bits of each byte after each other, as the pairs of all texts have them: float64 [65536].

    Each pair counts once more than it was seen, so that none is impossible.
    """
    counts = np.ones(256 * 256)
    for text in texts:
        counts += np.bincount(byte_pairs(text), minlength=counts.size)
    pairs = counts.reshape(256, 256)
    return (np.log2(pairs.sum(axis=1, keepdims=True)) - np.log2(pairs)).ravel()


def main(config_path: str, out: str) -> None:
    """Writes a line for each document of the corpus that CONFIG names."""
    parts = plan_parts(load(config_path).corpus)

    def documents() -> Iterator[list[Document]]:
        for part in parts:
            records = (record for chunk in part for record in chunk.read_records())
            yield [record for record in records if isinstance(record, Document)]

    bits = bigram_bits(document.text for found in documents() for document in found)
    with pq.ParquetWriter(Path(out), SCHEMA) as writer:
        for found in documents():
            lines = [
                {
                    "doc_id": document.id,
                    **dict(zip(COLUMNS, compressed_sizes(document.text), strict=False)),
                    "bytes": len(document.text.encode("utf-8")),
                    "bigram": bits[byte_pairs(document.text)].mean(),
                }
                for document in found
            ]
            writer.write_table(pa.Table.from_pylist(lines, SCHEMA))


if __name__ == "__main__":
    main(*sys.argv[1:])
