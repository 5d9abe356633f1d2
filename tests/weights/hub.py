"""A model hub on this machine: one repository, its files in a folder, and what was asked of it."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "c" * 40


class Hub(ThreadingHTTPServer):
    """Serves the files of `folder` as `owner/name`."""

    daemon_threads = True

    def __init__(self, folder: Path, ranges: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.ranges = ranges  # whether parts are sent, or all from the beginning
        self.sent: dict[str, int] = {}  # bytes of each file

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has read enough goes."""


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.0"  # a connection for each request, so that a hub can be gone

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if re.fullmatch(r"/api/models/owner/name(/revision/\w+)?", path):
            self.answer(json.dumps(self.about()).encode())
        elif path.startswith("/api/models/owner/name/tree/"):
            self.answer(json.dumps(self.tree()).encode())
        elif path.startswith("/owner/name/resolve/"):
            self.file(path.rpartition("/")[2])
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def about(self) -> dict[str, object]:
        siblings = [{"rfilename": f.name, "size": f.stat().st_size} for f in self.files()]
        return {"id": "owner/name", "modelId": "owner/name", "sha": COMMIT, "siblings": siblings}

    def tree(self) -> list[dict[str, object]]:
        return [
            {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": oid(f)}
            for f in self.files()
        ]

    def files(self) -> list[Path]:
        return sorted(file for file in self.server.folder.iterdir() if file.is_file())

    def file(self, name: str) -> None:
        content = (self.server.folder / name).read_bytes()
        start, end, status = 0, len(content), 200
        if self.server.ranges and (wanted := self.headers.get("Range")):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, status = int(first), 206
            end = min(end, int(last) + 1) if last else end
        part = content[start:end]
        self.send_response(status)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{oid(self.server.folder / name)}"')
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if self.command == "GET":
            self.server.sent[name] = self.server.sent.get(name, 0) + len(part)
            self.wfile.write(part)

    def answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


def oid(file: Path) -> str:
    return hashlib.sha1(file.read_bytes(), usedforsecurity=False).hexdigest()


@contextmanager
def hub_of(folder: Path, ranges: bool = True) -> Iterator[Hub]:
    """A hub for as long as the context lasts."""
    hub = Hub(folder, ranges)
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
