"""What a source is read from: inputs, slices of their records, and the files behind a path."""

import contextlib
import functools
import io
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frame_jax import files
from frame_jax.config.corpus import SourceConfig
from frame_jax.corpus.documents import Record, document_from_fields
from frame_jax.corpus.sources import compressed
from frame_jax.corpus.sources.listing import list_files
from frame_jax.errors import UserError, without_secrets
from frame_jax.files import File

# What programs that write tables put beside the data: logs, copies not yet committed, caches.
IGNORED_FOLDERS = {"_delta_log", "_temporary", "_change_data", "_spark_metadata", "__MACOSX"}
IGNORED_FILES = re.compile(r"dataset_infos?\.json|dataset_dict\.json|cache-[0-9a-f]{16}\w*\.arrow")

READ_BYTES = 1 << 20
STATE = "state.json"  # where `datasets.save_to_disk` lists its files


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
        ignored: Why it is no data though it lies among them, and has no records; empty for data.
    """

    path: str
    name: str
    size: int
    version: str
    members: tuple[File, ...] = ()
    ignored: str = ""

    @functools.cached_property
    def display_path(self) -> str:
        """`path` as text, for messages and tables: without the query of a web address, bytes that
        are not UTF-8 spelled out."""
        return escape_name(without_secrets(self.path))


@dataclass(frozen=True)
class RecordSlice:
    """Records `index`, `index + count`, `index + 2 count`, ... of an input, from 0."""

    index: int = 0
    count: int = 1

    def contains(self, record: int) -> bool:
        return record % self.count == self.index

    def within(self, first: int, size: int) -> range:
        """Which of the `size` records from `first` on are in the slice, counted from `first`."""
        return range((self.index - first) % self.count, size, self.count)


def find_files(config: SourceConfig, suffixes: Sequence[str]) -> tuple[list[File], bool]:
    """The files that `config.path` stands for, see `list_files`, and whether it is one file.

    Raises:
        UserError: where there is no such file.
    """
    assert config.path is not None  # SourceConfig sees to it
    found, single = list_files(config.path, suffixes)
    if not found:
        wanted = f" with a file *{' or *'.join(suffixes)}" if any(suffixes) else ""
        there = f"working directory {Path.cwd()}"
        if files.is_remote(config.path):
            there = "as far as your credentials show: some places hide what they refuse"
        raise UserError(
            f"corpus.sources: there is no file or folder{wanted} at {config.path!r} "
            f"(kind {config.kind}, {there}): correct `path`"
        )
    return found, single


def file_inputs(
    config: SourceConfig, suffixes: Sequence[str], ratio: Callable[[str], int]
) -> list[Input]:
    """One input a file; `ratio` makes of a file's name how many bytes of text a byte of it is.

    Raises:
        UserError: where there is no such file.
    """
    found, single = find_files(config, suffixes)
    items = []
    for file in found:
        name = escape_name(file.name)
        size, version = file.size * ratio(name), f"{name} {file.size}"
        aside = "other programs keep notes there" if not single and is_ignored(name) else ""
        items.append(Input(file.path, name, size, version, ignored=aside))
    return items


def escape_name(name: str) -> str:
    r"""A file's name as text; bytes that are not UTF-8 become `\xe9`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def document_of_file(
    fields: Mapping[str, Any], config: SourceConfig, item: Input, number: int
) -> Record:
    """Makes a document from the fields of a file's record of that number, from 1.

    One that carries no id is called e.g. `pile/books/a.jsonl:7` or `a.jsonl:7`, and one that
    carries no source is of the name in the config, or of the file's stem.
    """
    file = item.name.rpartition("/")[2]
    name = f"{config.name}/{item.name}" if config.name else item.name
    return document_from_fields(
        fields,
        config,
        default_id=f"{name}:{number}",
        default_source=config.name or file.split(".")[0] or file,
        file=item.display_path,
        line=number,
    )


@contextlib.contextmanager
def open_decompressed(item: Input) -> Iterator[Any]:
    """Opens a file, compressed or not: a buffered reader of the bytes of its text.

    Raises:
        UserError: also at a read, as `unreadable_input_error`.
    """
    try:
        with (
            files.open_binary(item.path) as file,
            io.BufferedReader(compressed.DecompressedStream(file), READ_BYTES) as stream,
        ):
            yield stream
    except OSError as error:
        raise unreadable_input_error(item, error) from error


def unreadable_input_error(
    item: Input, error: BaseException, what: str = "cannot be read"
) -> UserError:
    """Error for an input that is damaged, or that its disk or mount does not deliver."""
    if isinstance(error, OSError) and error.errno is not None:
        return UserError(
            f"{item.display_path}: cannot be read now ({error.strerror or error}): the disk, the "
            "mount or the right to read it fails, which says nothing of the file; fix that and run "
            "the same command again"
        )
    why = str(error)
    with contextlib.suppress(OSError, UserError), files.open_binary(item.path) as file:
        other = compressed.other_format(file.read(compressed.HEAD_BYTES))
        if other is not None and other[0] not in what:
            why = f"it is {other[0]}: {compressed.KIND_ADVICE.get(*other)}"
    return UserError(f"{item.display_path}: {what} ({why}): replace it, or leave it out of `path`")


def other_files(config: SourceConfig, items: Collection[Input]) -> list[str]:
    """The files in a source's folder that end otherwise than those it reads; notes of other
    programs are none."""
    if config.path is None or config.kind not in ("jsonl", "parquet", "arrow"):
        return []
    read = {item.path for item in items}
    return [
        escape_name(without_secrets(file.path))
        for file in list_files(config.path, ("",))[0]
        if file.path not in read
        and not is_ignored(escape_name(file.name))
        and not file.name.endswith(STATE)
    ]


def is_ignored(name: str) -> bool:
    """Whether a file in a folder is not data but what a program keeps beside it, by its name."""
    *folders, file = name.split("/")
    return bool(IGNORED_FOLDERS & set(folders) or IGNORED_FILES.fullmatch(file))
