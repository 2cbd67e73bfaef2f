"""What a source can be read from: inputs, stripes of an input, and the files behind a path."""

from __future__ import annotations

import glob
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from frame_jax.config.corpus import SourceConfig
from frame_jax.errors import UserError


@dataclass(frozen=True)
class Input:
    """One thing that is read from beginning to end: a file, a folder of texts, a dataset.

    Attributes:
        path: Where it is.
        name: How its records are called: unique in the source and the same on every machine.
        size: About how many bytes of text it holds; used to share out work.
        version: Another text whenever the input holds something else, as far as names and sizes
            tell.
    """

    path: str
    name: str
    size: int
    version: str


@dataclass(frozen=True)
class Stripe:
    """Records `index`, `index + count`, `index + 2 count`, ... of an input, from 0."""

    index: int = 0
    count: int = 1

    def takes(self, record: int) -> bool:
        return record % self.count == self.index


def find_files(config: SourceConfig, suffixes: Iterable[str]) -> tuple[Path, list[Path]]:
    """The files that `config.path` stands for, sorted, and the folder their names are relative to.

    Args:
        config: Its path is a file (whatever its suffix), a folder (searched in depth) or a pattern.
        suffixes: What a file in a folder ends with, in lower case; hidden files are left out.

    Raises:
        UserError: where there is no such file.
    """
    assert config.path is not None  # SourceConfig sees to it
    path = Path(config.path).expanduser()
    if path.is_file():
        return path.parent, [path]
    found: Iterator[Path]
    endings = tuple(suffixes)
    if path.is_dir():
        base, found, wanted = path, path.rglob("*"), f" with a file *{' or *'.join(endings)}"
    else:
        plain = itertools.takewhile(lambda part: not glob.has_magic(part), path.parts)
        base = Path(*plain)
        found = base.glob(str(path.relative_to(base))) if base != path else iter(())
        endings, wanted = ("",), ""
    files = sorted(
        file
        for file in found
        if file.name.lower().endswith(endings) and not _hidden(file, base) and file.is_file()
    )
    if not files:
        raise UserError(
            f"corpus.sources: there is no file or folder{wanted} at {config.path!r} "
            f"(kind {config.kind}, working directory {Path.cwd()}): correct `path`"
        )
    return base, files


def source_name(config: SourceConfig, file: Path) -> str:
    """The source of records that carry none: the name in the config, or the file's stem."""
    return config.name or file.name.split(".")[0] or file.name


def record_id(config: SourceConfig, item: Input, number: int) -> str:
    """The id of a record that carries none, e.g. `pile/books/a.jsonl:7` or `a.jsonl:7`."""
    return f"{config.name}/{item.name}:{number}" if config.name else f"{item.name}:{number}"


def _hidden(file: Path, base: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(base).parts)
