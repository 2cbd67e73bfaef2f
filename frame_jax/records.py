"""Token ids on disk: ArrayRecord files whose records are arrays of uint32, little-endian.

Two kinds of file use it: `RUN/tokens/part-*.arrayrecord` (one record a document, text tokens
only, no BOS or EOS) and `RUN/quadrants/Q*/part-*.arrayrecord` (one record a training row). Every
record is its own compression group, because they are read in random order.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from frame_jax.errors import UserError
from frame_jax.run.directory import atomic_path, how_to_remake
from frame_jax.run.faults import fault, is_fault

TOKEN_DTYPE = np.dtype("<u4")


class TokenWriter:
    """Appends arrays of token ids to one file; made by `write_tokens`."""

    def __init__(self, path: Path):
        self._writer = ArrayRecordWriter(str(path), "group_size:1,zstd:1")
        self.records = 0

    def append(self, tokens: np.ndarray | Sequence[int]) -> None:
        """Adds one record: a 1-D array of non-negative integers below 2**32."""
        self._writer.write(np.asarray(tokens, TOKEN_DTYPE).tobytes())
        self.records += 1

    def close(self) -> None:
        self._writer.close()


@contextlib.contextmanager
def write_tokens(path: Path) -> Iterator[TokenWriter]:
    """A `TokenWriter` whose file appears under `path` when the block succeeds."""
    with atomic_path(path) as temporary:
        writer = TokenWriter(temporary)
        try:
            yield writer
        finally:
            writer.close()


class TokenReader:
    """Random access to one file of token arrays.

    Every record carries a hash, which is checked when it is read.
    """

    def __init__(self, path: Path):
        self._path = path
        # One reader thread: callers read large batches, and many readers are open at one time.
        self._reader = ArrayRecordReader(str(path), "readahead_buffer_size:0")

    def __len__(self) -> int:
        return self._reader.num_records()

    def read(self, indices: Sequence[int] | np.ndarray) -> list[np.ndarray]:
        """The records at `indices`, in that order, each a 1-D uint32 array.

        Raises:
            UserError: if the file is damaged, with how to make it again, or cannot be read.
        """
        if len(indices) == 0:
            return []
        try:
            records = self._reader.read([int(i) for i in indices])
        except (RuntimeError, IndexError, ValueError) as error:
            if os.strerror(errno.EMFILE) in str(error):
                raise out_of_files(self._path) from error
            if is_fault(error):
                raise fault(self._path, error) from error
            raise damaged(self._path, error) from error
        return [np.frombuffer(record, TOKEN_DTYPE) for record in records]

    def close(self) -> None:
        self._reader.close()


def out_of_files(path: Path) -> UserError:
    """What to tell the user when the operating system opens no more files."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return UserError(
        f"{path} cannot be opened: this process may hold {limit:,} files open, and it opens every "
        "part that it reads from. Raise the limit (`ulimit -n`, or that of the service or "
        "container), or use fewer corpus.parts and rows.parts in a new run directory"
    )


def damaged(path: Path, error: Exception) -> UserError:
    """What to tell the user about a file of tokens or rows that cannot be read."""
    folders = [parent.name for parent in path.parents]
    if folders[0] == "tokens":
        root, unit = path.parents[1], "tokenize"
    elif "rows" in folders[:2]:
        root, unit = path.parents[3], "reference-rows"
    else:
        root, unit = path.parents[2], "partition"
    return UserError(f"{path} is damaged ({error}). {how_to_remake(root, path, unit)}")
