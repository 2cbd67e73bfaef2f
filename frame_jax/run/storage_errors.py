"""Tells errors of the storage or the network from errors that a file's content causes.

What cannot be read at the moment is not damaged: nothing is thrown away, moved or trained again for
it.
"""

import errno
import os

from frame_jax.errors import UserError, causes

# ENOTCONN is what a mount says whose program has died, EROFS a disk after an error.
DISK_ERRNOS = (errno.EIO, errno.ESTALE, errno.EREMOTEIO, errno.ENOTCONN, errno.EROFS)
PERMISSION_ERRNOS = (errno.EACCES, errno.EPERM)
STORAGE_ERRNOS = (
    *DISK_ERRNOS,
    *PERMISSION_ERRNOS,
    *(errno.EBUSY, errno.ETIMEDOUT, errno.ECONNABORTED, errno.ECONNRESET, errno.ECONNREFUSED),
    *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH),
)
# As libraries in C++ and HTTP clients say it.
STORAGE_ERROR_WORDS = (
    *(os.strerror(number) for number in STORAGE_ERRNOS),
    *("UNAVAILABLE", "DEADLINE_EXCEEDED", "PERMISSION_DENIED", "UNAUTHENTICATED"),
    *("HTTP response code: 5", "HTTP response code: 403", "HTTP response code: 429"),
    *("SlowDown", "ServiceUnavailable", "InternalError", "Could not connect to the endpoint"),
)


def find_storage_error(error: BaseException | None) -> BaseException | None:
    """The error, of those that `error` came from, that storage or network made; None for none."""
    innermost_by_words = None
    for cause in causes(error):
        if isinstance(cause, ConnectionError | TimeoutError):
            return cause
        if isinstance(cause, OSError) and cause.errno in STORAGE_ERRNOS:
            return cause
        if any(words in str(cause) for words in STORAGE_ERROR_WORDS):
            innermost_by_words = cause
    return innermost_by_words


def is_storage_error(error: BaseException | None) -> bool:
    """Whether an error that a read ended in came from storage or network, not from the content."""
    return find_storage_error(error) is not None


def storage_error(what: object, error: BaseException | str) -> UserError:
    """What to tell the user when `what` could not be read or written for such a reason."""
    cause = error if isinstance(error, str) else find_storage_error(error) or error
    message = str(cause).strip().splitlines()
    return UserError(
        f"{what}: the storage or the network failed "
        f"({message[0][:300] if message else repr(cause)}). "
        "Nothing is damaged as far as this tells, and nothing was changed: fix the mount, the "
        "disk, the connection or the permissions, and run the same command again"
    )


def find_disk_error(error: BaseException | None) -> UserError | None:
    """What to tell the user of an error from anywhere in the program, if a disk or a mount failed.

    Words of the network do not count here: processes of a run speak over it, too.
    """
    for cause in causes(error):
        if isinstance(cause, OSError) and cause.errno in (*DISK_ERRNOS, *PERMISSION_ERRNOS):
            return storage_error(cause.filename or "reading or writing", cause)
        if any(os.strerror(number) in str(cause) for number in DISK_ERRNOS):
            return storage_error("reading or writing", cause)
    return None
