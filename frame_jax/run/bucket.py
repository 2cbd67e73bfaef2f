"""Stores checkpoints of a training run in a bucket (gs://, s3://), whole or not at all.

Orbax writes a checkpoint into the run directory, where it is whole when it has its name; a copy of
it then goes to `checkpoint_root`. Orbax itself writes arrays to gs:// but not to s3:// (0.12.8
takes such a path for a local one), so both go this one way. BUCKET/<step>/whole.json names every
file of a copy with its size and hash, and is written last: a copy without it does not count.

`RUN/<phase step's folder>/checkpoints.txt` says where the copies are, for every later reader.
"""

import contextlib
import json
import secrets
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from frame_jax.errors import UserError
from frame_jax.retries import AbsentError, open_filesystem, retry
from frame_jax.run.directory import RunDirectory, atomic_path, file_sha256, new_folder
from frame_jax.run.phases import PhaseStep

T = TypeVar("T")

WHOLE, DAMAGED = "whole.json", "damaged.json"
ADVICE = (
    "fix the credentials, the bucket or the connection and run the same command again; nothing "
    "that was there is lost"
)


class Bucket:
    """The copies of one training run's checkpoints under `url`.

    Raises:
        UserError: from every method, naming bucket, key and cause, where the bucket cannot be used.
    """

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        self._files = open_filesystem(url, skip_instance_cache=True, use_listings_cache=False)

    def _try(self, key: str, call: Callable[[str], T]) -> T:
        """Calls `call` with the full name of `key`, and again while its faults may pass.

        Raises:
            AbsentError: where there is no such object.
        """
        name = f"{self.url}/{key}".rstrip("/")
        return retry(f"checkpoint_root: {name}", "used", lambda: call(name), advice=ADVICE)

    def _write(self, key: str, call: Callable[[str], object]) -> None:
        """As `_try`, for writes, where a missing object means that the bucket itself is missing."""
        try:
            self._try(key, call)
        except AbsentError as error:
            raise UserError(
                f"checkpoint_root: {self.url}/{key} cannot be written ({error}): {ADVICE}"
            ) from error

    def _names(self, key: str = "") -> list[str]:
        """Names directly under `key`."""
        try:
            found = self._try(key, lambda name: self._files.ls(name, detail=False))
        except AbsentError:
            return []
        return [str(name).rstrip("/").rsplit("/", 1)[-1] for name in found]

    def try_out(self) -> None:
        """Writes, reads and removes a small object."""
        key, content = f"probe-{secrets.token_hex(8)}", b"frame_jax"
        self._write(key, lambda name: self._files.pipe_file(name, content))
        if self._try(key, self._files.cat_file) != content:
            raise UserError(f"checkpoint_root: {self.url} does not give back what was written")
        self._try(key, self._files.rm_file)

    def steps(self) -> list[int]:
        """Steps of the whole copies, ascending."""
        steps = [int(name) for name in self._names() if name.isdigit()]
        return sorted(step for step in steps if WHOLE in self._names(str(step)))

    def put(self, step: int, folder: Path) -> None:
        """Copies the finished checkpoint in `folder`."""
        whole = {}
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            name = file.relative_to(folder).as_posix()
            self._write(f"{step}/{name}", partial(self._files.put_file, str(file)))
            whole[name] = [file.stat().st_size, file_sha256(file)]
        content = json.dumps(whole, indent=1).encode()
        self._write(f"{step}/{WHOLE}", lambda key: self._files.pipe_file(key, content))

    def get(self, step: int, folder: Path) -> str | None:
        """Makes `folder` from the copy of a step; it appears when it is whole. Returns what is
        wrong with a copy that does not hold what was put there."""
        try:
            with new_folder(folder, "--run_directory") as temporary:
                whole = json.loads(self._try(f"{step}/{WHOLE}", self._files.cat_file))
                for name, described in whole.items():
                    file = temporary / name
                    file.parent.mkdir(parents=True, exist_ok=True)
                    self._try(f"{step}/{name}", partial(self._files.get_file, lpath=str(file)))
                    if [file.stat().st_size, file_sha256(file)] != described:
                        raise ValueError(f"{name} is not what was put there")
        except (AbsentError, ValueError) as error:
            return f"the copy in {self.url}/{step} is not whole: {error}"
        return None

    def remove(self, step: int) -> None:
        """Removes a copy, beginning with the file that makes it count."""
        for name in (WHOLE, ""):
            with contextlib.suppress(AbsentError):
                self._try(f"{step}/{name}", lambda key: self._files.rm(key, recursive=True))

    def set_aside(self, step: int) -> None:
        """Makes a copy no longer count, without removing it."""
        content = self._try(f"{step}/{WHOLE}", self._files.cat_file)
        self._try(f"{step}/{DAMAGED}", lambda key: self._files.pipe_file(key, content))
        self._try(f"{step}/{WHOLE}", self._files.rm_file)

    def sweep(self) -> None:
        """Removes incomplete copies that killed programs left."""
        for name in self._names():
            if name.isdigit() and not {WHOLE, DAMAGED} & set(self._names(name)):
                self.remove(int(name))

    def clear(self) -> None:
        """Removes everything."""
        for step in sorted(int(name) for name in self._names() if name.isdigit()):
            self.remove(step)


def pointer_file(training_folder: Path) -> Path:
    """The file in a training run's folder that names the bucket of its copies."""
    return training_folder / "checkpoints.txt"


def bucket_of(training_folder: Path) -> Bucket | None:
    """The bucket with the copies of a training run's checkpoints; None if it has none."""
    path = pointer_file(training_folder)
    return Bucket(path.read_text("utf-8").strip()) if path.exists() else None


def record_buckets(
    directory: RunDirectory, phase_steps: Sequence[PhaseStep], root: str | None
) -> None:
    """Records for each training run where its copies go, and tries the bucket; process 0 only.

    Raises:
        UserError: if the bucket cannot be used, or a run that has begun has its copies elsewhere.
    """
    for phase_step in phase_steps:
        if not phase_step.function.startswith("training."):
            continue
        folder = directory.root / phase_step.outputs[0]
        url = None if root is None else f"{root.rstrip('/')}/{phase_step.outputs[0]}/checkpoints"
        before = bucket_of(folder)
        if url == (before and before.url):
            continue
        if before is not None and (steps := before.steps()):
            raise UserError(
                f"checkpoint_root: {phase_step.name} has begun, with checkpoints of steps "
                f"{', '.join(map(str, steps))} in {before.url}, and this run names "
                f"{url or 'no bucket'}. Set checkpoint_root as before, move those objects there, "
                f"or train it from the start (--redo {phase_step.name})"
            )
        if url is None:
            pointer_file(folder).unlink()
            continue
        Bucket(url).try_out()
        with atomic_path(pointer_file(folder)) as temporary:
            temporary.write_text(f"{url}\n", "utf-8")
