"""Puts items together by their sizes alone: best-fit packing into rows, and batches of a stream."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def best_fit(sizes: Iterable[int], capacity: int) -> list[int]:
    """Puts each item into the fullest row that still has room for it; the row of each item.

    Given longest first, this is best-fit decreasing. Rows are found by their remaining room: bit r
    of `rooms` says that a row with room for r exists, so the search is one shift, whatever the
    number of rows. Sizes are positive, and none is above the `capacity` of a row.
    """
    found: list[int] = []
    open_rows: list[list[int]] = [[] for _ in range(capacity + 1)]  # by the room that is left
    rows = rooms = 0
    for size in sizes:
        fitting = rooms >> size
        if fitting:
            room = size + (fitting & -fitting).bit_length() - 1
            row = open_rows[room].pop()
            if not open_rows[room]:
                rooms ^= 1 << room
        else:
            room, row, rows = capacity, rows, rows + 1
        found.append(row)
        open_rows[room - size].append(row)
        rooms |= 1 << (room - size)
    return found


def batch_by_size(
    items: Iterable[Item], size: Callable[[Item], int], least: int
) -> Iterator[list[Item]]:
    """Yields the items in order, in lists that end when their sizes come to at least `least`."""
    batch: list[Item] = []
    total = 0
    for item in items:
        batch.append(item)
        total += size(item)
        if total >= least:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch
