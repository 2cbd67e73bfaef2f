"""One line a step into `metrics.jsonl`, a point now and then into TensorBoard. Process 0 only."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from frame_jax.errors import UserError
from frame_jax.run_directory import atomic_path


class MetricsLog:
    """Appends records of steps; on resuming, forgets steps that will run again.

    Args:
        folder: `metrics.jsonl` and `tensorboard/` go here.
        first_step: Records of this step and later ones are dropped.
        every: Steps between TensorBoard points.
    """

    def __init__(self, folder: Path, first_step: int, every: int):
        from tensorboardX import SummaryWriter

        self._every = every
        path = folder / "metrics.jsonl"
        keep_steps_before(path, first_step)
        self._file = path.open("a", encoding="utf-8", buffering=1)  # whole lines, at once
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step)

    def write(self, record: dict[str, Any]) -> None:
        """Adds one step's record; `step`, `stage` and `mixture` are not scalars of the board."""
        self._file.write(json.dumps(record) + "\n")
        step = record["step"]
        if step % self._every == 0:
            for name, value in record.items():
                if isinstance(value, int | float) and name != "step":
                    self._board.add_scalar(f"train/{name}", value, step)
            for cell, share in record["mixture"].items():
                self._board.add_scalar(f"mixture/{cell}", share, step)

    def flush(self) -> None:
        """Puts all records where a machine that dies cannot lose them."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
        self._board.close()


def keep_steps_before(path: Path, step: int) -> None:
    """Drops the records of `step` and later ones, and a last line that was cut short."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        return
    with (
        atomic_path(path) as temporary,
        temporary.open("w", encoding="utf-8") as kept,
        path.open(encoding="utf-8") as lines,
    ):
        for line in lines:
            if line.endswith("\n") and step_of(line, path) < step:
                kept.write(line)


def step_of(line: str, path: Path) -> int:
    """The step that a line of `path` is about."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: correct or remove this line: {line[:80]!r}") from error
