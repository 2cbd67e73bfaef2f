"""Packs windows into rows of fixed length: best-fit-decreasing over a bounded pool.

A row holds several windows side by side; segment ids keep them apart in the model.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from frame_jax.packing import batch_by_size, best_fit
from frame_jax.scoring.windows import Window

FULL = 0.99  # rows less full than this are packed again with later documents

WindowRow = list[Window]


def pack_windows(windows: Iterable[Window], length: int, pool_rows: int) -> Iterator[WindowRow]:
    """Groups windows into rows of at most `length` tokens.

    The pool is filled with about `pool_rows` rows of windows, packed, and its full rows leave; the
    others go back into the pool. What is left at the end leaves as it is. No window is longer than
    a row.
    """
    pool: WindowRow = []
    tokens = 0
    for window in windows:
        pool.append(window)
        tokens += window.length
        if tokens >= pool_rows * length:
            rows = best_fit_decreasing(pool, length)
            # The fullest rows leave, at least half of them: every window is packed a bounded
            # number of times.
            rows.sort(key=row_tokens, reverse=True)
            leaving = max(sum(row_tokens(row) >= FULL * length for row in rows), len(rows) // 2, 1)
            yield from rows[:leaving]
            pool = [window for row in rows[leaving:] for window in row]
            tokens = row_tokens(pool)
    yield from best_fit_decreasing(pool, length)


def row_tokens(row: WindowRow) -> int:
    """Number of tokens in a row, padding left out."""
    return sum(window.length for window in row)


def best_fit_decreasing(windows: Iterable[Window], length: int) -> list[WindowRow]:
    """Packs windows, longest first, each into the fullest row that still has room for it."""
    ordered = sorted(windows, key=lambda window: window.length, reverse=True)
    placed = best_fit((window.length for window in ordered), length)
    rows: list[WindowRow] = [[] for _ in range(max(placed, default=-1) + 1)]
    for window, row in zip(ordered, placed, strict=True):
        rows[row].append(window)
    return rows


class Batch(NamedTuple):
    """Packed rows as a model reads them: arrays [rows, length] int32, padding 0.

    Attributes:
        inputs: Tokens.
        targets: The token after each.
        segment_ids: 1 for a row's first window, 2 for its second, ...; 0 for padding.
        positions: Place of each token in its window.
        windows: The windows, in the order of their places.
        starts: [windows] int64, the flat index of each window's first token.
    """

    inputs: np.ndarray
    targets: np.ndarray
    segment_ids: np.ndarray
    positions: np.ndarray
    windows: list[Window]
    starts: np.ndarray

    @property
    def tokens(self) -> int:
        """Real tokens, those read twice because of the overlap included."""
        return row_tokens(self.windows)


def make_batch(rows: list[WindowRow], row_count: int, length: int) -> Batch:
    """Lays out at most `row_count` rows in arrays; missing rows are all padding."""
    inputs, targets, segment_ids, positions = np.zeros((4, row_count, length), np.int32)
    windows: list[Window] = []
    starts: list[int] = []
    count_up = np.arange(length, dtype=np.int32)
    for index, row in enumerate(rows):
        offset = 0
        for segment, window in enumerate(row, 1):
            stop = offset + window.length
            inputs[index, offset:stop] = window.ids[:-1]
            targets[index, offset:stop] = window.ids[1:]
            segment_ids[index, offset:stop] = segment
            positions[index, offset:stop] = count_up[: window.length]
            windows.append(window)
            starts.append(index * length + offset)
            offset = stop
    return Batch(inputs, targets, segment_ids, positions, windows, np.array(starts, np.int64))


def make_batches(rows: Iterable[WindowRow], row_count: int, length: int) -> Iterator[Batch]:
    """Yields batches of `row_count` rows; the last one is filled up with empty rows."""
    for batch in batch_by_size(rows, lambda row: 1, row_count):
        yield make_batch(batch, row_count, length)


def window_sums(nll: np.ndarray, batch: Batch) -> np.ndarray:
    """Sums the counted NLL of every window of a batch, in float64.

    `nll` is [models, rows, length] float32, one value a token; the sums are [models, windows].
    """
    flat = nll.reshape(len(nll), -1).astype(np.float64)
    flat = np.append(flat, np.zeros((len(nll), 1)), axis=1)  # an end may lie behind the last token
    first = batch.starts + [window.num_overlap_targets for window in batch.windows]
    last = batch.starts + [window.length for window in batch.windows]
    edges = np.stack([first, last], axis=1).reshape(-1)
    return np.add.reduceat(flat, edges, axis=1)[:, ::2]
