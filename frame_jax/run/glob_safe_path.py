"""Gives a folder with an odd name a path that no library mistakes for a pattern.

Orbax looks for its own files by patterns that begin with the whole path: under `runs/a[1]` it finds
nothing, and under `runs/a*` its neighbours' files too.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
from pathlib import Path

from frame_jax.errors import UserError


def glob_safe_path(folder: Path) -> Path:
    """`folder` itself, resolved, or a link to it where its path has one of `*?[]{}\\`.

    The link lies in the folder for temporary files, under the same name on every process.

    Raises:
        UserError: if that name is taken by something else.
    """
    folder = folder.resolve()
    if re.search(r"[*?\[\]{}\\]", str(folder)) is None:
        return folder
    folder.mkdir(parents=True, exist_ok=True)  # as Orbax would, which makes no folder of a link
    digest = hashlib.blake2b(os.fsencode(folder), digest_size=12).hexdigest()
    link = Path(tempfile.gettempdir()).resolve() / f"frame_jax-{os.getuid()}-{digest}"
    with contextlib.suppress(FileExistsError):
        link.symlink_to(folder)
    if not link.is_symlink() or link.readlink() != folder:
        raise UserError(
            f"{link} is taken, and stands for {folder}, whose name some libraries take for a "
            "pattern: remove it, or choose a --run_directory without any of * ? [ ] { } \\"
        )
    return link
