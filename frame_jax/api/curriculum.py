"""Public function that iterates over training rows in the order of a curriculum."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from frame_jax.config.curriculum import CurriculumConfig, StageConfig
from frame_jax.config.quadrants import AxesConfig
from frame_jax.curriculum.presets import expand_curriculum, preset_stages
from frame_jax.curriculum.selection import SelectionMap
from frame_jax.curriculum.stages import resolve_curriculum
from frame_jax.errors import UserError

CHUNK_ROWS = 4096  # of an order, computed together


def curriculum_order(
    quadrant_rows: Mapping[str, int],
    order: str | Sequence[Mapping[str, Any]],
    *,
    axes: tuple[int, int] = (2, 2),
    transition: Literal["sigmoid", "hard"] | None = None,
    width: float | None = None,
    folds: int | None = None,
    epochs: int = 1,
    batch_size: int = 1,
    sequence_length: int = 1,
    steps: int | None = None,
    seed: int = 0,
    start: int = 0,
) -> Iterator[tuple[str, int]]:
    """Iterates over the rows of all quadrants in the order of a curriculum.

    Every row comes exactly once an epoch. With the settings of a run the order is the one in which
    that run trains; nothing is stored, so it may start anywhere.

    Args:
        quadrant_rows: Rows of each quadrant.
        order: A preset, such as `frame` or `random`, or stages as in a config, such as
            `[{"weights": {"Q3": 1}, "fraction": 0.3}, ...]`.
        axes: Bins of PPL and of PD, which name the quadrants.
        transition: How stages join; None takes the preset's, or `sigmoid`.
        width: Share of an epoch that a sigmoid transition takes; None takes the preset's, or 0.05.
        folds: Passes through the stages; None takes the preset's, or 1.
        epochs: Times that the whole order is repeated.
        batch_size: Rows of a step, where lengths are given in steps.
        sequence_length: Tokens of a row, where lengths are given in tokens.
        steps: Steps of the whole order; None goes through all rows.
        seed: Of the shuffles.
        start: The first row that is given, counted from 0.

    Yields:
        The name of a quadrant, and the index of a row among that quadrant's.

    Raises:
        UserError: for an order or a quadrant that does not exist, or lengths that cannot be had.

    Examples:
        >>> import frame_jax
        >>> rows = {"Q1": 2, "Q2": 1, "Q3": 2, "Q4": 1}
        >>> order = list(frame_jax.curriculum_order(rows, "frame", transition="hard"))
        >>> [quadrant for quadrant, _ in order]
        ['Q3', 'Q3', 'Q4', 'Q1', 'Q1', 'Q2']
        >>> sorted(order) == [(name, row) for name, n in rows.items() for row in range(n)]
        True
    """
    grid = AxesConfig(*axes)
    presets = preset_stages(grid)
    if isinstance(order, str) and order not in presets:
        raise UserError(f"there is no preset {order!r}; there are {', '.join(presets)}")
    unknown = [name for name in quadrant_rows if name not in grid.quadrants]
    if unknown:
        raise UserError(
            f"there is no quadrant {', '.join(unknown)}; there are {', '.join(grid.quadrants)}"
        )
    curriculum = CurriculumConfig(
        preset=order if isinstance(order, str) else None,  # type: ignore[arg-type]
        stages=[] if isinstance(order, str) else [StageConfig(**stage) for stage in order],
        transition=transition,
        width=width,
        folds=folds,
        epochs=epochs,
    )
    expanded = expand_curriculum(curriculum, grid)
    schedule = resolve_curriculum(
        expanded,
        {name: quadrant_rows.get(name, 0) for name in grid.quadrants},
        batch_size=batch_size,
        sequence_length=sequence_length,
        steps=steps,
    )
    return _rows_in_order(SelectionMap(schedule, seed, expanded.shuffle), start)


def _rows_in_order(selection: SelectionMap, start: int) -> Iterator[tuple[str, int]]:
    names = selection.schedule.quadrants
    for first in range(start, len(selection), CHUNK_ROWS):
        indices = np.arange(first, min(first + CHUNK_ROWS, len(selection)))
        quadrants, rows = selection.select(indices)
        for quadrant, row in zip(quadrants.tolist(), rows.tolist(), strict=True):
            yield names[quadrant], row
