"""`UserError`, which means "the input is wrong, not the program", how it is shown, and what an
error came from: a full disk, storage or network that fail, or a file's content.

What cannot be read at the moment is not damaged: nothing is thrown away, moved or trained again for
it.

Library code logs: notes at the level INFO, warnings at WARNING, to loggers below `frame_jax`. A
program that is started from a command line shows them as lines on stderr (`log_to_stderr`).
"""

import errno
import logging
import os
import re
import sys
import unicodedata
from collections.abc import Iterator

USAGE_ERROR = 2  # exit code of every UserError
WEB_ADDRESS = re.compile(  # with a password before the host, and a query up to what follows it
    r"""(https?://)(?:[^\s/@?'"]*@)?([^\s?'"]*)(?:\?[^\s'"]*[^\s'":;,)])?""", re.IGNORECASE
)

FULL_DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
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


class UserError(Exception):
    """Bad input: a config, a record, a checkpoint, a run directory.

    The message says what is wrong, where (file, line or key) and what to do. `main` prints it
    without a traceback and exits with code 2; every other exception keeps its traceback.
    """


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an error and what it came from, up to a `UserError`, which explains what it hides."""
    while error is not None and not isinstance(error, UserError):
        yield error
        error = error.__cause__ or error.__context__


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error came from a full disk, a quota or a limit on the size of files."""
    messages = [os.strerror(number) for number in FULL_DISK_ERRNOS]  # as C++ libraries report them
    return any(
        (isinstance(cause, OSError) and cause.errno in FULL_DISK_ERRNOS)
        or any(message in str(cause) for message in messages)
        for cause in causes(error)
    )


def find_storage_error(error: BaseException | None) -> BaseException | None:
    """The error, of those that `error` came from, that storage or network made; None where only the
    content of a file is at fault."""
    innermost_by_words = None
    for cause in causes(error):
        if isinstance(cause, ConnectionError | TimeoutError):
            return cause
        if isinstance(cause, OSError) and cause.errno in STORAGE_ERRNOS:
            return cause
        if any(words in str(cause) for words in STORAGE_ERROR_WORDS):
            innermost_by_words = cause
    return innermost_by_words


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


def print_error(error: UserError) -> None:
    """Prints an error on stderr, with control characters in names and texts escaped."""
    print(f"error: {printable(str(error))}", file=sys.stderr)


def print_note(text: str) -> None:
    """Prints one line on stderr about what a run has decided or found."""
    logging.getLogger(__name__).info("%s", text)


def print_warning(text: str) -> None:
    """Prints one line on stderr about what is likely to be a mistake."""
    logging.getLogger(__name__).warning("%s", text)


class PlainLines(logging.Handler):
    """Writes every record to stderr as one line, a warning behind `warning:`."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        print(prefix + printable(record.getMessage()), file=sys.stderr, flush=True)


def log_to_stderr() -> None:
    """Shows the notes and warnings of this package on stderr; for programs, not for libraries."""
    logger = logging.getLogger("frame_jax")
    if not any(isinstance(handler, PlainLines) for handler in logger.handlers):
        logger.addHandler(PlainLines())
    logger.setLevel(logging.INFO)
    logger.propagate = False  # libraries give the root logger handlers of their own


def without_secrets(text: str) -> str:
    """`text` whose web addresses have no query and no password, which are how one gives access.

    >>> without_secrets("no https://me:word@host/a.jsonl?X-Amz-Signature=1f, but s3://b/?.jsonl")
    'no https://host/a.jsonl, but s3://b/?.jsonl'
    """
    return WEB_ADDRESS.sub(r"\1\2", text)


def printable(text: str) -> str:
    r"""Escapes everything in `text` that a terminal would obey: control and format characters.

    >>> printable("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    return "".join(
        character
        if character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co")
        else character.encode("unicode_escape").decode()
        for character in without_secrets(text)
    )
