"""A server of the S3 protocol for programs of their own, and one in front that fails on purpose."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import pytest

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "nobody",
    "AWS_SECRET_ACCESS_KEY": "nothing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextlib.contextmanager
def serve(patch: pytest.MonkeyPatch, bucket: str = "bucket") -> Iterator[int]:
    """Yields the port; the libraries' own settings lead them there, to an empty bucket."""
    server_module = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        _, port = server.get_host_and_port()
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        url = f"http://127.0.0.1:{port}"
        patch.setenv("AWS_ENDPOINT_URL", url)
        pytest.importorskip("requests").post(f"{url}/moto-api/reset", timeout=10)  # one a process
        fsspec.filesystem("s3", skip_instance_cache=True).mkdir(bucket)
        yield port
    finally:
        server.stop()


class Failing(ThreadingHTTPServer):
    """Passes requests on to `port`, but answers every `every`th with 500 or 503, `most` in all.

    Args:
        port: Of the server behind this one.
        every: 1 fails all requests.
        most: After so many failures it fails no more.
    """

    daemon_threads = True

    def __init__(self, port: int, every: int, most: int):
        super().__init__(("127.0.0.1", 0), Forward)
        self.behind, self.every, self.most = port, every, most
        self.requests = self.failures = 0
        self.counting = threading.Lock()

    def fails(self) -> int | None:
        with self.counting:
            self.requests += 1
            if self.requests % self.every or self.failures >= self.most:
                return None
            self.failures += 1
            return 500 if self.failures % 2 else 503


class Forward(BaseHTTPRequestHandler):
    """One request, passed on or refused."""

    protocol_version = "HTTP/1.1"
    server: Failing

    def answer(self) -> None:
        body = self.body()
        if (status := self.server.fails()) is not None:
            self.reply(status, {}, b"<Error><Code>InternalError</Code></Error>")
            return
        behind = HTTPConnection("127.0.0.1", self.server.behind)
        headers = {k: v for k, v in self.headers.items() if k.lower() != "transfer-encoding"}
        behind.request(self.command, self.path, body, headers)
        response = behind.getresponse()
        self.reply(response.status, dict(response.getheaders()), response.read())
        behind.close()

    def body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        pieces = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(body))
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def failing(patch: pytest.MonkeyPatch, port: int, every: int, most: int = 40) -> Iterator[Failing]:
    """Leads the libraries to a server that fails now and then."""
    server = Failing(port, every, most)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        with patch.context() as inner:
            inner.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
            yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
