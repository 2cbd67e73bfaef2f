"""Lists the files behind a path, folder or pattern, local or remote."""

import fnmatch
import glob
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from frame_jax import files
from frame_jax.config.paths import user_path, without_home
from frame_jax.errors import UserError
from frame_jax.files import File


def list_files(path: str, endings: Sequence[str]) -> tuple[list[File], bool]:
    """Lists the files at `path`, ordered by the parts of their names, and whether it is one file.

    `path` is a file (whatever its ending), a folder (searched in depth, for files with these
    endings, in lower case) or a pattern. Links to folders are followed. Hidden files and folders
    are left out.

    Raises:
        UserError: where a folder cannot be listed, a link leads nowhere, or `~name` is nobody's
            home.
    """
    if files.is_remote(path):
        return _remote(path, endings)
    local = user_path(path)
    if local.is_file():
        return [File(str(local), local.name, local.stat().st_size)], True
    if local.is_dir():
        base, found = local, _matches(local, ("**",))
    else:
        plain = itertools.takewhile(lambda part: not glob.has_magic(part), local.parts)
        base = Path(*plain)
        rest = local.parts[len(base.parts) :]
        found, endings = _matches(base, rest) if rest and base.is_dir() else iter(()), ("",)
    listed = [
        (file.relative_to(base), file, linked)
        for file, linked in dict(found).items()
        if file.name.lower().endswith(tuple(endings))
    ]
    visible = sorted(item for item in listed if not _hidden(item[0].parts))
    return [
        File(str(without_home(file)), name.as_posix(), _size(file))
        for name, file in _without_duplicates(visible)
    ], False


def _remote(path: str, endings: Sequence[str]) -> tuple[list[File], bool]:
    found = files.find_remote_files(path)
    single = len(found) == 1 and found[0].name == files.last_name(path)
    if single or files.find_magic(path):
        endings = ("",)
    return [
        file
        for file in found
        if file.name.lower().endswith(tuple(endings))
        and (single or not _hidden(file.name.split("/")))
    ], single


def _matches(
    folder: Path, parts: Sequence[str], above: frozenset[str] = frozenset(), linked: bool = False
) -> Iterator[tuple[Path, bool]]:
    """Yields files under a folder that match a pattern, each with whether `**` followed a link to
    it.

    `above` are the real paths of the folders that `**` has come through: a link back to one of
    them leads to nothing new.
    """
    head, rest = parts[0], parts[1:]
    if head == "**":
        above |= {os.path.realpath(folder)}
        for entry in _entries(folder):
            if not entry.is_dir():
                if not rest:
                    yield Path(folder, entry.name), linked
            elif entry.name.startswith(".") or entry.name == "lost+found" or is_run(entry.path):
                continue  # hidden, of the file system (perhaps not even readable), or of a run
            elif not entry.is_symlink() or os.path.realpath(entry) not in above:
                inner = Path(folder, entry.name)
                yield from _matches(inner, parts, above, linked or entry.is_symlink())
        if rest:
            yield from _matches(folder, rest, above, linked)
        return
    if glob.has_magic(head):
        names = [e.name for e in _entries(folder) if fnmatch.fnmatchcase(e.name, head)]
    else:
        names = [head] if os.path.lexists(folder / head) else []
    for inner in (folder / name for name in names):
        if rest and inner.is_dir():
            yield from _matches(inner, rest, above, linked)
        elif not rest and not inner.is_dir():
            yield inner, linked


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be listed ({error.strerror}): give this program the right to read "
            "it, or leave it out of `path`"
        ) from error


def is_run(folder: str) -> bool:
    """Whether runs of this program write to a folder, by what each of them keeps there."""
    path = Path(folder)
    return (path / "config.yaml").is_file() and any(
        (path / name).is_file() for name in ("lock", "tokenize.json")
    )


def _without_duplicates(found: list[tuple[Path, Path, bool]]) -> Iterator[tuple[Path, Path]]:
    """Drops files that are reached through a link to a folder and listed anyway."""
    seen = set()
    if any(linked for _, _, linked in found):
        seen = {os.path.realpath(file) for _, file, linked in found if not linked}
    for name, file, linked in found:
        if linked:
            real = os.path.realpath(file)
            if real in seen:
                continue
            seen.add(real)
        yield name, file


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError as error:
        raise UserError(
            f"{file}: cannot be read ({error.strerror}), as a link that leads nowhere: fix it, or "
            "leave it out of `path`"
        ) from error


def _hidden(parts: Sequence[str]) -> bool:
    return any(part.startswith(".") and part != ".." for part in parts)
