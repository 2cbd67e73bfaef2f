"""Remote files: found as local ones are, read through passing faults, cached by digest."""

from __future__ import annotations

import contextlib
import gzip
import http.server
import io
import json
import os
import random
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import pytest

from frame_jax import files
from frame_jax.config.corpus import SourceConfig
from frame_jax.corpus.sources.listing import list_files
from frame_jax.errors import UserError
from tests.corpus.reading import read
from tests.fake_stores import store
from tests.s3_server import Server, forget_file_systems, s3

__all__ = ["s3"]
CONTENT = random.Random(0).randbytes(9_000_000)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of files, two of them hidden, one of several blocks."""
    for name in ("a.jsonl", "b/c.jsonl", "b/d/e.jsonl", "b/note.txt", ".h/i.jsonl", "b/.j.jsonl"):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (tmp_path / "data" / "large.bin").write_bytes(CONTENT)
    return tmp_path / "data"


@pytest.mark.slow
@pytest.mark.parametrize(
    "below",
    [
        "",
        "/",
        "/a.jsonl",
        "/b/note.txt",
        "/*.jsonl",
        "/**/*.jsonl",
        "/b/*",
        "/*/d/*",
        "/x",
        "/?.j*",
    ],
)
def test_a_bucket_is_listed_as_a_folder_is(s3: Server, folder: Path, below: str) -> None:
    url = s3.put("bucket", folder)
    here, single = list_files(f"{folder}{below}", (".jsonl",))
    there, single_there = list_files(f"{url}{below}", (".jsonl",))
    assert [(f.name, f.size) for f in there] == [(f.name, f.size) for f in here]
    assert single == single_there
    assert all(f.path.startswith(url) for f in there)
    assert not files.is_remote(str(folder)) and files.is_remote(url)


@pytest.mark.slow
def test_reading_goes_on_through_faults_that_pass(s3: Server, folder: Path) -> None:
    url = s3.put("bucket", folder)
    s3.every(4, 500, 503)
    s3.cuts = 2
    with files.open_binary(f"{url}/large.bin") as file:
        assert file.read() == CONTENT
        assert file.seek(-5, io.SEEK_END) == len(CONTENT) - 5
        assert file.read(100) == CONTENT[-5:] and file.read(1) == b""
        file.seek(4_200_000)
        assert file.read(10) == CONTENT[4_200_000:4_200_010] and file.tell() == 4_200_010
    assert len(files.find_remote_files(f"{url}/**/*.jsonl")) == 5
    assert s3.cuts == 0 and len(s3.requests) > 8


def test_a_fault_that_lasts_names_bucket_key_and_cause(s3: Server, folder: Path) -> None:
    url = s3.put("bucket", folder)
    s3.fault = lambda request: 503
    with pytest.raises(UserError) as error:
        files.open_binary(f"{url}/a.jsonl")
    assert f"{url}/a.jsonl: cannot be read after 6 attempts (" in str(error.value)
    assert "Service Unavailable" in str(error.value)
    assert "run the same command again" in str(error.value)
    with pytest.raises(UserError, match=rf"{url}: cannot be listed after 6 attempts"):
        files.find_remote_files(url)
    # It also names itself in the middle of a file.
    s3.fault = lambda request: None
    with files.open_binary(f"{url}/large.bin") as file:
        file.read(10)
        s3.fault = lambda request: 500
        with pytest.raises(UserError, match=rf"{url}/large\.bin: cannot be read after 6 attempts"):
            file.read()


def test_what_does_not_pass_is_not_tried_again(s3: Server, folder: Path, monkeypatch) -> None:
    url = s3.put("bucket", folder)
    monkeypatch.setattr("frame_jax.retries.RETRY_SECONDS", (60, 60))
    s3.fault = lambda request: 403
    with pytest.raises(UserError, match=rf"{url}/a\.jsonl: cannot be read \(PermissionError"):
        files.open_binary(f"{url}/a.jsonl")
    s3.fault = lambda request: None
    for path in (f"{url}/absent", "s3://nobucket/key"):
        assert files.find_remote_files(path) == []
        with pytest.raises(UserError, match=f"{path}: there is no such file"):
            files.open_binary(path)
        with pytest.raises(UserError, match=f"{path}: there is no such file or folder"):
            files.local_copy(path)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    forget_file_systems()
    with pytest.raises(UserError, match=r"a\.jsonl: cannot be .*NoCredentialsError.*credentials"):
        files.open_binary(f"{url}/a.jsonl")


def test_schemes_that_are_not_known_and_libraries_that_are_missing(monkeypatch) -> None:
    with pytest.raises(UserError, match=r"zz:// is not known: use s3://, gs://"):
        files.find_remote_files("zz://bucket/key")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match=r"gs://b/k: a library for gs:// is missing.*\[remote\]"):
        files.open_binary("gs://b/k")


def test_a_cached_file_is_fetched_once(s3: Server, folder: Path, tmp_path: Path) -> None:
    url = s3.put("bucket", folder)
    s3.every(4, 503)
    path = files.local_copy(f"{url}/large.bin")
    assert path.read_bytes() == CONTENT and path.name == "large.bin"
    assert path.is_relative_to(tmp_path / "cache" / "frame_jax")
    s3.fault = lambda request: None
    s3.requests.clear()
    assert files.local_copy(f"{url}/large.bin") == path
    assert not [r for r in s3.requests if r.startswith("GET") and r.endswith("large.bin")]
    # Another content, though of the same size, is another file.
    fsspec.filesystem("s3").pipe("bucket/data/large.bin", CONTENT[::-1])
    again = files.local_copy(f"{url}/large.bin")
    assert again != path and again.read_bytes() == CONTENT[::-1] and path.read_bytes() == CONTENT


def test_a_cached_folder_holds_what_is_wanted_and_is_completed(s3: Server, folder: Path) -> None:
    url = s3.put("bucket", folder)
    wanted = [file.name for file in files.find_remote_files(url) if file.name.endswith(".jsonl")]
    s3.fault = lambda request: 503 if request["PATH_INFO"].endswith("e.jsonl") else None
    with pytest.raises(UserError, match=r"b/d/e\.jsonl: cannot be read after"):
        files.local_copy(url, lambda name: name.endswith(".jsonl"))
    s3.fault = lambda request: None
    s3.requests.clear()
    path = files.local_copy(url, lambda name: name.endswith(".jsonl"))
    assert sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()) == wanted
    assert (path / "b/d/e.jsonl").read_text() == "b/d/e.jsonl"
    assert not [r for r in s3.requests if r.endswith("a.jsonl") and r.startswith("GET")]
    assert files.local_copy(str(folder)) == folder


def test_a_full_disk_is_no_fault_of_the_bucket(s3: Server, folder: Path, monkeypatch) -> None:
    url = s3.put("bucket", folder)

    async def full(self: Any, *args: Any, **kwargs: Any) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("s3fs.S3FileSystem._get_file", full)
    forget_file_systems()
    with pytest.raises(UserError, match=r"no room to write .*a\.jsonl"):
        files.local_copy(f"{url}/a.jsonl")


@pytest.fixture(params=["gs://bucket", "hf://datasets/owner/name", "hf://datasets/owner/name@main"])
def other_store(request: pytest.FixtureRequest, folder: Path, monkeypatch) -> Iterator[Any]:
    """A server for Google's storage or the Hub, and the URL of the folder there."""
    names = [p.relative_to(folder.parent).as_posix() for p in folder.rglob("*") if p.is_file()]
    monkeypatch.setattr("frame_jax.retries.RETRY_SECONDS", (0.01, 0.02, 0.02, 0.02, 0.02))
    with google({n: (folder.parent / n).read_bytes() for n in names}, monkeypatch) as server:
        monkeypatch.setitem(fsspec.config.conf, "hf", {"endpoint": server.url})
        yield server, f"{request.param}/data"


