"""Which split a document belongs to: a function of its id and the seed alone."""

from __future__ import annotations

import hashlib


def unit_hash(name: str, salt: str) -> float:
    """Maps a name to a number uniform in [0, 1), the same on every machine and Python."""
    person = hashlib.blake2b(salt.encode("utf-8"), digest_size=16).digest()
    digest = hashlib.blake2b(name.encode("utf-8"), digest_size=8, person=person).digest()
    # 53 bits are what a float64 in [0, 1) holds; more would round up to 1.
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def assign_split(
    doc_id: str, seed: int, held_out_fraction: float, reference_fraction: float
) -> str:
    """Assigns `held_out`, `reference` or `train`.

    The hash's line from 0 to 1 is cut at the two fractions, so a document keeps its split when
    others come or go, whatever the order in which they are read.
    """
    number = unit_hash(doc_id, f"split {seed}")
    if number < held_out_fraction:
        return "held_out"
    if number < held_out_fraction + reference_fraction:
        return "reference"
    return "train"
