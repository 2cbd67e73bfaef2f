"""Allots whole rows of every quadrant to every stage, with exact sums both ways."""

import numpy as np

from frame_jax.errors import UserError

SCALING_ROUNDS = 200


def split_proportionally(total: int, shares: np.ndarray) -> np.ndarray:
    """Splits `total` into whole numbers proportional to `shares` (int64 [n]), by largest remainder.

    No part exceeds its share as long as `total` does not exceed their sum.
    """
    # Python integers: the product of two large counts does not fit into 64 bits.
    divided = [divmod(total * int(share), int(shares.sum())) for share in shares]
    whole, remainders = np.array(divided, np.int64).T
    largest = np.argsort(-remainders, kind="stable")[: total - int(whole.sum())]
    whole[largest] += 1
    return whole


def allot_rows(
    weights: np.ndarray,
    columns: np.ndarray,
    lengths: np.ndarray | None,
    stage_names: list[str],
    quadrant_names: tuple[str, ...],
) -> np.ndarray:
    """Rows of each quadrant in each stage: int64 [stages, quadrants].

    Without `lengths` a quadrant is shared among its stages in proportion to their weights. With
    them, the matrix that is closest to the weights in relative entropy (iterative proportional
    fitting), rounded; rows left over by rounding move along augmenting paths, which also decides
    exactly whether the lengths can be had at all.

    Weights are relative sampling rates, float64 [stages, quadrants]. The result's columns sum to
    `columns`, the rows of each quadrant, int64 [quadrants]; its rows to `lengths`, the rows of each
    stage, int64 [stages]. Names are for the error message.

    Raises:
        UserError: when no matrix has these sums and no row where the weight is zero.
    """
    if lengths is None:
        total = np.where(weights.sum(0) > 0, weights.sum(0), 1.0)
        ends = np.rint(np.cumsum(weights / total, axis=0) * columns).astype(np.int64)
        ends[-1] = columns
        return np.diff(ends, axis=0, prepend=0)

    fitted = weights / weights.sum(1, keepdims=True) * lengths[:, None]
    for _ in range(SCALING_ROUNDS):
        fitted = scale_to_sums(fitted, columns, axis=0)
        fitted = scale_to_sums(fitted, lengths, axis=1)
    surplus = np.maximum(fitted.sum(0) / np.maximum(columns, 1), 1.0)
    rows = np.floor(fitted / surplus).astype(np.int64)

    stuck = fill_by_augmenting_paths(rows, weights > 0, lengths, columns)
    if stuck is not None:
        stages, quadrants = stuck
        names = ", ".join(stage_names[j] for j in stages)
        who = f"stages {names} together ask" if len(stages) > 1 else f"stage {names} asks"
        held = ", ".join(f"{quadrant_names[c]} {columns[c]:,}" for c in quadrants) or "none"
        raise UserError(
            f"{who} for {lengths[stages].sum():,} rows of quadrants that hold "
            f"{columns[quadrants].sum():,} ({held}), and every row is used exactly once an epoch: "
            "ask for less, add a quadrant, or leave out all lengths"
        )
    return rows


def scale_to_sums(matrix: np.ndarray, sums: np.ndarray, axis: int) -> np.ndarray:
    """Scales the lines of a matrix so that `matrix.sum(axis)` is `sums`."""
    present = matrix.sum(axis)
    return matrix * np.expand_dims(sums / np.where(present > 0, present, 1.0), axis)


def fill_by_augmenting_paths(
    rows: np.ndarray, allowed: np.ndarray, lengths: np.ndarray, columns: np.ndarray
) -> tuple[list[int], list[int]] | None:
    """Completes `rows` in place to both sums by shortest augmenting paths (maximum flow).

    Where the sums cannot be met, returns stages that ask for more than their quadrants hold, and
    those quadrants.
    """
    while True:
        # Breadth first from stages with rows missing: to any quadrant they may use, and from a full
        # quadrant to the stages that could give up some of its rows.
        taker: dict[int, int] = {}
        giver = {int(j): -1 for j in np.flatnonzero(rows.sum(1) < lengths)}
        if not giver:
            return None
        free = columns - rows.sum(0)
        end = -1
        queue = list(giver)
        for j in queue:
            for c in (int(c) for c in np.flatnonzero(allowed[j]) if c not in taker):
                taker[c] = j
                if free[c] > 0:
                    end = c
                    break
                reached = [int(k) for k in np.flatnonzero(rows[:, c]) if k not in giver]
                giver |= dict.fromkeys(reached, c)
                queue += reached
            if end >= 0:
                break
        else:
            return sorted(giver), sorted(taker)

        # Back along the path: stage j takes `c`, and gives up as much of the quadrant before it.
        path, c = [], end
        while c >= 0:
            j = taker[c]
            path.append((j, c, giver[j]))
            c = giver[j]
        moved = min(
            int(free[end]),
            int(lengths[j] - rows[j].sum()),
            *(int(rows[j, before]) for j, _, before in path if before >= 0),
        )
        for j, c, before in path:
            rows[j, c] += moved
            if before >= 0:
                rows[j, before] -= moved
