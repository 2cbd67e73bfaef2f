"""An error in; whether the storage or the network is at fault, rather than a file, out.

What cannot be read at the moment is not damaged: nothing is thrown away, moved or trained again for
it.
"""

from __future__ import annotations

import errno
import os

from frame_jax.errors import UserError

# ENOTCONN is what a mount says whose program has died.
DISKS = (errno.EIO, errno.ESTALE, errno.EREMOTEIO, errno.ENOTCONN)
RIGHTS = (errno.EACCES, errno.EPERM)
FAULTS = (
    *DISKS,
    *RIGHTS,
    *(errno.EBUSY, errno.ETIMEDOUT, errno.ECONNABORTED, errno.ECONNRESET, errno.ECONNREFUSED),
    *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH),
)
# As libraries in C++ and HTTP clients say it.
WORDS = (
    *(os.strerror(number) for number in FAULTS),
    *("UNAVAILABLE", "DEADLINE_EXCEEDED", "PERMISSION_DENIED", "UNAUTHENTICATED"),
    *("HTTP response code: 5", "HTTP response code: 403", "HTTP response code: 429"),
    *("SlowDown", "ServiceUnavailable", "InternalError", "Could not connect to the endpoint"),
)


def fault_in(error: BaseException | None) -> BaseException | None:
    """The error, of those that `error` came from, that storage or network made; None for none."""
    if error is None or isinstance(error, UserError):
        return None
    if isinstance(error, ConnectionError | TimeoutError):
        return error
    if isinstance(error, OSError) and error.errno in FAULTS:
        return error
    inner = fault_in(error.__cause__ or error.__context__)
    if inner is not None:
        return inner
    return error if any(words in str(error) for words in WORDS) else None


def is_fault(error: BaseException | None) -> bool:
    """Whether an error that a read ended in came from storage or network, not from the content."""
    return fault_in(error) is not None


def fault(what: object, error: BaseException | str) -> UserError:
    """What to tell the user when `what` could not be read or written for such a reason."""
    cause = error if isinstance(error, str) else fault_in(error) or error
    said = str(cause).strip().splitlines()
    return UserError(
        f"{what}: the storage or the network failed ({said[0][:300] if said else repr(cause)}). "
        "Nothing is damaged as far as this tells, and nothing was changed: mend the mount, the "
        "disk, the connection or the permissions, and run the same command again"
    )


def disk_fault(error: BaseException | None) -> UserError | None:
    """What to tell the user of an error from anywhere in the program, if a disk or a mount failed.

    Words of the network do not count here: processes of a run speak over it, too.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in (*DISKS, *RIGHTS):
            return fault(error.filename or "reading or writing", error)
        if any(os.strerror(number) in str(error) for number in DISKS):
            return fault("reading or writing", error)
        error = error.__cause__ or error.__context__
    return None
