"""Digests of training rows and of their order, which anyone can compute again from the rows.

The digest of a row is the first 16 bytes of SHA-256 of its ids as they lie on disk (uint32,
little-endian). The digest of a row at a place is that of the place (the global row index from 0,
int64, little-endian) and the row's digest, made the same way. The digest of an order, or of any
stretch of it, is the sum of those of its places as little-endian integers, modulo 2**128: the same
whoever reads which rows, in whatever pieces, and another when a row is changed, left out, repeated
or put elsewhere.

A sum finds accidents and careless edits. It is no seal against somebody who makes rows to fit it:
that takes the digests of rows one by one, which a manifest holds.
"""

from hashlib import sha256
from typing import Any

import numpy as np

BYTES = 16
MODULUS = 1 << 8 * BYTES


def row_digests(rows: np.ndarray) -> np.ndarray:
    """Digests of rows of ids, integers [n, ids] below 2**32: uint8 [n, 16]."""
    return _digests(np.ascontiguousarray(rows, "<u4").view(np.uint8))


def ordered_row_digests(row_indices: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Digests of rows at their positions, int64 [n] and uint8 [n, 16]: uint8 [n, 16]."""
    positions = row_indices.astype("<i8").view(np.uint8).reshape(-1, 8)
    return _digests(np.concatenate([positions, rows], axis=1))


def _digests(lines: np.ndarray) -> np.ndarray:
    digests = [sha256(line).digest()[:BYTES] for line in lines]
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, BYTES)


def digest_value(columns: np.ndarray) -> int:
    """The sum of digests as one number, from the sums of their bytes, integers [16]."""
    return sum(int(column) << 8 * index for index, column in enumerate(columns)) % MODULUS


def format_digest(value: int) -> str:
    """Formats a digest as 32 hexadecimal digits, the lowest byte first."""
    return value.to_bytes(BYTES, "little").hex()


def parse_digest(text: str) -> int:
    """The number that `format_digest` formatted."""
    return int.from_bytes(bytes.fromhex(text), "little")


def consumed_record(value: int) -> dict[str, Any]:
    """The fields that a line of metrics and a checkpoint store: the digest of the rows so far."""
    return {"order_digest": format_digest(value)}


def read_consumed_rows(record: dict[str, Any]) -> int:
    """The digest that a line of metrics or a checkpoint holds."""
    return parse_digest(record["order_digest"])
