"""`mpo view`: the report of a run at an address of this machine, for a browser that opens no files."""

from __future__ import annotations

import threading
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from mpo.multimodal.errors import ConfigError, StageError
from recipes.config import ViewConfig

HOST = "127.0.0.1"  # nobody outside this machine
PATHS = ("/", "/report.html")
MOST_CONNECTIONS = 32
SILENCE_S = 10.0  # after which a connection that says nothing is closed
_HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
}


def view(config: ViewConfig) -> None:
    """Serve the page until Ctrl-C.

    Raises:
        ConfigError: the port is outside 0 … 65535, or taken.
        StageError: the run has no page yet.
    """
    server = page_server(config.run, port=config.port)
    print(f"http://{HOST}:{server.server_port}/  (Ctrl-C stops)", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print("stopped")
    finally:
        server.server_close()


def page_server(run: str | Path, *, port: int = 0) -> ThreadingHTTPServer:
    """A server of one page, read anew at every request; nothing else of the disk can be asked for.

    Args:
        run: a folder with `report.html`, or the page itself.
        port: 0 takes a free one.

    Raises:
        ConfigError, StageError: as for `view`.
    """
    page = Path(run) / "report.html" if Path(run).is_dir() else Path(run)
    if page.suffix != ".html" or not page.is_file():
        raise StageError(f"{run} has no report: expected {page}; write it with `mpo report --run {run}`")
    if not 0 <= port <= 65535:
        raise ConfigError(f"port must be from 0 (a free one) to 65535, got {port}")
    try:
        return _PageServer((HOST, port), partial(_Handler, page))
    except OSError as error:
        raise ConfigError(f"port {port} of {HOST} cannot be opened ({error.strerror}); choose another or 0") from error


class _PageServer(ThreadingHTTPServer):
    """A thread for each connection, of which there are at most `MOST_CONNECTIONS`; more are closed at once."""

    daemon_threads = True

    def __init__(self, *arguments: Any) -> None:
        self._places = threading.BoundedSemaphore(MOST_CONNECTIONS)
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, *_: object) -> None:
        """Say nothing: a browser that breaks off is no fault."""


class _Handler(BaseHTTPRequestHandler):
    """GET and HEAD of the page; the path is compared, never opened."""

    timeout = SILENCE_S

    server_version = "mpo-view"
    sys_version = ""

    def __init__(self, page: Path, *arguments: object) -> None:
        self.page = page
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def _answer(self) -> None:
        assert isinstance(self.server, ThreadingHTTPServer)
        port = self.server.server_port
        if self.headers.get("Host") not in (f"{HOST}:{port}", f"localhost:{port}"):
            # another site's name that was made to point here must not read the page
            self.send_error(HTTPStatus.FORBIDDEN, explain=f"ask for http://{HOST}:{port}/")
            return
        if self.path.split("?")[0] not in PATHS:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        try:
            content = self.page.read_bytes()
        except OSError:
            self.send_error(HTTPStatus.NOT_FOUND, explain="the report is gone; write it again")
            return
        self.send_response(HTTPStatus.OK)
        for name, value in {**_HEADERS, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Log nothing: a path is text from a stranger."""
