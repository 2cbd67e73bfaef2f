"""Writes a line a step to `metrics.jsonl` (docs/metrics.md), and some of them to trackers.

Process 0 only. The setting `tracker: module:function` names the function that opens a tracker of
the user's, called as `function(name, folder, config)`: the run's phase step such as
`pretrain-frame`, its folder, and all settings as a nested dict. What it returns has the two methods
of `Tracker`.
"""

import copy
import functools
import importlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, Self

from frame_jax.config.run import RunConfig
from frame_jax.config.settings import settings_to_write
from frame_jax.errors import UserError, print_warning
from frame_jax.run.directory import atomic_path, explain_full_disk, read_json, write_json

Record = dict[str, Any]  # a line of metrics.jsonl, see docs/metrics.md


class Tracker(Protocol):
    """Receives records of steps, such as a web service for experiments."""

    def write(self, record: Record) -> None:
        """Receives the record of a step; steps rise from call to call, and from start to start."""

    def close(self) -> None:
        """Ends this attempt, finished or not."""


MakeTracker = Callable[[], Tracker]


def import_function(path: str) -> Callable[[str, Path, dict[str, Any]], Tracker]:
    """Imports the function that `module:function` names.

    Raises:
        UserError: if there is no such thing, or its module cannot be imported.
    """
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:
        raise UserError(
            f"tracker: {path} cannot be imported ({type(error).__name__}: {error}); name a "
            "function as module:function, in an installed module or one in the working directory"
        ) from error


def tracker_opener(config: RunConfig, name: str, folder: Path) -> MakeTracker | None:
    """A function that opens the tracker of a training run; None where the config names none."""
    if config.tracker is None:
        return None
    return functools.partial(
        import_function(config.tracker), name, folder, settings_to_write(config)
    )


class TrackerFollower:
    """Sends each step to a tracker at most once; its failures do not stop training.

    Steps that run again after an interruption were sent already. `tracked.json` holds the last of
    them: everything up to the last line that `metrics.jsonl` had when the run was started again.

    `last_written` is the last step in `metrics.jsonl` before any line of it is dropped, -1 for
    none; `first_step` is the first of this attempt.
    """

    def __init__(self, make: MakeTracker, folder: Path, last_written: int, first_step: int):
        path = folder / "tracked.json"
        sent = max(read_json(path)["step"], last_written) if path.exists() else first_step - 1
        write_json(path, {"step": sent})
        self._sent, self._failed = sent, False
        self._tracker: Any = self._guard(make)

    def write(self, record: Record) -> None:
        if record["step"] > self._sent:
            self._guard(lambda: self._tracker.write(copy.deepcopy(record)))

    def close(self) -> None:
        self._guard(lambda: self._tracker.close())

    def _guard(self, call: Callable[[], Any]) -> Any:
        """Its result; after any failure a warning, and no further call."""
        if self._failed:
            return None
        try:
            return call()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # somebody else's code, which may call sys.exit
            self._failed = True
            print_warning(
                f"the tracker has failed ({type(error).__name__}: {error}) and is left out until "
                "the next start; metrics.jsonl goes on"
            )
            return None


class TensorBoard:
    """Writes scalars in groups: of the phase, of each of its stages, and of the mixture.

    Points of `first_step` and later ones, of an earlier attempt, are dropped.
    """

    def __init__(self, folder: Path, phase: str, first_step: int):
        from tensorboardX import SummaryWriter

        self._phase = phase
        # Files are named by the second; the suffix keeps a quick restart off its own past.
        self._writer = SummaryWriter(
            str(folder / "tensorboard"),
            purge_step=first_step,
            filename_suffix=f".{first_step:012d}",
        )

    def write(self, record: Record) -> None:
        step, stage = record["step"], re.sub(r"[^\w.-]", "_", record["stage"])
        for name, value in record.items():
            if isinstance(value, int | float) and name != "step":
                self._writer.add_scalar(f"{self._phase}/{name}", value, step)
                if name in ("loss", "grad_norm"):
                    self._writer.add_scalar(f"{self._phase}.{stage}/{name}", value, step)
            elif isinstance(value, list):  # of layers
                for layer, number in enumerate(value):
                    if number is not None:
                        self._writer.add_scalar(f"{self._phase}.{name}/{layer}", number, step)
        for quadrant, share in record["mixture"].items():
            self._writer.add_scalar(f"{self._phase}.mixture/{quadrant}", share, step)

    def flush(self) -> None:
        """Writes all points to the disk."""
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class MetricsLog:
    """Appends records of steps; on resuming, drops those of steps that will run again.

    A context manager, which closes the trackers. `metrics.jsonl` and `tensorboard/` go into
    `folder`; records of `first_step` and later ones are dropped. One of `every` records goes to
    TensorBoard, as scalars of the group `phase`, and to the tracker that `make_tracker` opens.
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
        with explain_full_disk(self._path):
            self._file.write(json.dumps(record) + "\n")
        if record["step"] % self._every == 0:
            for tracker in self._trackers:
                tracker.write(record)

    def flush(self) -> None:
        """Writes all records through to the disk, where they survive the machine's end."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._board.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
        for tracker in self._trackers:
            tracker.close()


def keep_steps_before(path: Path, step: int) -> int:
    """Drops the records of `step` and later ones, and a last line that was cut short; returns the
    largest step that the file had, -1 for none."""
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
            found = int(parse_record(line, path)["step"])
            last = max(last, found)
            if found < step:
                kept.write(line)
    return last


def parse_record(line: str, path: Path) -> Record:
    """The record of a step in a line of `path`.

    Raises:
        UserError: if it is none.
    """
    try:
        record: Record = json.loads(line)
        int(record["step"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: correct or remove this line: {line[:80]!r}") from error
    return record
