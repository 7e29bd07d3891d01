"""A Hub on this machine: one repository of a dataset or a model, served from a folder as huggingface.co serves it.

What `datasets` and `huggingface_hub` ask for: the repository at a revision, its tree, and its files by `resolve`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "a" * 40


class Hub(ThreadingHTTPServer):
    """Serves the files of `folder` as the dataset (or model) `name`; `asked` lists what was asked for."""

    daemon_threads = True

    def __init__(self, folder: Path, name: str, *, kind: str = "datasets") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.name, self.kind = folder, name, kind
        self.asked: list[str] = []

    @property
    def address(self) -> str:
        """Of the server."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def files(self) -> list[Path]:
        """Of the repository."""
        return sorted(path for path in self.folder.rglob("*") if path.is_file())


@contextmanager
def hub(folder: Path, name: str, *, kind: str = "datasets") -> Iterator[Hub]:
    """The server, in a thread."""
    with Hub(folder, name, kind=kind) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        asked = json.loads(self.rfile.read(length) or b"{}") if length else {}
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"POST {path}")
        if path == f"/api/datasets/{self.server.name}/paths-info/{COMMIT}":
            wanted = asked.get("paths", [])
            self._send(json.dumps([entry for entry in self._tree() if entry["path"] in wanted]).encode())
        else:
            self._missing("EntryNotFound")

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def _answer(self, *, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {path}")
        api = f"/api/{self.server.kind}/{self.server.name}"
        place = f"/{self.server.name}" if self.server.kind == "models" else f"/datasets/{self.server.name}"
        if path in (api, *(f"{api}/revision/{revision}" for revision in ("main", COMMIT))):
            self._send(json.dumps(self._repository()).encode(), body=body)
        elif path.startswith(f"{api}/tree/"):
            inside = path.removeprefix(f"{api}/tree/").partition("/")[2]
            recursive = "recursive=true" in urlsplit(self.path).query.lower()
            found = self._tree(inside, recursive=recursive)
            self._send(json.dumps(found).encode(), body=body) if found else self._missing("EntryNotFound")
        elif path.startswith(f"{place}/resolve/"):
            name = path.removeprefix(f"{place}/resolve/").partition("/")[2]
            file = self.server.folder / name
            self._file(file, body=body) if file.is_file() else self._missing("EntryNotFound")
        else:
            self._missing("RepoNotFound")

    def _repository(self) -> dict[str, Any]:
        names = [str(path.relative_to(self.server.folder)) for path in self.server.files()]
        return {
            "_id": "1",
            "id": self.server.name,
            "sha": COMMIT,
            "private": False,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "lastModified": "2025-01-01T00:00:00.000Z",
            "siblings": [{"rfilename": name} for name in names],
        }

    def _tree(self, inside: str = "", *, recursive: bool = True) -> list[dict[str, Any]]:
        """The entries of a folder, and of those in it."""
        root, folder = self.server.folder, self.server.folder / inside
        found = sorted(folder.rglob("*") if recursive else folder.iterdir()) if folder.is_dir() else []
        return [
            {"type": "file", "oid": _digest(path), "size": path.stat().st_size, "path": str(path.relative_to(root))}
            if path.is_file()
            else {"type": "directory", "oid": COMMIT, "size": 0, "path": str(path.relative_to(root))}
            for path in found
        ]

    def _file(self, file: Path, *, body: bool) -> None:
        self._send(file.read_bytes(), body=body, ETag=f'"{_digest(file)}"', **{"X-Repo-Commit": COMMIT})

    def _send(self, content: bytes, *, body: bool = True, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Type", "application/json")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def _missing(self, code: str) -> None:
        self._send(b"{}", body=self.command != "HEAD", status=404, **{"X-Error-Code": code})


def _digest(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()  # as git names a blob
