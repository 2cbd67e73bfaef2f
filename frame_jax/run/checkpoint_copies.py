"""Copies checkpoints to a bucket during training and fetches them back, alike on all processes.

Process 0 copies and fetches; the others find in the run directory what it has fetched.
"""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from frame_jax.errors import UserError
from frame_jax.parallel import processes
from frame_jax.run.bucket import Bucket, bucket_of
from frame_jax.run.directory import remove
from frame_jax.run.program_exit import run_on_first_process

LOOK_SECONDS = 0.2


class CheckpointCopies:
    """The copies of the checkpoints in `folder`; does nothing for a run without a bucket.

    The newest `rolling` copies stay, and those of `kept_steps`.
    """

    def __init__(self, folder: Path, kept_steps: Sequence[int], rolling: int):
        self.folder, self._kept, self._rolling = folder, set(kept_steps), rolling
        self._bucket = bucket_of(folder.parent)
        self.exist = self._bucket is not None
        self._copying: Future[None] | None = None
        self._given_up = threading.Event()
        self._worker = ThreadPoolExecutor(1, "copy")
        if self._bucket is not None and processes.is_first():
            self._bucket.sweep()

    def begin(self, step: int) -> None:
        """Starts copying the checkpoint of a step in the background, once it is complete."""
        if self._bucket is not None and processes.is_first():
            self._copying = self._worker.submit(self._copy, self._bucket, step)

    def _copy(self, bucket: Bucket, step: int) -> None:
        while not (self.folder / str(step)).exists():
            if self._given_up.wait(LOOK_SECONDS):
                return
        bucket.put(step, self.folder / str(step))
        steps = bucket.steps()
        for old in steps[: -self._rolling]:
            if old not in self._kept:
                bucket.remove(old)

    def finish(self) -> None:
        """Waits for the copy in progress.

        Raises:
            UserError: if it could not be made.
        """
        copying, self._copying = self._copying, None
        if copying is not None:
            copying.result()

    def close(self, *, give_up: bool) -> None:
        """Ends the copying; a copy whose checkpoint will not be written is given up."""
        if give_up:
            self._given_up.set()
        try:
            if not give_up:
                self.finish()
        finally:
            self._worker.shutdown()

    def steps(self) -> list[int]:
        """Steps of the whole copies, the same on every process."""
        return [] if self._bucket is None else run_on_first_process(self._bucket.steps)

    def fetch(self, step: int, folder: Path) -> str | None:
        """Downloads the copy of a step to `folder`; returns what is wrong with a damaged copy.

        Raises:
            UserError: on every process, if the bucket cannot be read.
        """
        bucket = self._bucket
        assert bucket is not None
        return run_on_first_process(lambda: bucket.get(step, folder))

    def set_aside(self, step: int) -> None:
        """Makes a damaged copy no longer count; process 0 only."""
        if self._bucket is not None and step in self._bucket.steps():
            self._bucket.set_aside(step)


@contextlib.contextmanager
def local_checkpoint_folder(folder: Path, step: int) -> Iterator[Path]:
    """Yields a folder with the checkpoint of a step: the run's own, or a temporary download.

    `folder` is the `checkpoints` folder of a training run.

    Raises:
        UserError: if the bucket cannot be read, or the copy there is damaged.
    """
    copies = None if (folder / str(step)).exists() else CheckpointCopies(folder, (), 1)
    if copies is None or step not in copies.steps():
        yield folder
        return
    fetched = folder.with_name(".tmp-fetched")
    try:
        damage = copies.fetch(step, fetched / str(step))
        if damage is not None:
            raise UserError(f"{damage}: take another checkpoint, or train this model again")
        yield fetched
        processes.barrier("the fetched checkpoint is read")
    finally:
        if processes.is_first():
            remove(fetched)
