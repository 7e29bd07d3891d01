"""A real HTTP server on loopback that answers chat completions, and misbehaves on demand.

Answers are a function of model, messages, seed and choice, so a test can tell what was asked from what came; or those
of a real model (`tests/served_model.py`). Faults are taken in order, one per request, from `faults`; the word `ok`
answers well; when none is left, `then` is what is done.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class ModelServer(ThreadingHTTPServer):
    """`with ModelServer() as server: … server.base_url`; `requests` are the bodies it got, `most` at one time.

    `reply` makes the reply to a body; `tokenize` the ids of a text, for a server that has `/tokenize`;
    `models` the names that it says it serves. What contains `breaks_on` gets a 500.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(
        self,
        *,
        delay_s: float = 0.0,
        reply: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        tokenize: Callable[[str], list[int]] | None = None,
        models: Sequence[str] = (),
        on_models: Callable[[], None] = lambda: None,
        port: int = 0,
    ) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.models, self.on_models, self.breaks_on = models, on_models, ""
        self.reply, self.tokenize = reply or scripted_reply, tokenize
        self.faults: list[str] = []
        self.then = "ok"
        self.delay_s = delay_s
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.active = self.most = 0
        self.lock = threading.Lock()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def __enter__(self) -> ModelServer:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: object) -> None:
        """A client that hangs up is part of the tests."""


def answer(body: dict[str, Any], choice: int) -> str:
    """The text of one choice."""
    asked = json.dumps([body["model"], body["messages"]], sort_keys=True)
    return f"{hashlib.sha256(asked.encode()).hexdigest()[:8]} seed {body['seed']} choice {choice}"


def asked_about(body: dict[str, Any]) -> str:
    """Digest of the first image of a request, or its question where it has none."""
    first = body["messages"][0]["content"][0]
    return first["text"] if "text" in first else hashlib.sha256(first["image_url"]["url"].encode()).hexdigest()[:16]


def scripted_reply(body: dict[str, Any]) -> dict[str, Any]:
    """Texts of `answer`, as many as were asked for."""
    choices = []
    for index in reversed(range(body["n"])):  # in no order
        text = answer(body, index)
        choice: dict[str, Any] = {
            "index": index,
            "message": {"role": "assistant", "content": text},
            "finish_reason": "length" if index % 3 == 2 else "stop",
        }
        if body.get("logprobs"):
            choice["logprobs"] = {"content": [{"token": word, "logprob": -0.5} for word in text.split()]}
        choices.append(choice)
    total = sum(len(choice["message"]["content"].split()) for choice in choices)
    return {"id": "x", "object": "chat.completion", "choices": choices, "usage": {"completion_tokens": total}}


