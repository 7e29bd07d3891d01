"""`mpo serve`: a PRM behind HTTP, for a trainer or a reranker in another process."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mpo.multimodal.errors import ConfigError
from recipes.config import ServeConfig
from recipes.stage.prms import prm_of
from rewards.scoring.aggregation import AGGREGATIONS
from rewards.scoring.scoring_queue import Counts, ScoringQueue

TOKEN = "MPO_SERVE_TOKEN"
LOOPBACK = ("127.0.0.1", "::1", "localhost")
GRACE_S = 30  # for requests under way when the server is told to end


def serve(config: ServeConfig) -> None:
    """Serve until SIGTERM or Ctrl-C; requests under way are answered first.

    Raises:
        ConfigError: an address of the network without a token, a port that is taken, or no extra.
    """
    try:
        import uvicorn

        from recipes.answering.score_app import score_app
    except ImportError as error:
        raise ConfigError(f"mpo serve needs the extra: pip install -e '.[serve]' ({error})") from error
    token = os.environ.get(TOKEN, "")
    if config.host not in LOOPBACK and not token:
        raise ConfigError(
            f"host {config.host} can be reached from other machines: put a token into the environment variable "
            f"{TOKEN}, which clients send as Authorization: Bearer, or serve on 127.0.0.1"
        )
    if config.aggregation not in AGGREGATIONS:
        raise ConfigError(f"unknown aggregation {config.aggregation!r}: expected one of {', '.join(AGGREGATIONS)}")
    if config.batch_rows < 1 or config.most_waiting < 1:
        raise ConfigError(
            f"expected batch_rows and most_waiting of at least 1, got {config.batch_rows}, {config.most_waiting}"
        )
    with _listening(config) as listener:
        prm = prm_of(config.prm, prm_format=config.prm_format, batch_rows=config.batch_rows)
        queue = ScoringQueue(prm, how=config.aggregation, rows=config.batch_rows, most_waiting=config.most_waiting)
        with queue:
            hosts = LOOPBACK if config.host in LOOPBACK else ("*",)
            app = score_app(queue, name=config.prm.resolve().name, token=token, hosts=hosts)
            settings = uvicorn.Config(
                app, log_level="warning", access_log=False, timeout_graceful_shutdown=GRACE_S, server_header=False
            )
            address, port = listener.getsockname()[:2]
            print(f"http://{address}:{port}  (POST /score, POST /rerank, GET /health, GET /metrics; Ctrl-C stops)")
            sys.stdout.flush()
            asyncio.run(_server(settings).serve(sockets=[listener]))
    print(_closing(queue.counts), file=sys.stderr)


def _listening(config: ServeConfig) -> socket.socket:
    if not 0 <= config.port <= 65535:
        raise ConfigError(f"port must be from 0 (a free one) to 65535, got {config.port}")
    try:
        return socket.create_server((config.host, config.port), family=_family(config.host))
    except OSError as error:
        raise ConfigError(
            f"port {config.port} of {config.host} cannot be opened ({error.strerror}); choose another or 0"
        ) from error


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _server(settings: Any) -> Any:
    import uvicorn

    class Ending(uvicorn.Server):
        """Ends at SIGTERM and SIGINT with exit code 0; uvicorn's own handlers would raise them once more."""

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self.handle_exit, number, None)
            yield

    return Ending(settings)


def _closing(counts: Counts) -> str:
    lost = "".join(f", {number} without a score ({reason})" for reason, number in sorted(counts.unscored.items()))
    return (
        f"serve: {counts.requests} requests with {counts.responses} responses in {counts.calls} calls, "
        f"{counts.seconds:.1f} s of scoring{lost}; {counts.refused} requests refused, {counts.given_up} given up by "
        "their client"
    )
