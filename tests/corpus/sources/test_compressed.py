"""How a file is packed is told by its first bytes, whatever it is called."""

import bz2
import contextlib
import gzip
import io
import json
import lzma
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from frame_jax.config.corpus import SourceConfig
from frame_jax.corpus.sources import SOURCES
from frame_jax.errors import UserError
from tests.corpus.reading import read, texts

TEXTS = [f"text {k} 中文 " + "words " * k for k in range(300)]
DATA = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()
SKIPPABLE = b"\x50\x2a\x4d\x18\x04\x00\x00\x00note"


def zstd(data: bytes, window: int = 20) -> bytes:
    settings = zstandard.ZstdCompressionParameters(
        window_log=window, write_checksum=True, write_content_size=False
    )
    engine = zstandard.ZstdCompressor(compression_params=settings).compressobj()
    return engine.compress(data) + engine.flush()


PACKED = {
    "plain": DATA,
    "gzip": gzip.compress(DATA),
    "zstd": zstd(DATA),
    "bz2": bz2.compress(DATA),
    "xz": lzma.compress(DATA),
}
NAMES = ("A.JSONL.GZ", "a.jsonl.zstd", "a.zstd.jsonl", "a.jsonl", "a.jsonl.gz", "a.json.bz2")


@pytest.mark.parametrize("packing", PACKED)
@pytest.mark.parametrize("name", NAMES)
def test_any_packing_under_any_name(tmp_path: Path, packing: str, name: str) -> None:
    (tmp_path / name).write_bytes(PACKED[packing])
    assert texts(SourceConfig(kind="jsonl", path=str(tmp_path))) == TEXTS
    assert texts(SourceConfig(kind="jsonl", path=str(tmp_path / name))) == TEXTS


@pytest.mark.parametrize("window", [27, 28, 30, 31])
def test_a_long_window_of_zstd(tmp_path: Path, window: int) -> None:
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(zstd(DATA, window))
    # What pyarrow's own reader makes of it shows that the test tests something.
    with pytest.raises(OSError) if window > 27 else contextlib.nullcontext():
        pa.input_stream(str(path), compression="zstd").read()
    assert texts(SourceConfig(kind="jsonl", path=str(path))) == TEXTS


