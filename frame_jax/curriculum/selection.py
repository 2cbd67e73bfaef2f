"""The selection map: from the global index of a row to its quadrant and its index there.

The map is a pure function of the index: no state but the step, so any number of processes may read
it from anywhere. Rows are drawn without replacement and with exact counts. An epoch is cut into
blocks; a table holds how many rows of every quadrant come before each block, and order inside a
block and inside a quadrant comes from keyed permutations that are computed, not stored.

Training, exports and `--plan` all take the order that a config asks for from `trial_selection` and
`arm_schedule`, so that they cannot differ.
"""

from collections.abc import Mapping

import numpy as np

from frame_jax.config.run import RunConfig, Trial
from frame_jax.curriculum.permutation import permutation_keys, permute, unpermute
from frame_jax.curriculum.presets import expand_curriculum
from frame_jax.curriculum.stages import DataSchedule, resolve_curriculum

MIN_BLOCK_ROWS = 64
TABLE_ENTRIES = 1 << 19


class SelectionMap:
    """Maps a global row index to (quadrant, index among that quadrant's rows).

    `len(map)` and `map[i]` are what `grain.MapDataset.select_from_datasets` asks for.

    Attributes:
        shuffle: Another number, another order of the same rows under the same seed.
        edges: int64 [blocks + 1]: first row of each block of an epoch, and the end.
        counts: int64 [blocks + 1, quadrants]: rows of each quadrant before each edge.
    """

    def __init__(self, schedule: DataSchedule, seed: int, shuffle: int = 0):
        self.schedule = schedule
        self.seed = seed
        self.shuffle = shuffle
        rows = schedule.epoch_rows
        block_rows = max(MIN_BLOCK_ROWS, -(-rows * len(schedule.quadrants) // TABLE_ENTRIES))
        # Stage ends are edges as well, so that a hard boundary falls between two rows.
        stops = [stage.stop for stage in schedule.stages]
        self.edges = np.unique(np.concatenate([np.arange(0, rows, block_rows), [0], stops]))
        self.counts = round_cumulative_counts(schedule.cumulative(self.edges), self.edges)
        self._available = np.array(schedule.available, np.int64)

    def __len__(self) -> int:
        return self.schedule.rows

    def __getitem__(self, index: int) -> tuple[int, int]:
        quadrants, rows = self.select(np.array([index]))
        return int(quadrants[0]), int(rows[0])

    def select(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Quadrants and rows of global row indices: int64 [n] to int64 [n] and int64 [n].

        Raises:
            IndexError: for an index outside [0, len).
        """
        indices = np.asarray(indices, np.int64)
        if indices.size and (indices.min() < 0 or indices.max() >= len(self)):
            raise IndexError(f"row indices must lie in [0, {len(self)})")
        epochs, rows = np.divmod(indices, self.schedule.epoch_rows)
        blocks = np.searchsorted(self.edges, rows, side="right") - 1
        first = self.edges[blocks]
        slots = permute(
            rows - first,
            self.edges[blocks + 1] - first,
            permutation_keys(self.seed, epochs, 2 * self.shuffle, blocks),
        )
        before = self.counts[blocks]  # [n, quadrants]
        ends = np.cumsum(self.counts[blocks + 1] - before, axis=1)
        quadrants = (slots[:, None] >= ends).sum(1)
        # Slots of a quadrant end at `ends`, ranks at the quadrant's count at the end of the block.
        ranks = self.counts[blocks + 1, quadrants] - (
            ends[np.arange(len(quadrants)), quadrants] - slots
        )
        if self.shuffle:  # among the rows in use, which are those of the seed
            key = permutation_keys(self.seed, epochs, 2 * self.shuffle + 1, quadrants)
            ranks = permute(ranks, self.counts[-1, quadrants], key)
        return quadrants, permute(
            ranks, self._available[quadrants], permutation_keys(self.seed, epochs, 1, quadrants)
        )

    def inverse(self, quadrant: int, rows: np.ndarray, epoch: int) -> np.ndarray:
        """Global indices at which an epoch uses rows of a quadrant: the inverse of `select`.

        Both are int64 [n]; the rows exist, and a row that a shortened run leaves out has -1.
        """
        rows = np.asarray(rows, np.int64)
        epochs, quadrants = np.full(len(rows), epoch), np.full(len(rows), quadrant)
        ranks = unpermute(
            rows, self._available[quadrants], permutation_keys(self.seed, epochs, 1, quadrants)
        )
        line = self.counts[:, quadrant]
        used = np.flatnonzero(ranks < line[-1])
        ranks, epochs, quadrants = ranks[used], epochs[used], quadrants[used]
        if self.shuffle:
            key = permutation_keys(self.seed, epochs, 2 * self.shuffle + 1, quadrants)
            ranks = unpermute(ranks, line[-1][None].repeat(len(ranks)), key)
        blocks = np.searchsorted(line, ranks, side="right") - 1
        counts = self.counts[blocks + 1] - self.counts[blocks]  # [n, quadrants]
        slots = counts[:, : quadrant + 1].sum(1) - (line[blocks + 1] - ranks)
        first = self.edges[blocks]
        inside = unpermute(
            slots,
            self.edges[blocks + 1] - first,
            permutation_keys(self.seed, epochs, 2 * self.shuffle, blocks),
        )
        indices = np.full(len(rows), -1, np.int64)
        indices[used] = epoch * self.schedule.epoch_rows + first + inside
        return indices

    def mixture(self, start: int, stop: int) -> np.ndarray:
        """Actual share of each quadrant in rows [start, stop) of the run: float64 [quadrants]."""
        quadrants, _ = self.select(np.arange(start, min(stop, len(self))))
        return np.bincount(quadrants, minlength=len(self.schedule.quadrants)) / len(quadrants)


def round_cumulative_counts(asked: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Rounds cumulative counts to whole rows that never decrease.

    From edge to edge every quadrant gets the whole rows it is owed; those still missing from the
    block go to the largest remainders, and a block that owes too much (a quadrant ran ahead by less
    than a row) passes over the smallest. No quadrant is ever a whole row ahead of what is asked.

    `asked` is float64 [edges, quadrants], rising, each line's sum its edge, the last line whole.
    The result is int64 with the same line sums, the same last line, rising.
    """
    asked = np.minimum(asked, np.rint(asked[-1])).tolist()
    asked[-1] = np.rint(asked[-1]).astype(int).tolist()
    given = [0] * len(asked[0])
    counts = [given]
    for line, size in zip(asked[1:], np.diff(edges).tolist(), strict=True):
        owed = [max(want - have, 0.0) for want, have in zip(line, given, strict=True)]
        new = [int(o) for o in owed]
        while missing := size - sum(new):
            if missing > 0:
                new[max(range(len(new)), key=lambda c: owed[c] - new[c])] += 1
            else:
                new[min((c for c, n in enumerate(new) if n), key=lambda c: owed[c] - new[c])] -= 1
        given = [have + n for have, n in zip(given, new, strict=True)]
        counts.append(given)
    return np.array(counts, np.int64)


def arm_schedule(config: RunConfig, arm: str, rows: Mapping[str, int]) -> DataSchedule:
    """The stages of an arm over rows that exist.

    `rows` are those of each quadrant; others than the partition's are ignored.

    Raises:
        UserError: if the rows cannot fill the stages.
    """
    axes, training = config.partition.axes, config.pretrain.training
    return resolve_curriculum(
        expand_curriculum(config.curricula[arm], axes),
        {quadrant: rows[quadrant] for quadrant in axes.quadrants},
        batch_size=training.batch_size,
        sequence_length=config.partition.rows.sequence_length,
        steps=training.steps,
    )


def trial_selection(config: RunConfig, trial: Trial, rows: Mapping[str, int]) -> SelectionMap:
    """Which row comes when in a trial: its arm's stages, drawn under its seed.

    Raises:
        UserError: if the rows cannot fill the stages.
    """
    curriculum = expand_curriculum(config.curricula[trial.arm], config.partition.axes)
    return SelectionMap(arm_schedule(config, trial.arm, rows), trial.seed, curriculum.shuffle)
