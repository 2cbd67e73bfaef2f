"""Reads training rows as they lie on disk, part by part of each quadrant."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from frame_jax.curriculum.stages import DataSchedule
from frame_jax.errors import UserError
from frame_jax.records import TokenReader
from frame_jax.run.directory import RunDirectory, list_parts

ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class RowFile:
    """One file of a quadrant's rows.

    Attributes:
        quadrant: Index of the quadrant.
        quadrant_name: Its name.
        part: Index of the part.
        path: Its file.
        first: Rows of the quadrant before it.
        rows: Rows in it.
    """

    quadrant: int
    quadrant_name: str
    part: int
    path: Path
    first: int
    rows: int


def list_row_files(directory: RunDirectory, schedule: DataSchedule) -> list[RowFile]:
    """Lists the row files of all quadrants, in order.

    Raises:
        UserError: if they do not hold the rows that the schedule was made for.
    """
    files = []
    for quadrant, name in enumerate(schedule.quadrants):
        first = 0
        for part, path in enumerate(list_parts(directory.quadrants / name, ".arrayrecord")):
            with contextlib.closing(TokenReader(path)) as reader:
                files.append(RowFile(quadrant, name, part, path, first, len(reader)))
            first += files[-1].rows
        if first != schedule.available[quadrant]:
            raise UserError(
                f"{directory.quadrants / name} holds {first:,} rows, and the order is of "
                f"{schedule.available[quadrant]:,}: a part is missing or has changed; redo the "
                "partition phase"
            )
    return files


def read_rows(row_file: RowFile) -> Iterator[tuple[int, np.ndarray]]:
    """Yields the rows of a file from its beginning: the index of the first, and uint32 [n, ids]."""
    with contextlib.closing(TokenReader(row_file.path)) as reader:
        for first in range(0, row_file.rows, ROWS_AT_ONCE):
            yield (
                first,
                np.stack(reader.read(range(first, min(first + ROWS_AT_ONCE, row_file.rows)))),
            )