@contextlib.contextmanager
def google(content: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A server that this process's libraries take for Google's storage."""
    with store(content) as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # it asks by gRPC
        monkeypatch.setitem(fsspec.config.conf, "gs", {"token": "anon"})
        yield server


@pytest.mark.slow
def test_google_and_the_hub_are_listed_and_read(other_store: Any, folder: Path) -> None:
    server, url = other_store
    for below in ("", "/a.jsonl", "/*.jsonl", "/**/*.jsonl", "/absent"):
        here, _ = list_files(f"{folder}{below}", (".jsonl",))
        there, _ = list_files(f"{url}{below}", (".jsonl",))
        assert [(f.name, f.size) for f in there] == [(f.name, f.size) for f in here]
        assert all(f.path.startswith(url) for f in there)
    server.faults = 1
    with files.open_binary(f"{url}/large.bin") as file:
        assert file.read() == CONTENT
    with pytest.raises(UserError, match=f"{url}/absent: there is no such file"):
        files.open_binary(f"{url}/absent")


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files and pages of links; ranges only where the path begins with /ranges."""

    faults = 0

    def do_GET(self) -> None:
        if type(self).faults:
            type(self).faults -= 1
            self.send_error(503)
            return
        asked = self.headers.get("Range")
        path = Path(self.translate_path(self.path))
        if asked and self.server.ranges and path.is_file():  # type: ignore[attr-defined]
            first, last = asked.removeprefix("bytes=").split("-")
            data = path.read_bytes()[int(first) : int(last) + 1]
            self.send_response(206)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        else:
            super().do_GET()

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(params=[True, False], ids=["ranges", "no ranges"])
def web(request: pytest.FixtureRequest, folder: Path, monkeypatch) -> Iterator[str]:
    """The URL of the folder behind a web server that knows ranges, or does not."""
    monkeypatch.setattr("frame_jax.retries.RETRY_SECONDS", (0.01, 0.02, 0.02, 0.02, 0.02))
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Handler, directory=str(folder.parent))
    )
    server.ranges = request.param  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/data"
    server.shutdown()
    server.server_close()


