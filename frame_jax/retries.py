"""Opens remote storage, retries what it is asked, and explains faults that do not pass."""

import random
import time
from collections.abc import Callable
from typing import Any, TypeVar

from frame_jax.config.paths import scheme_of
from frame_jax.errors import UserError, causes, is_disk_full

RETRY_SECONDS = (0.5, 1, 2, 4, 8, 16)  # before each further attempt: half a minute in all

# Where the errors of these file systems come from, those of OSError apart.
LIBRARIES = {"aiohttp", "botocore", "fsspec", "gcsfs", "google", "huggingface_hub", "s3fs"}
LIBRARIES |= {"httpx", "httpx2", "requests"}
PASSING_HTTP_STATUS = (408, 425, 429)  # and all from 500 on
LASTING_ERRORS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)

ADVICE = (
    "see that the place is right, that this machine reaches it and that its credentials allow it; "
    "then run the same command again"
)

Result = TypeVar("Result")


class AbsentError(Exception):
    """There is nothing at a path."""


def open_filesystem(url: str, **options: Any) -> Any:
    """The fsspec file system of a URL, with further options of its class.

    Raises:
        UserError: for a scheme that is not known, or whose library is not installed.
    """
    import fsspec

    scheme = scheme_of(url)
    try:
        return fsspec.filesystem(scheme, **options)
    except ImportError as error:
        raise UserError(
            f"{url}: a library for {scheme}:// is missing ({error}): "
            'pip install "frame-jax[remote]"'
        ) from error
    except ValueError as error:
        raise UserError(
            f"{url}: {scheme}:// is not known: use s3://, gs://, hf://, https:// or a path on "
            "this machine"
        ) from error


def retry(
    path: str,
    verb: str,
    action: Callable[[], Result],
    between: Callable[[], None] = lambda: None,
    advice: str = ADVICE,
) -> Result:
    """Returns what `action` returns, after as many attempts as `RETRY_SECONDS` allows.

    `between` is called before each further attempt. Messages say that `path` cannot be `verb`, such
    as `read`, and what to do: `advice`.

    Raises:
        AbsentError: where there is no such file.
        UserError: where it fails for good.
    """
    for wait in (*RETRY_SECONDS, None):
        try:
            return action()
        except FileNotFoundError as error:
            raise AbsentError(str(error)) from error
        except Exception as error:  # each library has its own
            if not _is_of_libraries(error) or is_disk_full(error):
                raise
            if wait is None or not _may_pass(error):
                tried = f" after {len(RETRY_SECONDS) + 1} attempts" if wait is None else ""
                raise UserError(
                    f"{path}: cannot be {verb}{tried} ({_cause(error)}): {advice}"
                ) from error
        between()
        time.sleep(wait * random.uniform(0.5, 1))
    raise AssertionError("the last attempt returns or raises")


def _is_of_libraries(error: Exception) -> bool:
    """Whether an error is about the remote storage rather than a fault in the program."""
    return isinstance(error, OSError) or any(
        cls.__module__.partition(".")[0] in LIBRARIES for cls in type(error).__mro__
    )


def _may_pass(error: BaseException) -> bool:
    """Whether another attempt may succeed."""
    for one in causes(error):
        status = _status(one)
        if status is not None:
            return status >= 500 or status in PASSING_HTTP_STATUS
        if isinstance(one, LASTING_ERRORS) or "Credential" in type(one).__name__:
            return False
    return True


def _status(error: Any) -> int | None:
    """The HTTP status that an error carries, wherever its library puts it."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        names = ((response, "status_code"), (error, "status"), (error, "code"))
        found = next((getattr(of, name) for of, name in names if hasattr(of, name)), None)
    return int(found) if str(found).isdigit() else None


def _cause(error: BaseException) -> str:
    """An error's message in one line; its type's name if it has none."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
