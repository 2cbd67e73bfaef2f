"""Token ids on disk: ArrayRecord files whose records are arrays of uint32, little-endian.

Two kinds of file use it: `RUN/tokens/part-*.arrayrecord` (one record a document, text tokens
only, no BOS or EOS) and `RUN/quadrants/Q*/part-*.arrayrecord` (one record a training row). Every
record is its own compression group, because they are read in random order.
"""

import contextlib
import errno
import os
import resource
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from frame_jax.errors import UserError, find_storage_error, storage_error
from frame_jax.parallel.host import memory_bytes
from frame_jax.run.directory import atomic_path, how_to_remake, read_json

TOKEN_DTYPE = np.dtype("<u4")
LENGTHS = "lengths.json"
# A call for a list of records takes a few ns for every record of the file, whatever it asks for.
DENSE = 1024
READ_DOCUMENTS = 1024  # documents read from a file at one time
READER_BYTES = 12  # an open reader's memory for each record of its file
READERS_SHARE = 32  # readers that are kept open take at most this part of the machine's memory


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
    with atomic_path(path) as temporary, contextlib.closing(TokenWriter(temporary)) as writer:
        yield writer


class TokenReader:
    """Random access to one file of token arrays.

    Every record carries a hash, which is checked when it is read.

    Raises:
        UserError: here or at a read, if the file is missing or damaged, with how to make it again,
            or cannot be read.
    """

    def __init__(self, path: Path):
        self._path = path
        # One reader thread: callers read large batches, and many readers are open at one time.
        with explain_read_errors(path):
            self._reader = ArrayRecordReader(str(path), "readahead_buffer_size:0")
            if not self._reader.ok():  # it would seem to have no records
                self._reader.close()  # which says why

    def __len__(self) -> int:
        return self._reader.num_records()

    def read(self, indices: Sequence[int] | np.ndarray) -> list[np.ndarray]:
        """The records at `indices`, in that order, each a 1-D uint32 array."""
        if len(indices) == 0:
            return []
        wanted = np.asarray(indices, np.int64)
        with explain_read_errors(self._path):
            dense = len(wanted) * DENSE > len(self)
            records = self._reader.read(wanted.tolist()) if dense else self._runs(wanted)
        return [np.frombuffer(record, TOKEN_DTYPE) for record in records]

    def _runs(self, wanted: np.ndarray) -> list[bytes]:
        """Reads runs of neighbours one after another, in time that does not grow with the file."""
        edges = np.flatnonzero(np.diff(wanted) != 1) + 1
        firsts, lasts = wanted[np.append(0, edges)], wanted[np.append(edges, len(wanted)) - 1]
        return [
            record
            for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True)
            for record in self._reader.read(first, last + 1)
        ]

    def close(self) -> None:
        self._reader.close()


def read_documents(path: Path, rows: Sequence[int] | np.ndarray) -> Iterator[np.ndarray]:
    """Yields the token ids of the documents at `rows` of a file, in that order."""
    with contextlib.closing(TokenReader(path)) as reader:
        for start in range(0, len(rows), READ_DOCUMENTS):
            yield from reader.read(rows[start : start + READ_DOCUMENTS])


class OpenFiles:
    """Opens readers of any number of files and keeps the most recently used ones open.

    An open reader holds an index of its file, so what is kept is bounded by the records of the
    files, not by how many records a run has: `records` in all `files` that are kept open, of which
    one is, whatever its records. Threads may share it.
    """

    def __init__(self, records: int | None = None, files: int | None = None):
        self._records = records
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._files = files or (sys.maxsize if limit == resource.RLIM_INFINITY else limit // 2)
        self._readers: OrderedDict[Path, TokenReader] = OrderedDict()
        self._held = 0
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type["OpenFiles"], tuple[()]]:
        return OpenFiles, ()  # each worker opens files of its own

    def reader(self, path: Path) -> TokenReader:
        """The reader of a file. Nobody closes it: it is freed when its last user lets go of it."""
        with self._lock:
            if path in self._readers:
                self._readers.move_to_end(path)
                return self._readers[path]
        reader = TokenReader(path)  # beside other threads: it takes a while
        most = self._records or memory_bytes() // READERS_SHARE // READER_BYTES  # of a worker's
        with self._lock:
            known = self._readers.setdefault(path, reader)
            self._readers.move_to_end(path)
            if known is reader:
                self._held += len(reader)
            while len(self._readers) > 1 and (
                self._held > most or len(self._readers) > self._files
            ):
                self._held -= len(self._readers.popitem(last=False)[1])
        return known

    def read(
        self, paths: Sequence[Path], parts: np.ndarray, records: np.ndarray
    ) -> list[np.ndarray]:
        """Reads record `records[i]` of file `paths[parts[i]]` for each i, file by file."""
        found = [np.zeros(0, TOKEN_DTYPE)] * len(parts)
        for part in np.unique(parts):
            chosen = np.flatnonzero(parts == part)
            arrays = self.reader(paths[part]).read(records[chosen])
            for index, array in zip(chosen, arrays, strict=True):
                found[index] = array
        return found


def record_counts(paths: Sequence[Path]) -> np.ndarray:
    """Records of each file of a quadrant, int64 [files]: as FOLDER/lengths.json says, or by
    opening, which takes time by the records."""
    if not paths:
        return np.zeros(0, np.int64)
    known = paths[0].parents[1] / LENGTHS
    counts = read_json(known).get(paths[0].parent.name, {}) if known.exists() else {}
    return np.array(
        [counts[path.stem] if path.stem in counts else len(TokenReader(path)) for path in paths],
        np.int64,
    )


@contextlib.contextmanager
def explain_read_errors(path: Path) -> Iterator[None]:
    """Context that explains errors of the library that opens or reads files of token arrays.

    Raises:
        UserError: if the file is damaged, with how to make it again, or cannot be read.
    """
    try:
        yield
    except (RuntimeError, IndexError, ValueError) as error:
        if os.strerror(errno.EMFILE) in str(error):
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            raise UserError(
                f"{path} cannot be opened: this process may hold {limit:,} files open, and opens "
                "many parts. Raise the limit (`ulimit -n`, or that of the service or container), "
                "or use fewer corpus.parts and rows.parts in a new run directory"
            ) from error
        if find_storage_error(error):
            raise storage_error(path, error) from error
        raise damaged_file_error(path, error) from error


def damaged_file_error(path: Path, error: Exception) -> UserError:
    """Error for a file of tokens or rows that cannot be read."""
    folders = [parent.name for parent in path.parents]
    if folders[0] == "tokens":
        root, phase_step = path.parents[1], "tokenize"
    elif "rows" in folders[:2]:
        root, phase_step = path.parents[3], "reference-rows"
    else:
        root, phase_step = path.parents[2], "partition"
    return UserError(f"{path} is damaged ({error}). {how_to_remake(root, path, phase_step)}")
