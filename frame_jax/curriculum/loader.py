"""Loads batches of token ids in the order of a selection map, from any step and on any process.

Batch b is rows [b * batch_size, (b + 1) * batch_size) of the schedule. A process reads only its own
rows of each batch; the state is the step alone, so a run may resume on another number of processes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import grain
import numpy as np

from frame_jax.curriculum.selection import SelectionMap
from frame_jax.errors import UserError
from frame_jax.records import OpenFiles, record_counts


class QuadrantRows:
    """Random access to the rows of quadrants across their files, which are opened when needed.

    `parts` are the files of each quadrant.
    """

    def __init__(self, parts: Sequence[Sequence[Path]]):
        self._parts, self._files = parts, OpenFiles()
        # Of each quadrant the first row of each file, and one past its last row.
        self._edges = [np.append(0, np.cumsum(record_counts(paths))) for paths in parts]

    def read_into(
        self, out: np.ndarray, lines: np.ndarray, quadrants: np.ndarray, rows: np.ndarray
    ) -> None:
        """Reads row `rows[i]` of quadrant `quadrants[i]` into `out[lines[i]]`.

        Raises:
            UserError: when a part does not hold the rows that were recorded of it.
        """
        for quadrant in np.unique(quadrants):
            own, edges = np.flatnonzero(quadrants == quadrant), self._edges[quadrant]
            parts = np.searchsorted(edges, rows[own], side="right") - 1
            for part in np.unique(parts):
                chosen, path = own[parts == part], self._parts[quadrant][part]
                first, stop = edges[part : part + 2]
                reader = self._files.reader(path)
                if len(reader) != stop - first:
                    raise UserError(
                        f"{path} holds {len(reader):,} rows, and {stop - first:,} were written to "
                        "it: the rows have changed since; redo the partition phase"
                    )
                out[lines[chosen]] = reader.read(rows[chosen] - first)


@dataclass(eq=False, repr=False)
class BatchSource:
    """A random-access source whose element b is this process's rows of global batch b.

    One element a batch, not one a row: rows of a part are then read in a single call, which is
    several times faster than reading row by row and batching afterwards.

    Attributes:
        parts: Row files of every quadrant of the schedule, in order.
        row_offsets: The rows of each global batch that this process needs, in the order in which
            it needs them, each in [0, batch_size).
        row_tokens: Ids a row stores: sequence_length + 1.
        padding_id: Fills the rows that the last batch lacks (BOS: such targets have no loss).
    """

    parts: Mapping[str, Sequence[Path]]
    selection: SelectionMap
    batch_size: int
    row_offsets: Sequence[int] | np.ndarray
    row_tokens: int
    padding_id: int

    def __post_init__(self) -> None:
        names = self.selection.schedule.quadrants
        self._rows = QuadrantRows([self.parts.get(name, []) for name in names])
        self._offsets = np.asarray(self.row_offsets, np.int64)

    def __len__(self) -> int:
        return self.selection.schedule.steps(self.batch_size)

    def __getitem__(self, step: int) -> np.ndarray:
        """int32 [local rows, row_tokens]; past the last row of the schedule all padding."""
        batch = np.full((len(self._offsets), self.row_tokens), self.padding_id, np.int32)
        rows = step * self.batch_size + self._offsets
        lines = np.flatnonzero(rows < len(self.selection))
        self._rows.read_into(batch, lines, *self.selection.select(rows[lines]))
        return batch


def make_loader(source: BatchSource, *, start_step: int = 0) -> Iterator[np.ndarray]:
    """Batches, int32 [local rows, row_tokens], from `start_step` to the end of the schedule, read
    ahead by a few threads."""
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)
    return iter(grain.MapDataset.source(source)[start_step:].to_iter_dataset(options))
