"""Checks that the file system of a run directory can do what a run needs, and refuses it otherwise.

docs/storage.md says what that is, and which mounts of object stores have it.
"""

import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from frame_jax.errors import UserError, is_disk_full
from frame_jax.parallel import processes
from frame_jax.run.directory import RunDirectory, no_room_error, require_writable
from frame_jax.run.program_exit import run_on_first_process
from frame_jax.sql import UNREADABLE

SEEN_SECONDS = 20.0  # in which what one host writes must be seen by the others

OLD, NEW = b"one line\n", b"another\n"


def check_storage(directory: RunDirectory) -> None:
    """Tries what a run will do to its directory on process 0, and whether all processes see it.

    Called on every process. Nothing is left behind.

    Raises:
        UserError: on every process, saying what cannot be done or which processes see another
            folder.
    """
    if UNREADABLE.search(str(directory.root.absolute())) is not None:
        raise UserError(
            f"run_directory: {directory.root}: DuckDB reads no path with both a backslash and one "
            "of * ? [; choose another --run_directory"
        )
    prepare_on_all_processes(
        directory.root,
        lambda: probe_file_system(directory.root),
        "run_directory",
        "All processes of a run need one and the same folder, on a file system that all hosts "
        "share: name it with --run_directory",
    )


def prepare_on_all_processes(
    folder: Path, prepare: Callable[[], None], key: str, remedy: str
) -> None:
    """Prepares a folder on process 0 and checks that all processes see the same folder.

    Called on every process.

    `prepare` makes it, and refuses one that is of no use; `key` is the setting or option that names
    it, `remedy` what to do where a process has another folder of that name, both for messages.

    Raises:
        UserError: on every process, saying what `prepare` does or which processes see another
            folder.
    """
    trace = folder / f".tmp-seen-{processes.broadcast_from_first(secrets.randbits(48)):x}"

    def begin() -> None:
        prepare()
        if processes.process_count() > 1:
            trace.write_bytes(NEW)

    run_on_first_process(begin)
    ends = time.monotonic() + SEEN_SECONDS  # some network file systems show a new name late
    while not (seen := processes.is_first() or trace.exists()) and time.monotonic() < ends:
        time.sleep(0.1)
    blind = processes.failing_processes(seen, os.uname().nodename)
    if processes.is_first() and processes.process_count() > 1:
        trace.unlink(missing_ok=True)
    if blind:
        names = ", ".join(f"{index} (on {host})" for index, host in sorted(blind.items()))
        raise UserError(
            f"{key}: process {names} did not see within {SEEN_SECONDS:.0f} s what process 0 wrote "
            f"to {folder.absolute()}. {remedy}"
        )


def probe_file_system(root: Path) -> None:
    """Does to a scratch folder in `root` what a run does to its files.

    Raises:
        UserError: naming the first thing that fails.
    """
    scratch = root / f".tmp-probe-{os.getpid()}-{secrets.token_hex(4)}"
    require_writable(root, "--run_directory")
    scratch.mkdir()
    what = ""
    try:
        for what in use_files(scratch):  # noqa: B007
            pass
    except OSError as error:
        if is_disk_full(error):
            raise no_room_error(root, len(OLD)) from error
        raise UserError(
            f"run_directory: the file system of {root} cannot {what} ({error}). A run "
            "needs that: choose a --run_directory on a disk or a network file system, or "
            "mount the bucket with other options (docs/storage.md). Checkpoints of "
            "training can go to a bucket on their own: --checkpoint_root"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def expect_content(path: Path, content: bytes) -> None:
    """Raises `OSError` unless a file holds the expected bytes."""
    found = path.read_bytes()
    if found != content:
        raise OSError(f"{len(content)} bytes were written, {len(found)} others came back")


def use_files(scratch: Path) -> Iterator[str]:
    """Does to files in an empty folder what a run does, and yields before each act what it is.

    Raises:
        OSError: where the file system refuses, or gives back something else.
    """
    yield "write and flush a file and read it back"  # as `atomic_path` does
    path = scratch / "file"
    with path.open("wb") as file:
        file.write(OLD)
        file.flush()
        os.fsync(file.fileno())
    expect_content(path, OLD)
    yield "rename a file over another"
    (scratch / "new").write_bytes(NEW)
    (scratch / "new").replace(path)
    expect_content(path, NEW)
    if (scratch / "new").exists():
        raise OSError("the old name is still there")
    yield "append to a file"  # as metrics.jsonl grows
    with path.open("ab") as file:
        file.write(OLD)
        file.flush()
        os.fsync(file.fileno())
    expect_content(path, NEW + OLD)
    yield "change a file in place"  # as the lock's heartbeat and DuckDB's spilling do
    with path.open("r+b") as file:
        os.pwrite(file.fileno(), OLD[:3], 2)
        os.fsync(file.fileno())
        file.truncate(len(NEW))
    expect_content(path, NEW[:2] + OLD[:3] + NEW[5:])
    yield "rename a folder"  # as a checkpoint gets its name when it is whole
    (scratch / "folder").mkdir()
    (scratch / "folder" / "inside").write_bytes(OLD)
    (scratch / "folder").rename(scratch / "moved")
    expect_content(scratch / "moved" / "inside", OLD)
    yield "list what was written"  # as parts are found
    names = sorted(path.name for path in scratch.iterdir())
    if names != ["file", "moved"]:
        raise OSError(f"it lists {names}")
    yield "remove files and folders"
    path.unlink()
    shutil.rmtree(scratch / "moved")
    if list(scratch.iterdir()):
        raise OSError("what was removed is still there")
