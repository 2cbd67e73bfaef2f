"""Decompresses files, whose compression is recognised by their first bytes."""

import bz2
import functools
import io
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import zstandard

READ_BYTES = 1 << 18
HEAD_BYTES = 512
LARGEST_WINDOW = 1 << 31  # of zstd, `--long=31`

# First bytes -> a decompressor of one member; a file may hold several, one after the other.
DECOMPRESSORS: dict[re.Pattern[bytes], Callable[[], Any]] = {
    re.compile(rb"\x1f\x8b\x08"): lambda: zlib.decompressobj(wbits=31),
    re.compile(rb"(\x28\xb5\x2f|[\x50-\x5f]\x2a\x4d)[\xfd\x18]"): lambda: (
        zstandard.ZstdDecompressor(max_window_size=LARGEST_WINDOW).decompressobj()
    ),
    re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"): bz2.BZ2Decompressor,
    re.compile(rb"\xfd7zXZ\x00"): lzma.LZMADecompressor,
}
DAMAGED = (zlib.error, lzma.LZMAError, zstandard.ZstdError, EOFError, OSError)

BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # of UTF-8, before the first line

# First bytes -> what the file is instead of text, and what can be done.
OTHER_FORMATS = {
    rb"PAR1[\x15\x1c]": ("Parquet", "convert it to JSON lines"),
    rb"ARROW1\0\0|\xff{4}[\s\S]{4}\x10\0\0\0": ("Arrow", "convert it to JSON lines"),
    rb"PK\x03\x04[\n-?]\0": ("a zip archive", "unpack it"),
    rb"[\s\S]{257}ustar": ("a tar archive", "unpack it"),
    rb"\x04\x22\x4d\x18[@-\x7f]": ("packed with LZ4", "unpack it, or pack it with zstd"),
    rb"\xff\x06\0\0sNaPpY": ("packed with Snappy", "unpack it, or pack it with zstd"),
    rb"\xff\xfe[\t-~]\0|\xfe\xff\0[\t-~]": ("UTF-16", "convert it (iconv -f UTF-16 -t UTF-8)"),
    rb"Obj\x01[\s\S]{4}": ("Avro", "convert it to Parquet or JSON lines"),
    rb"version https://git-lfs\.": ("a pointer of Git LFS", "fetch its content (git lfs pull)"),
}
TEXTS = {  # of which none is a table or lines of JSON; a byte order mark may come first
    rb"(\xef\xbb\xbf)?\s*<(?i:!doctype|html)\b": (
        "a web page",
        "fetch it again; its place may ask for a login",
    ),
    rb"(\xef\xbb\xbf)?\s*\[\s*\{": (
        "a JSON array",
        "write each object in a line of its own (jq -c '.[]')",
    ),
    rb'(\xef\xbb\xbf)?\s*\{[^\S\n]*\n\s*"': (
        "JSON of many lines",
        "write each object in one line (jq -c .)",
    ),
}
KIND_ADVICE = {"Parquet": "say `kind: parquet`", "Arrow": "say `kind: arrow`"}  # of a corpus


class DecompressedStream(io.RawIOBase):
    """A stream of a file's decompressed bytes; plain files are passed through.

    Raises:
        OSError: at a read, where the packed file is damaged or cut short.
    """

    def __init__(self, file: BinaryIO):
        self._file = file
        head = file.read(HEAD_BYTES)
        file.seek(0)
        make = next((make for magic, make in DECOMPRESSORS.items() if magic.match(head)), None)
        plain = iter(functools.partial(file.read, READ_BYTES), b"")
        self._pieces = plain if make is None else _decompress(file, make)
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def other_format(head: bytes, *, any_text: bool = False) -> tuple[str, str] | None:
    """The format, other than text, that decompressed bytes begin like, with advice; or None."""
    formats = OTHER_FORMATS if any_text else OTHER_FORMATS | TEXTS
    found = (each for magic, each in formats.items() if re.match(magic, head))
    return next(found, None)


def _decompress(file: BinaryIO, make: Callable[[], Any]) -> Iterator[bytes]:
    engine = make()
    while data := file.read(READ_BYTES):
        while data:
            if engine.eof:
                data = data.lstrip(b"\0")  # some programs pad to whole blocks
                if not data:
                    break
                engine = make()
            try:
                yield engine.decompress(data)
            except DAMAGED as error:
                raise OSError(f"damaged: {error}") from error
            data = engine.unused_data if engine.eof else b""
    if not engine.eof:
        raise OSError("cut short")
