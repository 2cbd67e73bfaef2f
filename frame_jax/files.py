"""Lists, reads and caches files in a bucket, on the Hugging Face Hub or behind a web server.

A remote path is a URL: `s3://bucket/key`, `gs://bucket/key`, `hf://datasets/owner/name/file` or
`https://host/file`. The libraries behind fsspec (s3fs, gcsfs, huggingface_hub, aiohttp) find their
credentials as they always do. A fault that passes (500, 503, a broken connection) is tried again.
"""

import contextlib
import hashlib
import io
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeVar

from frame_jax.config.paths import scheme_of, user_path
from frame_jax.errors import UserError, without_secrets
from frame_jax.retries import AbsentError, open_filesystem, retry
from frame_jax.run.directory import atomic_path

MAGIC = re.compile(r"[*?\[]")
WEB_MAGIC = re.compile(r"[*\[]")  # a question mark starts the query of a URL
MARKER = "_$folder$"  # of Hadoop, behind a folder's name; others take the name itself
BLOCK_BYTES = 4 << 20  # of one request

Result = TypeVar("Result")


@dataclass(frozen=True)
class File:
    """A file that was found, here or in a remote place.

    Attributes:
        path: Where it is: a local path or a URL.
        name: Its path, with slashes, below what was searched: the folder, or the part of a pattern
            without magic.
        size: In bytes; 0 where a server does not say.
        version: What a remote store says of the content: its entity tag, checksum or time.
        unpacked: It comes unpacked, and `size` is that of what is stored.
    """

    path: str
    name: str
    size: int
    version: str = ""
    unpacked: bool = False


def is_remote(path: str) -> bool:
    """Whether `path` is a URL rather than a path on this machine."""
    return scheme_of(path) is not None


def find_magic(path: str) -> re.Match[str] | None:
    """Where in a URL a pattern begins, unless a file of that very name exists; None for a path."""
    return (WEB_MAGIC if _is_web(path) else MAGIC).search(_bare(path))


def last_name(path: str) -> str:
    """The name of the file or folder that a URL leads to, without the query of a web address."""
    return _bare(path).rpartition("/")[2]


def find_remote_files(path: str) -> list[File]:
    """Finds the files that a URL stands for, ordered by the parts of their names: a file, those in
    a folder (searched in depth) or of a pattern (`*`, `**`, `[...]`, `?` but in web addresses).

    Raises:
        UserError: where the place cannot be listed, naming it and the cause.
    """
    filesystem = _filesystem(path)
    filesystem.invalidate_cache()  # what came or went since the last call counts

    def asked(action: Callable[[], Result]) -> Result:
        return retry(path, "listed", action, filesystem.invalidate_cache)

    base, magic = path, find_magic(path)
    try:
        if "*" not in _bare(path) and (info := asked(lambda: _file_info(filesystem, path))):
            base, found = _bare(path).rpartition("/")[0], {path: info}
        elif magic:
            base = path[: magic.start()].rpartition("/")[0]
            found = asked(lambda: filesystem.glob(path, detail=True))
        else:
            base = _bare(path).rstrip("/") + "/"  # without it, links in a page lead elsewhere
            found = asked(lambda: filesystem.find(base, detail=True))
    except AbsentError:
        return []
    root = filesystem._strip_protocol(base).rstrip("/")
    files = []
    for name, info in found.items():
        if info["type"] == "directory" or name.endswith("/"):
            continue
        if info.get("size") is None:  # in the page of a web server
            info = info | asked(partial(filesystem.info, name))
        url = filesystem.unstrip_protocol(name)
        relative = _bare(filesystem._strip_protocol(url)).removeprefix(root).lstrip("/")
        if not relative or relative.endswith("/"):
            continue  # a link of a web page to itself in another order
        size, unpacked = info.get("size") or 0, _comes_unpacked(info)
        files.append(File(url, relative, size, _version(info), unpacked))
    folders = {str(folder) for file in files for folder in PurePosixPath(file.name).parents}
    return sorted(
        (f for f in files if f.size or not (f.name in folders or f.name.endswith(MARKER))),
        key=lambda file: file.name.split("/"),
    )


def open_binary(path: str) -> BinaryIO:
    """Opens a local or remote file for reading, seekable; transient faults are retried.

    Raises:
        UserError: here or at any read, where a remote file cannot be read, with URL and cause.
        OSError: where a local one cannot be opened.
    """
    if not is_remote(path):
        return user_path(path).open("rb")
    return io.BufferedReader(_Reader(path), BLOCK_BYTES)


def local_copy(path: str, wanted: Callable[[str], bool] = lambda name: True) -> Path:
    """Downloads a remote file or folder to the cache; returns its local path, `~` expanded.

    A remote one is kept in `$XDG_CACHE_HOME/frame_jax` (`~/.cache/frame_jax`), in a folder named by
    a digest of its URL, sizes and versions, so that another content is another folder. A file there
    is whole; an interrupted call goes on where it was.

    Of a folder all files below it are taken that are `wanted`, by their names below it.

    Raises:
        UserError: where there is nothing at a remote path, or it cannot be read.
    """
    if not is_remote(path):
        return user_path(path)
    files = [f for f in find_remote_files(path) if f.name == last_name(path) or wanted(f.name)]
    if not files:
        raise UserError(f"{path}: there is no such file or folder: correct the path")
    if odd := next((f for f in files if ".." in f.name.split("/")), None):
        raise UserError(f"{odd.path}: a name with `..` has no place in a folder: rename it")
    digest = hashlib.blake2b(without_secrets(path).encode(), digest_size=16)
    for file in files:
        digest.update(f"{file.name} {file.size} {file.version}\n".encode())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    folder = cache / "frame_jax" / digest.hexdigest()
    for file in files:
        _download(file, folder / file.name)
    alone = len(files) == 1 and files[0].name == last_name(path)
    return folder / files[0].name if alone else folder


