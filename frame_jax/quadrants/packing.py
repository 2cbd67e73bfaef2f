"""Decides which segment of which document goes into which training row.

A framed document is [bos] + tokens + [eos]; see `rows.py`. Only lengths matter here, so a million
documents are planned without reading one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from frame_jax import packing


@dataclass(frozen=True)
class PackedSegments:
    """Segments of documents in the order of their rows, then of their offsets; each int64
    [segments].

    Attributes:
        row: The row that holds the piece.
        document: The framed document it is cut from.
        start: First id of the framed document.
        stop: One past the last.
        num_bos: BOS ids to put before every piece.
    """

    row: np.ndarray
    document: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    num_bos: int

    @property
    def rows(self) -> int:
        return int(self.row[-1]) + 1 if len(self.row) else 0

    def select_rows(self, first: int, stop: int) -> PackedSegments:
        """The segments of rows [first, stop), with rows counted from `first`."""
        lo, hi = np.searchsorted(self.row, [first, stop])
        return PackedSegments(
            self.row[lo:hi] - first,
            self.document[lo:hi],
            self.start[lo:hi],
            self.stop[lo:hi],
            self.num_bos,
        )

    @property
    def offset(self) -> np.ndarray:
        """Where in its row each segment begins, after the BOS that may precede it: int64
        [segments]."""
        size = self.stop - self.start + self.num_bos
        before = np.cumsum(size) - size
        first = np.searchsorted(self.row, self.row)  # the first piece of the row
        return before - before[first] + self.num_bos

    def text_spans(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The text tokens [first, stop) of its document that each segment holds: two int64
        [segments].

        `tokens` are the text tokens of every document. Both are the same where a piece holds BOS
        or EOS alone.
        """
        first = np.maximum(self.start, 1) - 1  # BOS is before the text
        return first, np.maximum(np.minimum(self.stop - 1, tokens[self.document]), first)

    @property
    def num_ids(self) -> int:
        """Number of ids that are not padding."""
        return int((self.stop - self.start).sum()) + self.num_bos * len(self.row)


def concat(lengths: np.ndarray, row_ids: int) -> PackedSegments:
    """Joins the documents to one stream and cuts it every `row_ids` ids; only the last row has room
    left."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    starts = np.union1d(ends - lengths, np.arange(0, total, row_ids))
    stops = np.append(starts[1:], [total] if total else [])
    document = np.searchsorted(ends, starts, side="right")
    origin = (ends - lengths)[document]
    return PackedSegments(starts // row_ids, document, starts - origin, stops - origin, num_bos=0)


def best_fit(lengths: np.ndarray, row_ids: int) -> PackedSegments:
    """Cuts only documents longer than a row, and puts each segment where it leaves the least room.

    Every piece begins with BOS, its own or one more, so that attention and loss treat the rest of
    a cut document as a document. Longest pieces first (best-fit decreasing).
    """
    body = lengths - 1  # without its own BOS
    per_document = -(-body // (row_ids - 1))
    document = np.repeat(np.arange(len(lengths)), per_document)
    number = np.arange(len(document)) - np.repeat(
        np.cumsum(per_document) - per_document, per_document
    )
    start = 1 + number * (row_ids - 1)
    stop = np.minimum(start + row_ids - 1, lengths[document])
    size = stop - start + 1

    order = np.argsort(-size, kind="stable")
    row = np.empty(len(order), np.int64)
    row[order] = packing.best_fit(size[order].tolist(), row_ids)
    by_row = np.argsort(row, kind="stable")
    return PackedSegments(row[by_row], document[by_row], start[by_row], stop[by_row], num_bos=1)