class _Handler(BaseHTTPRequestHandler):
    server: ModelServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.paths.append(self.path)
        if self.path == "/v1/models":
            self.server.on_models()
        named = {"object": "list", "data": [{"id": name, "object": "model"} for name in self.server.models]}
        self._send(200, json.dumps(named if self.path == "/v1/models" else {}).encode())

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize":
            return self._tokenize(body)
        with server.lock:
            server.paths.append(self.path)
            server.requests.append(body)
            server.headers.append({key.lower(): value for key, value in self.headers.items()})
            fault = server.faults.pop(0) if server.faults else server.then
            if server.breaks_on and server.breaks_on in json.dumps(body):
                fault = "500"
            server.active += 1
            server.most = max(server.most, server.active)
        time.sleep(server.delay_s)
        try:
            getattr(self, f"_{fault}")(body)
        finally:
            with server.lock:
                server.active -= 1

    def _tokenize(self, body: dict[str, Any]) -> None:
        if self.server.tokenize is None:
            self._send(404, b'{"detail": "Not Found"}')
        else:
            self._send(200, json.dumps({"tokens": self.server.tokenize(body["prompt"])}).encode())

    def _ok(self, body: dict[str, Any], **changes: Any) -> None:
        self._send(200, json.dumps(self._reply(body) | changes).encode())

    def _reply(self, body: dict[str, Any]) -> dict[str, Any]:
        return self.server.reply(body)

    def _500(self, body: dict[str, Any]) -> None:
        self._send(500, b"Internal Server Error", kind="text/plain")

    def _429(self, body: dict[str, Any]) -> None:
        self._send(429, b'{"error": {"message": "slow down"}}', **{"Retry-After": "30"})

    def _refuse(self, body: dict[str, Any]) -> None:
        key = self.headers["Authorization"]
        self._send(400, json.dumps({"error": {"message": f"prompt too long; you sent {key}"}}).encode())

    def _401(self, body: dict[str, Any]) -> None:
        self._send(401, json.dumps({"error": {"message": f"bad key {self.headers['Authorization']}"}}).encode())

    def _404(self, body: dict[str, Any]) -> None:
        self._send(404, b'{"error": {"message": "The model does not exist"}}')

    def _drip(self, body: dict[str, Any]) -> None:
        """A byte every 20 ms, for much longer than anybody should wait."""
        self._head(200, 100_000)
        for _ in range(3000):
            self.wfile.write(b" ")
            self.wfile.flush()
            time.sleep(0.02)

    def _reset(self, body: dict[str, Any]) -> None:
        """Half a reply, then a TCP reset."""
        content = json.dumps(self._reply(body)).encode()
        self._head(200, len(content))
        self.wfile.write(content[: len(content) // 2])
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())

    def _html(self, body: dict[str, Any]) -> None:
        self._send(200, b"<html>Welcome to our proxy</html>", kind="text/html")

    def _garbage(self, body: dict[str, Any]) -> None:
        self._send(200, b'{"choices": [{"index": 0, "mess\xff')

    def _surrogate(self, body: dict[str, Any]) -> None:
        self._send(200, json.dumps(self._reply(body)).replace("seed", "\\ud800").encode())

    def _nan(self, body: dict[str, Any]) -> None:
        self._send(200, re.sub(r'"logprob": [^,}]+', '"logprob": NaN', json.dumps(self._reply(body))).encode())

    def _no_logprobs(self, body: dict[str, Any]) -> None:
        self._changed(body, logprobs={"content": []})

    def _too_few(self, body: dict[str, Any]) -> None:
        self._ok(body, choices=self._reply(body)["choices"][1:])

    def _too_many(self, body: dict[str, Any]) -> None:
        self._ok(body, choices=self._reply({**body, "n": body["n"] + 1})["choices"])

    def _twice(self, body: dict[str, Any]) -> None:
        self._ok(body, choices=self._reply(body)["choices"][:1] * body["n"])

    def _empty_choices(self, body: dict[str, Any]) -> None:
        self._ok(body, choices=[])

    def _huge(self, body: dict[str, Any]) -> None:
        """More than any reply may have, as fast as it goes."""
        self._head(200, 10**12)
        while True:
            self.wfile.write(b" " * 2**20)

    def _packed(self, body: dict[str, Any]) -> None:
        self._send(200, b"x", **{"Content-Encoding": "gzip"})

    def _redirect(self, body: dict[str, Any]) -> None:
        self._send(307, b"", Location=f"http://127.0.0.1:{self.server.server_address[1]}/internal")

    def _null(self, body: dict[str, Any]) -> None:
        self._changed(body, message={"role": "assistant", "content": None})

    def _filtered(self, body: dict[str, Any]) -> None:
        self._changed(body, finish_reason="content_filter")

    def _changed(self, body: dict[str, Any], **changes: Any) -> None:
        self._ok(body, choices=[choice | changes for choice in self._reply(body)["choices"]])

    def _send(self, status: int, content: bytes, *, kind: str = "application/json", **headers: str) -> None:
        self._head(status, len(content), kind, **headers)
        self.wfile.write(content)

    def _head(self, status: int, length: int, kind: str = "application/json", **headers: str) -> None:
        self.send_response(status)
        for key, value in {"Content-Type": kind, "Content-Length": str(length), **headers}.items():
            self.send_header(key, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Quiet."""