def test_a_web_server_is_listed_and_read(web: str, folder: Path) -> None:
    assert [f.name for f in files.find_remote_files(f"{web}/a.jsonl")] == ["a.jsonl"]
    assert [(f.name, f.size) for f in files.find_remote_files(f"{web}/*.jsonl")] == [("a.jsonl", 7)]
    assert "b/d/e.jsonl" in [f.name for f in files.find_remote_files(f"{web}/**/*.jsonl")]
    assert files.find_remote_files(f"{web}/absent.jsonl") == []
    for page in (web, f"{web}/"):
        assert {"a.jsonl", "b/c.jsonl", "b/d/e.jsonl"} <= {
            f.name for f in files.find_remote_files(page)
        }
    Handler.faults = 3
    with files.open_binary(f"{web}/large.bin") as file:
        assert file.read(7) == CONTENT[:7]
        file.seek(4_200_000)
        assert file.read(10) == CONTENT[4_200_000:4_200_010]
        file.seek(0)
        assert file.read() == CONTENT
    assert files.local_copy(f"{web}/a.jsonl").read_text() == "a.jsonl"


def put_markers(put: Any, prefix: str) -> None:
    """Empty objects by the names of folders, as consoles and other file systems leave them."""
    for name in ("data", "data/b", "data/b/d", "data/b_$folder$", "data_$folder$", "data/b/"):
        put(f"{prefix}/{name}", b"")


def test_empty_objects_that_stand_for_folders_are_no_files(s3: Server, folder: Path) -> None:
    url = s3.put("bucket", folder)
    before = {
        pattern: files.find_remote_files(url + pattern)
        for pattern in ("", "/b", "/b/**", "/*.jsonl")
    }
    put_markers(fsspec.filesystem("s3").pipe, "bucket")
    forget_file_systems()
    assert {pattern: files.find_remote_files(url + pattern) for pattern in before} == before
    # An empty file is one.
    fsspec.filesystem("s3").pipe("bucket/data/empty.jsonl", b"")
    for path in (f"{url}/empty.jsonl", f"{url}/*.jsonl", url):
        assert "empty.jsonl" in [file.name for file in files.find_remote_files(path)]


def test_a_presigned_address_is_the_file_without_its_query(
    web: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = []
    for day in ("first/a=", "second*[x]"):
        url = f"{web}/b/note.txt?X-Amz-Date={day}&X-Amz-Signature=secret{day}"
        [file] = files.find_remote_files(url)
        assert (file.name, file.size, file.path) == ("note.txt", 10, url)
        listed, single = list_files(url, (".jsonl",))
        assert single and listed[0].name == "note.txt"
        with files.open_binary(file.path) as stream:
            assert stream.read() == b"b/note.txt"
        found.append(files.local_copy(url))
    assert found[0] == found[1] and found[0].read_text() == "b/note.txt"
    assert not [path for path in (tmp_path / "cache").rglob("*") if "secret" in str(path)]


def test_what_google_serves_unpacked_is_read_whole(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An object with `Content-Encoding: gzip`: no ranges, and more bytes than its size says."""
    lines = [{"id": str(number), "text": f"line {number} of many"} for number in range(900)]
    data = "".join(json.dumps(line) + "\n" for line in lines).encode()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    packed = {"data/a.jsonl": gzip.compress(data), "data/b.jsonl.gz": gzip.compress(data)}
    with google(packed, monkeypatch) as server:
        for name in packed:
            for encoded in (set(), {name}):
                server.packed = encoded
                fsspec.get_filesystem_class("gs").clear_instance_cache()
                source = SourceConfig(kind="jsonl", path=f"gs://bucket/{name}")
                assert [record.id for record in read(source)] == [line["id"] for line in lines]
                wanted = data if encoded else packed[name]
                with files.open_binary(f"gs://bucket/{name}") as file:
                    assert file.seek(-9, io.SEEK_END) == len(wanted) - 9
                    assert file.read() == wanted[-9:]
        server.packed = {"data/a.jsonl"}
        assert files.local_copy("gs://bucket/data/a.jsonl").read_bytes() == data


def test_the_links_of_a_page_to_itself_in_another_order_are_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Apache has them at the head of a folder's page; they would be read as texts."""
    links = ["?C=N;O=D", "?C=M;O=A", "/data/", "a.txt", "b.txt?download=1"]
    page = "".join(f'<a href="{link}">{link}</a>' for link in links)
    (tmp_path / "data").mkdir()
    for name, content in (("index.html", page), ("a.txt", "a"), ("b.txt", "b")):
        (tmp_path / "data" / name).write_text(content)
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Handler, directory=str(tmp_path))
    )
    server.ranges = False  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/data/"
        assert [file.name for file in files.find_remote_files(url)] == ["a.txt", "b.txt"]
        found = read(SourceConfig(kind="text", path=url))
        assert [(record.id, record.text) for record in found] == [("a.txt", "a"), ("b.txt", "b")]
    finally:
        server.shutdown()
        server.server_close()
