"""Texts installed with this project: those of Python and of our dependencies, by name."""

import functools
import importlib.metadata
import os
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

PROJECT = "frame-jax"
# Dependencies that came later: the corpus stays what it was without them.
LATER_DEPENDENCIES = {"zstandard"}
# Longer files are few, and one of them would be a sizeable share of a small held-out split.
MAX_FILE_BYTES = 40_000

# Tests say little in many words; the encodings are generated tables; pydoc_data's only module is
# the topics, which are read as prose.
SKIPPED_FOLDERS = {
    *("test", "tests", "testing", "testdata", "idle_test", "idlelib", "lib2to3"),
    *("encodings", "pydoc_data", "__pycache__", "site-packages", "dist-packages"),
}
SKIPPED_MODULE = re.compile(r"test_.*|.*_test|conftest|.*_pb2(_grpc)?")
BOILERPLATE = re.compile(r"licen[cs]e|copying|notice|cmakelists|requirements", re.IGNORECASE)


@dataclass(frozen=True)
class InstalledText:
    """One installed text.

    Attributes:
        id: Its name, the same on every machine, e.g. `stdlib/json/decoder.py`.
        size: In bytes.
        is_module: Python source, rather than prose.
        path: The file that holds it; None where `content` does.
    """

    id: str
    size: int
    is_module: bool
    path: Path | None
    content: bytes = field(default=b"", repr=False)

    def read_text(self) -> bytes:
        return self.path.read_bytes() if self.path else self.content


@functools.cache
def installed_texts() -> tuple[InstalledText, ...]:
    """Lists every text, sorted by name; reads only names, sizes and small texts without a file."""
    found: dict[str, InstalledText] = {}
    groups = [_standard_library(), _topics()]
    for name, distribution in distributions():
        if name != PROJECT:  # its sources change while it is worked on
            groups += [_files(distribution), _description(name, distribution)]
    for group in groups:
        for text in group:
            if 0 < text.size <= MAX_FILE_BYTES:
                found.setdefault(text.id, text)
    return tuple(found[name] for name in sorted(found))


@functools.cache
def distributions() -> tuple[tuple[str, importlib.metadata.Distribution], ...]:
    """This project's installed dependencies, direct and indirect, by normalised name.

    What else is installed stays out, so that installing something does not change the corpus. Where
    the project itself is not installed, everything is taken.
    """
    present: dict[str, importlib.metadata.Distribution] = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if name:  # a broken installation has none
            present.setdefault(_normalised(name), distribution)
    if PROJECT not in present:
        return tuple(sorted(present.items(), key=lambda pair: pair[0]))
    needed: set[str] = set()
    pending = [PROJECT]
    while pending:
        name = pending.pop()
        if name in present and name not in needed | LATER_DEPENDENCIES:
            needed.add(name)
            pending += _requirements(present[name])
    return tuple((name, present[name]) for name in sorted(needed))


def _requirements(distribution: importlib.metadata.Distribution) -> Iterator[str]:
    """Names a distribution needs without any of its extras."""
    for requirement in distribution.requires or []:
        name = re.match(r"[\w.-]+", requirement)
        if name and not re.search(r"\bextra\s*==", requirement):
            yield _normalised(name[0])


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _standard_library() -> Iterator[InstalledText]:
    root = Path(sysconfig.get_path("stdlib"))
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in SKIPPED_FOLDERS]
        for name in names:
            path = Path(folder, name)
            relative = path.relative_to(root)
            if relative.suffix == ".py" and _is_wanted(relative):
                yield InstalledText(
                    f"stdlib/{relative.as_posix()}", path.stat().st_size, True, path
                )


def _files(distribution: importlib.metadata.Distribution) -> Iterator[InstalledText]:
    for file in distribution.files or []:
        relative = Path(file)
        if relative.suffix in (".py", ".md", ".rst", ".txt") and _is_wanted(relative):
            path = Path(str(file.locate()))
            if path.is_file():
                size = path.stat().st_size
                yield InstalledText(relative.as_posix(), size, relative.suffix == ".py", path)


def _description(
    name: str, distribution: importlib.metadata.Distribution
) -> Iterator[InstalledText]:
    content = (distribution.metadata["Description"] or "").encode("utf-8", "replace")
    yield InstalledText(f"{name}/DESCRIPTION", len(content), False, None, content)


def _topics() -> Iterator[InstalledText]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some systems package it apart
        return
    for name, topic in topics.items():
        content = topic.encode("utf-8")
        yield InstalledText(f"pydoc/{name}", len(content), False, None, content)


def _is_wanted(relative: Path) -> bool:
    """Whether a file, by its path inside a library, is source or a document written for people."""
    folders = relative.parts[:-1]
    if ".." in folders or any(f in SKIPPED_FOLDERS or "-info" in f for f in folders):
        return False
    if relative.suffix == ".py":
        return not SKIPPED_MODULE.fullmatch(relative.stem)
    # Text files with a name in capitals are documents (README.txt); the others are mostly data.
    is_document = relative.suffix != ".txt" or relative.stem.isupper()
    return is_document and not BOILERPLATE.search(relative.name)
