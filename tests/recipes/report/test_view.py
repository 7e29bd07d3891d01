import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mpo.multimodal.errors import ConfigError, StageError
from recipes.report.view import MOST_CONNECTIONS, page_server

ROOT = Path(__file__).parents[3]


@pytest.fixture
def run(tmp_path):
    (tmp_path / "report.html").write_text("<p>page</p>")
    (tmp_path / "secret.txt").write_text("secret")
    return tmp_path


@pytest.fixture
def server(run):
    server = page_server(run)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def ask(port, path, *, method="GET", host=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.putrequest(method, path, skip_host=host is not None)
    if host is not None:
        connection.putheader("Host", host)
    connection.endheaders()
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response, body


def test_serves_the_page(server):
    for path in ("/", "/report.html", "/?from=mail"):
        response, body = ask(server.server_port, path)
        assert (response.status, body) == (200, b"<p>page</p>")
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    response, body = ask(server.server_port, "/", method="HEAD")
    assert (response.status, body, response.headers["Content-Length"]) == (200, b"", "11")


@pytest.mark.parametrize(
    "path",
    ["/secret.txt", "/../secret.txt", "/%2e%2e/etc/passwd", "//etc/passwd", "/plots/", "/.", "/report.html/..", "/%00"],
)
def test_serves_nothing_else(server, path):
    response, body = ask(server.server_port, path)
    assert response.status == 404
    assert b"secret" not in body.replace(path.encode(), b"")


def test_only_here_and_only_reading(server, run):
    assert server.server_address[0] == "127.0.0.1"
    for address in {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}:
        if not address.startswith("127."):
            with pytest.raises(OSError, match="refused"):
                socket.create_connection((address, server.server_port), timeout=5)
    assert ask(server.server_port, "/", host="evil.example")[0].status == 403
    assert ask(server.server_port, "/", method="POST")[0].status == 501
    (run / "report.html").unlink()
    assert ask(server.server_port, "/")[0].status == 404


def test_wrong_use(tmp_path, server):
    with pytest.raises(StageError, match="mpo report"):
        page_server(tmp_path / "nothing")
    with pytest.raises(StageError, match="mpo report"):
        page_server(tmp_path / "secret.txt")
    with pytest.raises(ConfigError, match="65535"):
        page_server(tmp_path, port=70_000)
    with pytest.raises(ConfigError, match="choose another"):
        page_server(tmp_path, port=server.server_port)


def test_command_stops_on_interrupt(run):
    command = [sys.executable, "-m", "recipes.cli", "view", "--run", str(run)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        # a shell that runs the tests in the background has them ignore it, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    line = process.stdout.readline()
    port = int(re.fullmatch(r"http://127\.0\.0\.1:(\d+)/ .*\n", line)[1])
    assert ask(port, "/")[1] == b"<p>page</p>"
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert (process.returncode, output) == (0, "stopped\n")


def test_connections_are_few_and_do_not_wait_for_ever(server, monkeypatch, capfd):
    """1,500 half requests had 1,500 threads; who says nothing is closed, and who breaks off prints nothing."""
    monkeypatch.setattr("recipes.report.view._Handler.timeout", 0.5)
    before = threading.active_count()
    halves = [socket.create_connection(("127.0.0.1", server.server_port), timeout=5) for _ in range(100)]
    for half in halves:
        with contextlib.suppress(OSError):
            half.sendall(b"GET / HT")
    time.sleep(0.2)
    assert threading.active_count() - before <= MOST_CONNECTIONS + 1
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() <= before
    assert ask(server.server_port, "/")[0].status == 200
    for half in halves:
        half.close()
    assert "Traceback" not in capfd.readouterr().err
