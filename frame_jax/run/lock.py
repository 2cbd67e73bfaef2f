"""Keeps a run directory to one program at a time with a lock that names its holder.

The operating system frees the lock of a program that dies. Some shared file systems do not tell
one host of another's locks, and some have none; there the file itself does: its holder changes it
every BEAT_SECONDS, and a newcomer watches it for STALE_SECONDS.
"""

import contextlib
import errno
import fcntl
import itertools
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from frame_jax.errors import UserError, print_note, print_warning, storage_error
from frame_jax.run.directory import RunDirectory, require_writable
from frame_jax.run.preemption import before_exit

BEAT_SECONDS = 10.0
STALE_SECONDS = 60.0  # some file systems show another host's writes late
SETTLE_SECONDS = 2.0  # in which one of two programs that begin together learns of the other
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
TAKEN = (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES)


@contextlib.contextmanager
def hold_lock(directory: RunDirectory) -> Iterator[None]:
    """Holds the run directory against a second program.

    Raises:
        UserError: naming the program that has it, or saying that nothing can be written.
    """
    path = directory.root / "lock"
    require_writable(directory.root, "--run_directory")
    path.touch()
    with path.open("r+b") as file:
        locked = lock_file(file, directory, path)
        holder = read_holder(path)
        # Of a holder on this host the lock itself says that it has ended.
        ended = locked and holder.endswith(f" on {os.uname().nodename}")
        if holder and not ended and is_beating(path):
            raise in_use_error(directory, path)
        file.truncate(0)
        with contextlib.suppress(*(OSError,) * locked):  # as in `_beat`
            write_beat(file.fileno(), 0)
        if not locked:
            time.sleep(SETTLE_SECONDS)
            if read_holder(path) != describe_process():
                raise in_use_error(directory, path)
        end = threading.Event()
        beat = threading.Thread(target=_beat, args=(file.fileno(), end), daemon=True)
        beat.start()

        def release() -> None:
            end.set()
            beat.join()
            file.truncate(0)

        before_exit.append(release)
        try:
            yield
        finally:
            before_exit.remove(release)
            release()


def lock_file(file: BinaryIO, directory: RunDirectory, path: Path) -> bool:
    """Takes the operating system's lock; returns False where the file system has none.

    Raises:
        UserError: if another program has it, or it cannot be asked for.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in TAKEN:
            raise in_use_error(directory, path) from error
        if error.errno not in NO_LOCKS:
            raise storage_error(path, error) from error
        print_warning(
            f"the file system of {directory.root} has no locks ({error.strerror}): only what its "
            f"holder writes to {path} every {BEAT_SECONDS:.0f} s keeps a second program out"
        )
        return False
    return True


def describe_process() -> str:
    """Describes this program for the lock file."""
    return f"process {os.getpid()} on {os.uname().nodename}"


def read_holder(path: Path) -> str:
    """Reads the holder's description, `process 12 on HOST`; empty for none."""
    return path.read_text("utf-8", "replace").split("\n")[0]


def in_use_error(directory: RunDirectory, path: Path) -> UserError:
    """Error for a run directory that another program holds."""
    return UserError(
        f"{directory.root} is in use by {read_holder(path) or 'another program'}; wait for it to "
        "end, or choose another --run_directory"
    )


def is_beating(path: Path) -> bool:
    """Whether another program keeps changing the lock file, which it leaves empty when it ends."""
    print_note(f"{path} names {read_holder(path)}: waiting to see whether it lives")
    before, ends = path.read_bytes(), time.monotonic() + STALE_SECONDS
    while time.monotonic() < ends:
        time.sleep(BEAT_SECONDS / 10)
        now = path.read_bytes()
        if now != before:
            return bool(now)
    return False


def write_beat(file: int, number: int) -> None:
    """Writes the holder's description and heartbeat to the lock file."""
    os.pwrite(file, f"{describe_process()}\n{number:012d}\n".encode(), 0)
    os.fsync(file)


def _beat(file: int, end: threading.Event) -> None:
    """Writes the heartbeat, a growing number, until `end` is set."""
    for number in itertools.count():
        with contextlib.suppress(OSError):  # a full disk is no reason to give up the lock
            write_beat(file, number)
        if end.wait(BEAT_SECONDS):
            return