@pytest.mark.parametrize(
    "content",
    [
        gzip.compress(DATA[:1000]) + gzip.compress(DATA[1000:]) + bytes(512),
        zstd(DATA[:1000]) + zstd(DATA[1000:]),
        SKIPPABLE + zstd(DATA[:1000]) + SKIPPABLE + zstd(DATA[1000:]),
        bz2.compress(DATA[:1000]) + bz2.compress(DATA[1000:]),
        lzma.compress(DATA[:1000]) + bytes(8) + lzma.compress(DATA[1000:]),
    ],
    ids=["gzip", "zstd", "skippable", "bz2", "xz"],
)
def test_files_of_several_members(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    assert texts(SourceConfig(kind="jsonl", path=str(tmp_path))) == TEXTS


@pytest.mark.parametrize("packing", ["gzip", "zstd", "bz2", "xz"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "trailing"])
def test_what_is_damaged_is_named(tmp_path: Path, packing: str, damage: str) -> None:
    content = bytearray(PACKED[packing])
    if damage == "cut":
        del content[-9:]
    elif damage == "flipped":
        content[len(content) // 2] ^= 0xFF
    else:
        content += b"garbage"
    path = tmp_path / "a.jsonl.packed"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.jsonl\.packed: cannot be read \((damaged|cut short)"):
        read(SourceConfig(kind="jsonl", path=str(path)))


def test_an_empty_file_has_no_records(tmp_path: Path) -> None:
    for name, content in (("a", b""), ("b", gzip.compress(b"")), ("c", zstd(b""))):
        (tmp_path / f"{name}.jsonl").write_bytes(content)
    assert read(SourceConfig(kind="jsonl", path=str(tmp_path))) == []


def others() -> dict[str, tuple[bytes, str]]:
    archive, zipped = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("a.jsonl"), io.BytesIO())
    with zipfile.ZipFile(zipped, "w") as out:
        out.writestr("a.jsonl", DATA)
    table = pa.table({"text": TEXTS})
    parquet, stream, file = io.BytesIO(), io.BytesIO(), io.BytesIO()
    pq.write_table(table, parquet)
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    with pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    return {
        "parquet": (parquet.getvalue(), "kind: parquet"),
        "stream": (stream.getvalue(), "kind: arrow"),
        "file": (file.getvalue(), "kind: arrow"),
        "zip": (zipped.getvalue(), "a zip archive, not JSON lines: unpack it"),
        "tar": (archive.getvalue(), "a tar archive, not JSON lines: unpack it"),
        "tar.gz": (gzip.compress(archive.getvalue()), "a tar archive, not JSON lines: unpack it"),
        "lz4": (pa.compress(DATA, codec="lz4", asbytes=True), "LZ4"),
        "pointer": (POINTER, "a pointer of Git LFS, not JSON lines: fetch its content (git lfs"),
        "page": (b"<!DOCTYPE html>\n<html><body>log in", "a web page, not JSON lines: fetch"),
        "array": (json.dumps([{"text": "a"}, {"text": "b"}]).encode(), "a JSON array, not"),
        "indented array": (json.dumps([{"text": "a"}], indent=1).encode(), "a JSON array, not"),
        "indented": (json.dumps({"text": "a"}, indent=1).encode("utf-8-sig"), "JSON of many lines"),
        "utf-16": ('{"text": "a"}\n'.encode("utf-16"), "UTF-16"),
    }


POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)


@pytest.mark.parametrize("name", others())
def test_what_is_no_text_at_all_is_called_by_its_name(tmp_path: Path, name: str) -> None:
    content, message = others()[name]
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read(SourceConfig(kind="jsonl", path=str(path)))
    assert f"{path}: is " in str(error.value) and message in str(error.value)


def test_text_files_are_unpacked_too(tmp_path: Path) -> None:
    for name, content in PACKED.items():
        (tmp_path / name).write_bytes(content)
    assert texts(SourceConfig(kind="text", path=str(tmp_path))) == [DATA.decode()] * len(PACKED)


def test_a_read_error_of_the_disk_says_nothing_of_the_file(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(DATA)
    config = SourceConfig(kind="jsonl", path=str(path))
    (item,) = SOURCES["jsonl"].list_inputs(config)

    def fails(path: str) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("frame_jax.files.open_binary", fails)
    with pytest.raises(UserError) as error:
        read(config)
    assert f"{item.path}: cannot be read now (Input/output error)" in str(error.value)
    assert "replace" not in str(error.value)


@pytest.mark.parametrize("kind", ["parquet", "arrow", "text"])
def test_what_came_in_place_of_a_table_or_a_text_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a"
    given = {"pointer": POINTER, "page": b"\n<html><body>log in</body></html>"}
    given |= {name: others()[name][0] for name in ("parquet", "file", "zip") if name != kind}
    for name, content in given.items():
        path.write_bytes(content)
        what = {"pointer": "a pointer of Git LFS", "page": "a web page", "zip": "a zip archive"}
        wanted = what.get(name, "Parquet" if name == "parquet" else "Arrow")
        if kind == "text":
            (record,) = read(SourceConfig(kind="text", path=str(path)))
            if name == "page":
                assert record.text == content.decode()  # which is a text
            elif name in ("pointer", "zip"):
                assert record.reason.startswith(f"no text but {wanted}: ")
        elif wanted.lower() != kind:
            with pytest.raises(UserError, match=rf"not a readable {kind.title()} .*it is {wanted}"):
                read(SourceConfig(kind=kind, path=str(path)))
