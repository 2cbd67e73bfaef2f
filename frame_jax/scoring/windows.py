"""Cuts a document's token ids into the windows that a model scores.

A document of n tokens is scored from its own start: s = [bos] + tokens, and the n tokens are the
targets. The first window reads s[0:context]. Every later one starts early enough that the first
target it counts is conditioned on `overlap` tokens (at least one) of the window before, whose
targets it does not count again. Each target is counted exactly once.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np


class Window(NamedTuple):
    """A piece of a document that a model reads in one row.

    Attributes:
        document: Index of the document.
        ids: [length + 1] int32: inputs are `ids[:-1]`, targets `ids[1:]`.
        num_overlap_targets: Targets at the start that an earlier window counts.
        last: Whether the document ends here.
    """

    document: int
    ids: np.ndarray
    num_overlap_targets: int
    last: bool

    @property
    def length(self) -> int:
        """Number of tokens the model reads, which is the number of targets it predicts."""
        return len(self.ids) - 1


def windows(
    document: int, tokens: np.ndarray, bos_id: int, context: int, overlap: int
) -> Iterator[Window]:
    """Yields the windows of one document of that index; none for a document without tokens.

    `tokens` are integers [n]; a window reads at most `context` of them; `overlap`, below `context`,
    are the tokens that condition a later window without being counted again.
    """
    ids = np.empty(len(tokens) + 1, np.int32)
    ids[0], ids[1:] = bos_id, tokens
    conditioning = max(overlap, 1)
    start, counted_to = 0, 0  # targets ids[1 : counted_to + 1] are counted so far
    while counted_to < len(tokens):
        end = min(start + context, len(tokens))
        yield Window(document, ids[start : end + 1], counted_to - start, last=end == len(tokens))
        start, counted_to = end + 1 - conditioning, end
