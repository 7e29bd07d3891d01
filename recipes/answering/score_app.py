"""The HTTP side of `mpo serve`: `POST /score`, `POST /rerank`, `GET /health`, `GET /metrics`.

A client is a stranger: sizes are bounded, types strict, images decoded from the bytes it sends and nothing fetched.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from mpo.multimodal.errors import ImageError
from mpo.multimodal.images import load_image
from mpo.multimodal.text import one_line
from rewards.scoring.scoring_queue import QueueFullError, Scored, ScoringQueue

MOST_BYTES = 64 * 2**20  # of a request
LOOK_EVERY_S = 0.1  # whether a client still waits
LONGEST_MESSAGE = 300

Text = Annotated[str, Field(max_length=1_000_000)]


class ScoreRequest(BaseModel):
    """A question, its images, and responses to score.

    Attributes:
        question: what was asked, without the prompt's instructions.
        images: each as base64, or as a `data:` URI of base64.
        responses: whole texts, whose steps end at blank lines.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    question: Text
    images: list[str] = Field(default=[], max_length=64)
    responses: list[Text] = Field(min_length=1, max_length=1024)


def score_app(queue: ScoringQueue, *, name: str, token: str = "", hosts: Sequence[str] = ("*",)) -> Starlette:
    """The application.

    Args:
        queue: scores.
        name: of the PRM, for `/health`.
        token: that every request must carry as `Authorization: Bearer`; empty for none.
        hosts: names under which the server may be asked: a web page elsewhere must not reach it through a name of its
            own that points here.
    """
    routes = [
        Route("/score", _guarded(token, _score(queue, _as_scores)), methods=["POST"]),
        Route("/rerank", _guarded(token, _score(queue, _as_order)), methods=["POST"]),
        Route("/health", _guarded(token, _health(queue, name)), methods=["GET"]),
        Route("/metrics", _guarded(token, _metrics(queue)), methods=["GET"]),
    ]
    return Starlette(routes=routes, middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))])


def _guarded(token: str, answer: Callable[[Request], Any]) -> Callable[[Request], Any]:
    async def guarded(request: Request) -> Response:
        given = request.headers.get("Authorization", "").encode("utf-8", "replace")
        if token and not hmac.compare_digest(given, f"Bearer {token}".encode()):
            return _error(401, "expected the header Authorization: Bearer TOKEN, with the server's token")
        answered: Response = await answer(request)
        return answered

    return guarded


def _score(queue: ScoringQueue, form: Callable[[list[Scored]], dict[str, Any]]) -> Callable[[Request], Any]:
    async def score(request: Request) -> Response:
        if request.headers.get("Content-Type", "").split(";")[0].strip() != "application/json":
            return _error(415, "expected the content type application/json")
        try:
            asked = ScoreRequest.model_validate_json(await _body(request))
            images = await run_in_threadpool(lambda: [load_image(_bytes(image)) for image in asked.images])
            future = queue.put(asked.question, images, asked.responses)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the body"
            return _error(400, f"{where}: {first['msg']}")
        except _TooLargeError:
            return _error(413, f"expected at most {MOST_BYTES} bytes")
        except ImageError as error:
            return _error(400, f"images: {error}")
        except QueueFullError:
            return _error(503, "too many responses wait; ask again later", **{"Retry-After": "1"})
        except ClientDisconnect:
            return Response(status_code=499)
        if not await _waited(request, future):
            return Response(status_code=499)  # nobody reads it
        if future.exception() is not None:
            return _error(500, f"the PRM failed at this request ({type(future.exception()).__name__})")
        return JSONResponse(form(future.result()))

    return score


async def _body(request: Request) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MOST_BYTES:
            raise _TooLargeError
        parts.append(part)
    return b"".join(parts)


async def _waited(request: Request, future: Future[list[Scored]]) -> bool:
    """Whether the client waited for it; what it does not wait for is taken back, if it has not begun."""
    wrapped = asyncio.wrap_future(future)
    wrapped.add_done_callback(lambda done: done.cancelled() or done.exception())
    while not wrapped.done():
        await asyncio.wait([wrapped], timeout=LOOK_EVERY_S)
        if not wrapped.done() and await request.is_disconnected():
            future.cancel()
            return False
    return True


def _bytes(image: str) -> bytes:
    encoded = image.partition(",")[2] if image.startswith("data:") else image
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(f"expected base64 or a data: URI of base64 ({error})") from error


def _as_scores(scored: list[Scored]) -> dict[str, Any]:
    return {
        "rewards": [one.reward for one in scored],
        "step_scores": [list(one.steps) if one.reward is not None else None for one in scored],
        "step_score_spreads": [list(one.spreads) if one.spreads is not None else None for one in scored],
        "reasons": [one.reason for one in scored],
    }


def _as_order(scored: list[Scored]) -> dict[str, Any]:
    """Indexes of the responses, best first; of equal ones the earlier first, those without a score last."""
    order = sorted(range(len(scored)), key=lambda i: (scored[i].reward is None, -(scored[i].reward or 0.0), i))
    return {"order": order, "rewards": [one.reward for one in scored], "reasons": [one.reason for one in scored]}


def _health(queue: ScoringQueue, name: str) -> Callable[[Request], Any]:
    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok", "prm": name, "waiting": queue.waiting})

    return health


def _metrics(queue: ScoringQueue) -> Callable[[Request], Any]:
    """Prometheus' text format (https://prometheus.io/docs/instrumenting/exposition_formats/)."""

    async def metrics(request: Request) -> Response:
        counts = queue.counts
        values = {
            "requests_total": counts.requests,
            "responses_total": counts.responses,
            "calls_total": counts.calls,
            "scoring_seconds_total": round(counts.seconds, 3),
            "requests_refused_total": counts.refused,
            "requests_given_up_total": counts.given_up,
            "responses_unscored_total": counts.unscored.total(),
        }
        lines = [f"# TYPE mpo_{key} counter\nmpo_{key} {value}" for key, value in values.items()]
        lines.append(f"# TYPE mpo_responses_waiting gauge\nmpo_responses_waiting {queue.waiting}")
        return PlainTextResponse("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")

    return metrics


def _error(status: int, message: str, **headers: str) -> JSONResponse:
    return JSONResponse({"error": one_line(message, LONGEST_MESSAGE)}, status_code=status, headers=headers)


class _TooLargeError(Exception):
    pass