def is_checkpoint(name: str) -> bool:
    """Whether a file of a model's folder is needed: weights, settings and tokenizer at its top."""
    others = (".json", ".jinja", "merges.txt", "tokenizer.model", "spiece.model")
    return "/" not in name and name.endswith((".safetensors", *others))


def _download(file: File, target: Path) -> None:
    """Downloads a remote file to `target`, whole or not at all."""
    if target.exists():
        return
    with atomic_path(target) as temporary:

        def fetched() -> None:
            _get_whole(file.path, str(temporary), file.unpacked)
            size = temporary.stat().st_size
            if file.size and size != file.size and not file.unpacked:
                raise OSError(f"{size:,} of {file.size:,} bytes came")

        _read(file.path, fetched)


class _Reader(io.RawIOBase):
    """A remote file read by requests, each repeated on a new handle if it fails."""

    def __init__(self, path: str):
        self._path = path
        self._filesystem = _filesystem(path)
        self._handle: Any = None
        self._position = 0
        self._size: int = _read(path, lambda: self._opened().size, self._drop)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._size - self._position)
        if wanted <= 0:
            return 0
        data = _read(self._path, lambda: self._fetch(wanted), self._drop)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def readall(self) -> bytes:
        pieces = []
        while piece := self.read(BLOCK_BYTES):
            pieces.append(piece)
        return b"".join(pieces)

    def close(self) -> None:
        self._drop()
        super().close()

    def _fetch(self, wanted: int) -> bytes:
        handle = self._opened()
        handle.seek(self._position)
        try:
            data = handle.read(wanted)
        except ValueError:  # a web server that sends the whole instead of the range asked for
            self._handle = handle = self._whole()
            handle.seek(self._position)
            data = handle.read(wanted)
        if len(data) != wanted:
            raise OSError(f"{len(data):,} of {wanted:,} bytes came at offset {self._position:,}")
        return data

    def _opened(self) -> Any:
        if self._handle is None:
            handle = self._filesystem.open(self._path, "rb", cache_type="none")
            if scheme_of(self._path) in ("gs", "gcs") and _comes_unpacked(handle.details):
                self._handle = self._whole(unpacked=True)
            else:
                self._handle = handle if handle.seekable() and handle.size else self._whole()
        return self._handle

    def _whole(self, unpacked: bool = False) -> Any:
        """The file's content, on disk here, for servers that give no ranges of it."""
        handle = tempfile.NamedTemporaryFile()  # noqa: SIM115
        _get_whole(self._path, handle.name, unpacked)
        handle.size = os.stat(handle.name).st_size  # type: ignore[attr-defined]  # noqa: PTH116
        return handle

    def _drop(self) -> None:
        if self._handle is not None:
            with contextlib.suppress(OSError):
                self._handle.close()
            self._handle = None


def _read(
    path: str, action: Callable[[], Result], between: Callable[[], None] = lambda: None
) -> Result:
    """`retry` for what reads a file; where there is none, the path is wrong."""
    try:
        return retry(path, "read", action, between)
    except AbsentError as error:
        raise UserError(
            f"{path}: there is no such file ({error}): correct the path, or put it there"
        ) from error


def _get_whole(path: str, target: str, unpacked: bool) -> None:
    # gcsfs would put a large file together of ranges, and there are none of what comes unpacked.
    options = {"concurrency": 1} if unpacked else {}
    _filesystem(path).get_file(path, target, **options)


def _comes_unpacked(info: dict[str, Any]) -> bool:
    """Whether Google's storage serves an object unpacked, which it does by its `Content-Encoding`;
    other stores serve what they hold."""
    return info.get("contentEncoding") not in (None, "", "identity")


def _filesystem(path: str) -> Any:
    # The file is wanted, not another form of it.
    options = {"headers": {"Accept-Encoding": "identity"}} if _is_web(path) else {}
    return open_filesystem(path, **options)


def _is_web(path: str) -> bool:
    return scheme_of(path) in ("http", "https")


def _bare(path: str) -> str:
    """A URL without its query; only web addresses have one."""
    return path.partition("?")[0] if _is_web(path) else path


def _file_info(filesystem: Any, path: str) -> dict[str, Any] | None:
    """Information about a file; None for a folder, its index page, or nothing."""
    if path.endswith("/"):
        return None
    try:
        info: dict[str, Any] = filesystem.info(path)
        if info["type"] != "file" or str(info.get("url", "")).endswith("/"):
            return None  # where a web server has led to a page
        if info.get("size") == 0 and not _is_web(path):
            below = f"{info['name']}/"  # an empty object by a folder's name is how some make one
            if any(name.startswith(below) for name in filesystem.find(below)):
                return None
    except FileNotFoundError:
        return None
    return info


def _version(info: dict[str, Any]) -> str:
    keys = ("ETag", "etag", "md5Hash", "generation", "blob_id", "LastModified", "Last-Modified")
    return " ".join(str(info[key]) for key in keys if info.get(key))
