"""What a source can be read from: inputs, stripes of an input, and the files behind a path."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from frame_jax.config.corpus import SourceConfig
from frame_jax.corpus.sources.listing import File, list_files
from frame_jax.errors import UserError
from frame_jax.files import is_remote

# What programs that write tables put beside the data: logs, copies not yet committed, caches.
IGNORED_FOLDERS = {"_delta_log", "_temporary", "_change_data", "_spark_metadata", "__MACOSX"}
IGNORED_FILES = re.compile(r"dataset_infos?\.json|dataset_dict\.json|cache-[0-9a-f]{16}\w*\.arrow")


@dataclass(frozen=True)
class Input:
    """One thing that is read from beginning to end: a file, a folder of texts, a dataset.

    Attributes:
        path: Where it is: a local path or a URL.
        name: How its records are called: unique in the source and the same on every machine.
        size: About how many bytes of text it holds; used to share out work.
        version: Another text whenever the input holds something else, as far as names and sizes
            tell.
        members: The files it is made of, where it is several.
        ignored: It is no data but something that lies beside them: it has no records.
    """

    path: str
    name: str
    size: int
    version: str
    members: tuple[File, ...] = ()
    ignored: bool = False

    @property
    def display_path(self) -> str:
        """`path` as text, for messages and tables: bytes that are not UTF-8 are spelled out."""
        return escape_name(self.path)


@dataclass(frozen=True)
class RecordSlice:
    """Records `index`, `index + count`, `index + 2 count`, ... of an input, from 0."""

    index: int = 0
    count: int = 1

    def contains(self, record: int) -> bool:
        return record % self.count == self.index


def find_files(config: SourceConfig, suffixes: Sequence[str]) -> tuple[list[File], bool]:
    """The files that `config.path` stands for, see `list_files`, and whether it is one file.

    Raises:
        UserError: where there is no such file.
    """
    assert config.path is not None  # SourceConfig sees to it
    files, single = list_files(config.path, suffixes)
    if not files:
        wanted = f" with a file *{' or *'.join(suffixes)}" if any(suffixes) else ""
        there = f"working directory {Path.cwd()}"
        if is_remote(config.path):
            there = "as far as your credentials show: some places hide what they refuse"
        raise UserError(
            f"corpus.sources: there is no file or folder{wanted} at {config.path!r} "
            f"(kind {config.kind}, {there}): correct `path`"
        )
    return files, single


def file_inputs(
    config: SourceConfig, suffixes: Sequence[str], ratio: Callable[[str], int]
) -> list[Input]:
    """One input a file.

    Args:
        config: The source.
        suffixes: See `find_files`.
        ratio: The name of a file to bytes of text for a byte of it, roughly.

    Raises:
        UserError: where there is no such file.
    """
    files, single = find_files(config, suffixes)
    items = []
    for file in files:
        name = escape_name(file.name)
        size, version = file.size * ratio(name), f"{name} {file.size}"
        items.append(Input(file.path, name, size, version, ignored=not single and is_ignored(name)))
    return items


def escape_name(name: str) -> str:
    r"""The name of a file as text; bytes that are not UTF-8 become `\xe9`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def source_name(config: SourceConfig, item: Input) -> str:
    """The source of records that carry none: the name in the config, or the file's stem."""
    file = item.name.rpartition("/")[2]
    return config.name or file.split(".")[0] or file


def record_id(config: SourceConfig, item: Input, number: int) -> str:
    """The id of a record that carries none, e.g. `pile/books/a.jsonl:7` or `a.jsonl:7`."""
    return f"{config.name}/{item.name}:{number}" if config.name else f"{item.name}:{number}"


def unreadable_input_error(
    item: Input, error: BaseException, what: str = "cannot be read"
) -> UserError:
    """What to say of an input that is damaged, or that its disk or mount does not give."""
    if isinstance(error, OSError) and error.errno is not None:
        return UserError(
            f"{item.display_path}: cannot be read now ({error.strerror or error}): the disk, the "
            "mount or "
            "the right to read it fails, which says nothing of the file; fix that and run the "
            "same command again"
        )
    return UserError(
        f"{item.display_path}: {what} ({error}): replace it, or leave it out of `path`"
    )


def is_ignored(name: str) -> bool:
    """Whether a file in a folder is no data but what a program keeps beside them, by its name
    there."""
    *folders, file = name.split("/")
    return bool(IGNORED_FOLDERS & set(folders) or IGNORED_FILES.fullmatch(file))
