"""Writes a line a step to `metrics.jsonl` (docs/metrics.md), and some of them to trackers.

Process 0 only.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from frame_jax.errors import UserError
from frame_jax.run.directory import atomic_path, explain_append_errors
from frame_jax.training.trackers import MakeTracker, TensorBoard, TrackerFollower


class MetricsLog:
    """Appends records of steps; on resuming, drops those of steps that will run again.

    A context manager, which closes the trackers.

    Args:
        folder: `metrics.jsonl` and `tensorboard/` go here.
        first_step: Records of this step and later ones are dropped.
        every: Steps between records that go to TensorBoard and the tracker.
        phase: The group of its scalars on TensorBoard.
        make_tracker: Opens the user's tracker; None for none.
    """

    def __init__(
        self,
        folder: Path,
        first_step: int,
        *,
        every: int,
        phase: str,
        make_tracker: MakeTracker | None = None,
    ):
        self._every, self._path = every, folder / "metrics.jsonl"
        last = keep_steps_before(self._path, first_step)
        self._file = self._path.open("a", encoding="utf-8", buffering=1)  # whole lines, at once
        self._board = TensorBoard(folder, phase, first_step)
        self._trackers: list[TensorBoard | TrackerFollower] = [self._board]
        if make_tracker is not None:
            self._trackers.append(TrackerFollower(make_tracker, folder, last, first_step))

    def write(self, record: dict[str, Any]) -> None:
        """Adds one step's record."""
        with explain_append_errors(self._path):
            self._file.write(json.dumps(record) + "\n")
        if record["step"] % self._every == 0:
            for tracker in self._trackers:
                tracker.write(record)

    def flush(self) -> None:
        """Writes all records through to the disk, where they survive the machine's end."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._board.flush()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
        for tracker in self._trackers:
            tracker.close()


def keep_steps_before(path: Path, step: int) -> int:
    """Drops the records of `step` and later ones, and a last line that was cut short.

    Returns:
        The largest step that the file had; -1 for none.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    last = -1
    if not path.exists():
        return last
    with (
        atomic_path(path) as temporary,
        temporary.open("w", encoding="utf-8") as kept,
        path.open(encoding="utf-8") as lines,
    ):
        for line in lines:
            if not line.endswith("\n"):
                continue
            found = step_of(line, path)
            last = max(last, found)
            if found < step:
                kept.write(line)
    return last


def step_of(line: str, path: Path) -> int:
    """The step of a line of `path`."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: correct or remove this line: {line[:80]!r}") from error
