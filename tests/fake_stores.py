"""As much of Google's storage and of the Hugging Face Hub as reading files from them asks for."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

SHA = "0123456789abcdef0123456789abcdef01234567"


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers from `server.content`: path to bytes. `server.faults` answers are 503 first."""

    server: Any

    def do_GET(self) -> None:
        if self.server.faults:
            self.server.faults -= 1
            self.send(503, b"")
            return
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        if parts.path.startswith(("/storage/v1/b/", "/download/storage/v1/b/")):
            self.google(parts.path.partition("/b/")[2], query)
        else:
            self.hub(parts.path, query)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        """Of the Hub: the files among some paths."""
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        try:
            paths = json.loads(body)["paths"]
        except ValueError:
            paths = parse_qs(body).get("paths", [])
        self.json(
            [self.hub_file(p) for p in paths if p in self.server.content] or self.folders(paths)
        )

    def folders(self, paths: list[str]) -> list[dict[str, Any]]:
        names = self.server.content
        return [
            {"type": "directory", "oid": SHA, "path": p}
            for p in paths
            if any(name.startswith(f"{p}/") for name in names)
        ]

    def google(self, rest: str, query: Mapping[str, str]) -> None:
        content: dict[str, bytes] = self.server.content
        bucket, _, name = rest.partition("/o")
        name = unquote(name.removeprefix("/"))
        if bucket != "bucket" or (name and name not in content):
            self.send(404, b"{}")
        elif not rest.partition("/o")[1]:
            self.json({"kind": "storage#bucket", "name": bucket})
        elif name and query.get("alt") == "media" and name in self.server.packed:
            self.unpacked(content[name])
        elif name and query.get("alt") == "media":
            self.ranged(content[name])
        elif name:
            self.json(self.google_object(name))
        else:
            prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
            found = [n for n in sorted(content) if n.startswith(prefix)]
            below = [n for n in found if delimiter and delimiter in n[len(prefix) :]]
            folders = {prefix + n[len(prefix) :].split("/")[0] + "/" for n in below}
            self.json(
                {
                    "kind": "storage#objects",
                    "prefixes": sorted(folders),
                    "items": [self.google_object(n) for n in found if n not in below],
                }
            )

    def google_object(self, name: str) -> dict[str, Any]:
        data = self.server.content[name]
        packed = {"contentEncoding": "gzip"} if name in self.server.packed else {}
        return packed | {
            "kind": "storage#object",
            "bucket": "bucket",
            "name": name,
            "size": str(len(data)),
            "generation": "1",
            "md5Hash": hashlib.md5(data).hexdigest(),
            "timeCreated": "2026-01-01T00:00:00.000Z",
            "updated": "2026-01-01T00:00:00.000Z",
        }

    def hub(self, path: str, query: Mapping[str, str]) -> None:
        content: dict[str, bytes] = self.server.content
        if path.startswith("/datasets/owner/name/resolve/"):
            name = unquote(path.split("/", 6)[6])
            self.ranged(content[name]) if name in content else self.send(404, b"{}")
        elif path.startswith("/api/datasets/owner/name/tree/"):
            folder = unquote([*path.split("/", 7), ""][7])
            prefix = f"{folder}/" if folder else ""
            found = [n for n in sorted(content) if n.startswith(prefix)]
            if not found:
                self.send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
                return
            tree = {n: self.hub_file(n) for n in found if "/" not in n[len(prefix) :]}
            if query.get("recursive", "").lower() in ("true", "1"):
                tree = {n: self.hub_file(n) for n in found}
            for n in found:
                inner = n[len(prefix) :].split("/")[:-1]
                for depth in range(1, len(inner) + 1 if len(tree) == len(found) else 2):
                    if inner:
                        name = prefix + "/".join(inner[:depth])
                        tree[name] = {"type": "directory", "oid": SHA, "path": name, "size": 0}
            self.json(list(tree.values()))
        elif path.startswith("/api/datasets/owner/name"):
            self.json({"id": "owner/name", "sha": SHA, "siblings": [], "private": False})
        else:
            self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def hub_file(self, name: str) -> dict[str, Any]:
        data = self.server.content[name]
        oid = hashlib.sha1(data).hexdigest()
        return {"type": "file", "oid": oid, "size": len(data), "path": name}

    def unpacked(self, data: bytes) -> None:
        """A packed object whole, whatever range was asked for: as it is to those who take gzip."""
        if "gzip" in self.headers.get("Accept-Encoding", ""):
            self.send(200, data, {"Content-Encoding": "gzip"})
        else:
            self.send(200, gzip.decompress(data))

    def ranged(self, data: bytes) -> None:
        headers = {"ETag": f'"{hashlib.md5(data).hexdigest()}"', "X-Repo-Commit": SHA}
        asked = self.headers.get("Range")
        if not asked:
            self.send(200, data, headers)
            return
        first, _, last = asked.removeprefix("bytes=").partition("-")
        piece = data[int(first) : int(last) + 1 if last else None]
        headers["Content-Range"] = f"bytes {first}-{int(first) + len(piece) - 1}/{len(data)}"
        self.send(206, piece, headers)

    def json(self, value: Any) -> None:
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def send(self, status: int, data: bytes, headers: Mapping[str, str] = {}) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


@contextlib.contextmanager
def store(content: dict[str, bytes]) -> Iterator[Any]:
    """A server with these files; its `url`, how many `faults` its next answers are, and which
    files of Google's storage have the `Content-Encoding` gzip (`packed`)."""
    server: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.content, server.faults, server.packed = content, 0, set()
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
