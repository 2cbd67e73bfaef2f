"""Local paths as users write them: `~` and `~name` expanded once, URLs left alone.

Settings keep what was written, which is what fingerprints hold; whoever opens a file asks here.
"""

import errno
import os
import re
from pathlib import Path

from frame_jax.errors import UserError


def user_path(text: str | Path) -> Path:
    """The local path that a setting or an option names, with `~` and `~name` expanded.

    What comes out means the same when it is asked about again: a file that is really called `~` or
    `~name` comes out absolute, because nothing else would tell it from a home (pathlib drops the
    `./` of `./~name`).

    Raises:
        UserError: for the home of nobody, for a URL, and for what no file can be called.
    """
    written = os.fspath(text)
    if (scheme := scheme_of(written)) is not None:
        raise UserError(
            f"{written} is not a folder or file of this machine: nothing is read from or written "
            f"to {scheme}:// here. Give a local path, or mount the bucket (docs/storage.md)"
        )
    path = os.path.expanduser(written)  # noqa: PTH111  (pathlib would expand `./~` too)
    if written.startswith("~") and path == written:
        raise UserError(
            f"{written}: no home folder is known for {written.split('/')[0]}; for a folder of that "
            f"name write ./{written}"
        )
    try:
        Path(path).stat()
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise UserError(f"{written}: {error.strerror}; give another path") from error
    except ValueError as error:
        raise UserError(f"{written!r} has a NUL, which no path may have") from error
    return without_home(Path(path))


def without_home(path: Path) -> Path:
    """Marks a path as already expanded, so that a `~` in it is part of a name."""
    return path.absolute() if str(path).startswith("~") else path


def scheme_of(text: str) -> str | None:
    """`gs` of `gs://bucket/run`; None for a path."""
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", text)
    return found and found[1].lower()
