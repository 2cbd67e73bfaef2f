"""Paths of everything in a run directory; files, JSON too, that appear whole or not at all."""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from frame_jax.config.paths import scheme_of, user_path
from frame_jax.errors import UserError, is_disk_full

T = TypeVar("T")


class RunDirectory:
    """Paths under one run directory: the contract between phases.

    A phase reads what earlier phases wrote here and nothing else of theirs.

    Raises:
        UserError: for a URL.
    """

    def __init__(self, root: str | Path):
        if scheme_of(str(root)) is not None:
            raise UserError(
                f"run_directory: {root} is a URL, and a run directory is a folder of this machine "
                "or of a network file system. Keep it local and send the checkpoints of training "
                f"there (--checkpoint_root {root}), or mount the bucket and name the mount's "
                "folder; docs/storage.md says what a mount must be able to do"
            )
        self.root = user_path(root)
        self.config = self.root / "config.yaml"
        self.tokenizer = self.root / "tokenizer" / "tokenizer.json"
        self.tokens = self.root / "tokens"
        self.rejected = self.tokens / "rejected.jsonl"
        self.scores = self.root / "scores"
        self.reliability = self.root / "reliability"
        self.quadrants = self.root / "quadrants"
        self.partition = self.quadrants / "partition.json"
        self.assignment = self.quadrants / "assignment.parquet"
        self.manifests = self.root / "manifest"
        self.report = self.root / "report"

    def reference(self, name: str) -> Path:
        """Folder of a trained model (`weak`, `strong`) or of the rows that train them (`rows`)."""
        return self.root / "reference" / name

    def pretrain(self, trial: str) -> Path:
        return self.root / "pretrain" / trial

    def evaluation(self, trial: str) -> Path:
        return self.root / "evaluation" / f"{trial}.json"

    def manifest(self, trial: str) -> Path:
        """Default folder for the manifest of an order."""
        return self.manifests / trial

    def marker(self, phase_step: str) -> Path:
        return self.root / f"{phase_step}.json"


def part_name(index: int, count: int, suffix: str) -> str:
    """`part-00003-of-00008.parquet` for index 3 of 8 parts."""
    return f"part-{index:05d}-of-{count:05d}{suffix}"


def list_parts(folder: Path, suffix: str) -> list[Path]:
    """The parts in a folder, in order of their index."""
    return sorted(folder.glob(f"part-*-of-*{suffix}"))


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path; renames it to `path` when the block succeeds, removes it otherwise.

    The content reaches the disk before the rename, so that a name that exists is a whole file. The
    temporary name keeps the suffix, because some writers choose a format by it.

    Raises:
        UserError: if the disk is full, with what is known of the bytes needed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{os.uname().nodename}-{os.getpid()}-{path.name}")
    try:
        with explain_full_disk(path, written=temporary):
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: Path, option: str = "--out") -> Iterator[Path]:
    """Yields a temporary folder, which becomes `path` when the block succeeds, and is removed else.

    `option` is what chose it, for messages.

    Raises:
        UserError: if nothing can be written there, or the disk is full.
    """
    require_writable(path.parent, option)
    temporary = path.with_name(f".tmp-{path.name}")
    remove(temporary)
    temporary.mkdir()
    try:
        with explain_full_disk(path, written=temporary):
            yield temporary
            temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def file_sha256(path: Path) -> str:
    """A file's SHA-256 in hexadecimal."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, hashlib.sha256).hexdigest()


def require_writable(folder: Path, option: str) -> None:
    """Makes a folder, with its parents, and tries to write into it.

    Raises:
        UserError: naming the option that chose it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(
            f"{option}: nothing can be written to {folder} ({error}); choose another {option}"
        ) from error


@contextlib.contextmanager
def explain_full_disk(
    path: Path, size: int | None = None, *, written: Path | None = None
) -> Iterator[None]:
    """Context that turns a full disk into an error naming the file or folder that did not fit, of
    `size` bytes or as large as what is there: at `path`, or at the temporary path `written`."""
    try:
        yield
    except Exception as error:
        if not is_disk_full(error) and not is_disk_full(error.__cause__):
            raise
        there = written or path
        files = (file for file in (there, *there.rglob("*")) if file.is_file())
        size = sum(file.stat().st_size for file in files) if size is None else size
        raise no_room_error(path, size) from error


def no_room_error(path: Path, written: int) -> UserError:
    """What to tell the user when `path` could not be written, but for `written` bytes of it."""
    free = shutil.disk_usage(path.parent).free
    kept = "; every finished part is kept" if path.name.startswith("part-") else ""
    return UserError(
        f"no room to write {path}: it needs more than {written:,} bytes, and {free:,} are free (a "
        f"quota or a limit on file sizes may be lower). Make room and run the same command again"
        f"{kept}"
    )


def how_to_remake(root: Path, path: Path, phase_step: str) -> str:
    """The command that makes a damaged file of a phase step again.

    A part is made again by itself; the result is the same, so what was made from it stays.
    """
    if path.name.startswith("part-"):
        stem = path.name.split(".")[0]
        remedy = f"remove it (rm {path.with_name(stem)}.* {root / phase_step}.json)"
    else:
        remedy = f"say so (--redo {phase_step})"
    return f"To have it made again, {remedy} and run the same command"


def remove_temporaries(root: Path, *, apart: Path | None = None) -> None:
    """Removes what killed programs left under temporary names in `root`, except in the folder
    `apart`; no program may be writing there."""
    for path in list(root.rglob(".tmp-*")):
        if apart not in path.parents:
            remove(path)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(
            json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8"
        )


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        UserError: if the file is damaged.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(
            f"{path} is damaged ({error}); have it made again with --redo of its phase"
        ) from error


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file that came with a model or a tokenizer.

    Raises:
        UserError: if there is none.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); fetch it again") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} does not hold an object; fetch it again")
    return value


def mark_for_removal(path: Path) -> None:
    """Renames a file or a folder, if it exists, so that `remove_temporaries` removes it."""
    if path.exists():
        doomed = path.with_name(f".tmp-discarded-{path.name}")
        remove(doomed)
        path.rename(doomed)


def remove(path: Path) -> None:
    """Removes a file or a folder, if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_dataclass(path: Path, value: Any) -> None:
    """Writes a dataclass instance as an indented JSON object, atomically."""
    write_json(path, dataclasses.asdict(value))


def read_dataclass(path: Path, kind: type[T]) -> T:
    """Reads an instance of the dataclass `kind` that `write_dataclass` wrote.

    Raises:
        UserError: if the file is damaged, lacks a field of `kind` that has no default, or has a
            field that `kind` does not have.
    """
    value = read_json(path)
    try:
        return from_json(kind, value)
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not as this release writes it ({error}); have it made again with --redo of "
            "its phase"
        ) from error


def from_json(kind: Any, value: Any) -> Any:
    """Converts what `json.loads` gives to an annotated type: a dataclass, `tuple[X, ...]`,
    `list[X]`, `dict[str, X]`, `X | None`, or one that JSON has, whose values are taken as they are.
    """
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        fields = {name: from_json(hints[name], item) for name, item in value.items()}
        return typing.cast(Any, kind)(**fields)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return None if value is None else from_json(arguments[0], value)
    if origin in (list, tuple):
        return origin(from_json(arguments[0], item) for item in value)
    if origin is dict:
        return {key: from_json(arguments[1], item) for key, item in value.items()}
    return value
