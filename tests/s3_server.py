"""A server of the S3 protocol on this machine (moto's), that fails when a test asks it to."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import requests
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

# A request, as WSGI has it, to the status to answer with; None lets it pass.
Fault = Callable[[dict[str, Any]], int | None]


class Server:
    """The server, what it was asked, and how it fails.

    Attributes:
        url: Where it is.
        requests: Method and path of each request so far.
        fault: Set by a test; asked for each request.
        cut: Bytes after which the body of an answer to GET ends, for the next `cuts` of them.
    """

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.fault: Fault = lambda request: None
        self.cuts = 0
        self._application = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, True, 1, Quiet)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def every(self, count: int, *statuses: int) -> None:
        """Every `count`-th request is answered with one of the statuses, in turn."""
        asked = 0

        def fault(request: dict[str, Any]) -> int | None:
            nonlocal asked
            asked += 1
            return statuses[asked // count % len(statuses)] if asked % count == 0 else None

        self.fault = fault

    def put(self, bucket: str, folder: Path) -> str:
        """Uploads the files of a folder to a new bucket, under the folder's name; its URL."""
        store = fsspec.filesystem("s3")
        store.mkdir(bucket)
        store.put(str(folder), f"{bucket}/{folder.name}", recursive=True)
        self.requests.clear()
        return f"s3://{bucket}/{folder.name}"

    @contextlib.contextmanager
    def running(self) -> Iterator[Server]:
        self._thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()

    def _answer(self, request: dict[str, Any], start: Any) -> Iterable[bytes]:
        self.requests.append(f"{request['REQUEST_METHOD']} {request['PATH_INFO']}")
        status = self.fault(request)
        if status is not None:
            start(f"{status} Fault", [("Content-Length", "0")])
            return [b""]
        body = self._application(request, start)
        if self.cuts and request["REQUEST_METHOD"] == "GET" and request.get("HTTP_RANGE"):
            self.cuts -= 1
            return [b"".join(body)[:10]]  # less than its length says
        return body


class Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:
        pass


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """A server that this process's libraries take for S3; waits between attempts are short."""
    environment = {
        "AWS_ACCESS_KEY_ID": "a key",
        "AWS_SECRET_ACCESS_KEY": "a secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(tmp_path / "no_config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "no_credentials"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("frame_jax.retries.RETRY_SECONDS", (0.01, 0.02, 0.02, 0.02, 0.02))
    with Server().running() as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        reset(server.url)
        forget_file_systems()
        yield server
        server.fault = lambda request: None
        reset(server.url)
        forget_file_systems()


def reset(url: str) -> None:
    """Empties the store: moto keeps one a process, whatever server asks for it."""
    requests.post(f"{url}/moto-api/reset", timeout=10)


def forget_file_systems() -> None:
    """Makes fsspec look at the environment again."""
    fsspec.get_filesystem_class("s3").clear_instance_cache()
