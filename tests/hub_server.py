"""A hub on loopback that serves folders as repositories, with the requests that huggingface_hub really makes.

Of the hub's API it has what a download needs: the commit of a revision, the files of a commit, and the files. Errors
carry the hub's own codes.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

API = re.compile(r"/api/models/(?P<repository>[^/]+/[^/]+)/(?P<what>revision|tree)/(?P<revision>[^?]+)")
FILE = re.compile(r"/(?P<repository>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>[^?]+)")


class HubServer(ThreadingHTTPServer):
    """`with HubServer() as hub: hub.add("org/name", folder); …`; `paths` are the requests that it got."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.paths: list[str] = []
        self.gated: set[str] = set()
        self.broken: set[str] = set()  # whose files are forbidden without a reason
        self._commits: dict[str, dict[str, Path]] = {}
        self._revisions: dict[str, dict[str, str]] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def add(self, repository: str, folder: Path, *, revision: str = "main") -> str:
        """The folder as a commit of the repository that a branch points to; returns the commit."""
        digests = sorted(hashlib.sha256(file.read_bytes()).hexdigest() for file in _files(folder).values())
        commit = hashlib.sha1(f"{repository} {revision} {digests}".encode()).hexdigest()
        self._commits.setdefault(repository, {})[commit] = folder
        self._revisions.setdefault(repository, {})[revision] = commit
        return commit

    def commit(self, repository: str, revision: str) -> str | None:
        known = self._commits[repository]
        return revision if revision in known else self._revisions[repository].get(revision)

    def folder(self, repository: str, commit: str) -> Path:
        return self._commits[repository][commit]

    def has(self, repository: str) -> bool:
        return repository in self._commits

    def __enter__(self) -> HubServer:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.shutdown()
        self.server_close()


def reach_hub(hub: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with HF_ENDPOINT and HF_HUB_CACHE set and HF_HUB_OFFLINE unset before huggingface_hub was imported."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.server.paths.append(self.path)
        found = API.match(self.path) or FILE.match(self.path)
        if found is None or not self.server.has(found["repository"]):
            return self._fail(404, "RepoNotFound", "Repository not found")
        repository = found["repository"]
        commit = self.server.commit(repository, found["revision"].replace("%2F", "/"))
        if commit is None:
            return self._fail(404, "RevisionNotFound", f"Invalid rev id: {found['revision']}")
        files = _files(self.server.folder(repository, commit))
        if "file" in found.groupdict():
            if repository in self.server.gated:
                return self._fail(403, "GatedRepo", f"Access to model {repository} is restricted")
            if repository in self.server.broken:
                return self._fail(403, "", "Forbidden")
            if found["file"] not in files:
                return self._fail(404, "EntryNotFound", "Entry not found")
            return self._send(files[found["file"]].read_bytes(), commit=commit)
        if found["what"] == "revision":
            told: Any = {"id": repository, "sha": commit, "siblings": [{"rfilename": name} for name in files]}
        else:
            told = [
                {"type": "file", "path": name, "size": path.stat().st_size, "oid": _oid(path.read_bytes())}
                for name, path in files.items()
            ]
        return self._send(json.dumps(told).encode(), commit=commit)

    def _send(self, body: bytes, *, commit: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{_oid(body)}"')
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _fail(self, status: int, code: str, message: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.end_headers()

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


def _files(folder: Path) -> dict[str, Path]:
    return {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
