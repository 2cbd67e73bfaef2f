"""Allots whole rows of every quadrant to every stage, with exact sums both ways."""

import numpy as np
from scipy.sparse import csgraph, csr_array

from frame_jax.errors import UserError

SCALING_ROUNDS = 200
MOST_FLOW = 1 << 30  # at one time: SciPy's flows are int32


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

    stuck = fill_by_maximum_flow(rows, weights > 0, lengths, columns)
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


def fill_by_maximum_flow(
    rows: np.ndarray, allowed: np.ndarray, lengths: np.ndarray, columns: np.ndarray
) -> tuple[list[int], list[int]] | None:
    """Completes `rows` in place to both sums by shortest augmenting paths (maximum flow).

    Where the sums cannot be met, returns stages that ask for more than their quadrants hold, and
    those quadrants.
    """
    # Nodes: a source, which gives the rows that are missing, the stages, the quadrants, a sink.
    nodes = sum(rows.shape) + 2
    stages, quadrants = slice(1, len(rows) + 1), slice(len(rows) + 1, -1)
    while (missing := lengths - rows.sum(1)).any():
        capacity = np.zeros((nodes, nodes), np.int64)
        capacity[0, stages], capacity[quadrants, -1] = missing, columns - rows.sum(0)
        capacity[stages, quadrants] = allowed * missing.sum()
        capacity[quadrants, stages] = rows.T  # which a stage can give up
        graph = csr_array(np.minimum(capacity, MOST_FLOW).astype(np.int32))
        found = csgraph.maximum_flow(graph, 0, nodes - 1, method="edmonds_karp")
        if found.flow_value == 0:
            reached = csgraph.breadth_first_order(graph, 0, return_predecessors=False) - 1
            own = sorted(int(node) for node in reached if node >= 0)
            return [n for n in own if n < len(rows)], [n - len(rows) for n in own if n >= len(rows)]
        rows += found.flow[stages, quadrants].toarray()
    return None
