"""One request to an OpenAI-compatible chat server, asked until it gives a usable reply or shows that it will not.

A server is untrusted: an attempt ends at a deadline even if bytes still trickle in, a reply has a largest size, and
redirects are not followed. The API key comes from the environment alone and appears in no message.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit, urlunsplit

import httpx2
import openai
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, wait_random_exponential

from mpo.multimodal.errors import ConfigError, DataError
from mpo.multimodal.text import one_line
from rewards.errors import ServerError
from rewards.sampling.chat_reply import Untrusted

API_KEY = "OPENAI_API_KEY"
MAX_REPLY_BYTES = 64 * 2**20
LONGEST_MESSAGE = 200  # characters of what a server said, in an error
CONNECT_S = 10.0  # for a connection to one server of several, and for the names of its models
_REFUSED = (400, 413, 422)  # this request will never do: a prompt too long, an image that the server cannot read
_PASSING = (408, 409, 425, 429)  # and every 5xx: try again

Reply = TypeVar("Reply")


class RequestRefusedError(DataError):
    """The server will not answer this request; another request may do."""

    reason = "refused by the server"


class NoReplyError(ServerError):
    """The server gave no usable reply to this request in all attempts."""


class UnreachableError(NoReplyError):
    """There was no connection, no whole reply or a 5xx to the last: the server is down, or fails at this request.

    Args:
        message: what was asked and what came.
        refused: the last attempt got no connection.
        sent: some attempt got one, so the request itself may be what breaks the server.
    """

    def __init__(self, message: str, *, refused: bool, sent: bool) -> None:
        super().__init__(message)
        self.refused, self.sent = refused, sent


class ChatClient:
    """Sends chat requests; use it inside one event loop and `close` it there.

    Args:
        base_url: of the API, e.g. `http://127.0.0.1:8000/v1`.
        attempts: for one request, the first included.
        timeout_s: for one attempt, from connecting to the reply's last byte.
        longest_wait_s: between two attempts, also where the server asks for more (`Retry-After`).
        one_of_many: another server can take the request, so one that accepts no connection, which is waited for at
            most `CONNECT_S`, is not tried again.
    """

    def __init__(
        self,
        base_url: str,
        *,
        attempts: int = 6,
        timeout_s: float = 600.0,
        longest_wait_s: float = 30.0,
        one_of_many: bool = False,
    ) -> None:
        self.base_url = checked_url(base_url)
        self.attempts, self.timeout_s, self.longest_wait_s = attempts, timeout_s, longest_wait_s
        self.one_of_many = one_of_many
        self._key = os.environ.get(API_KEY, "")
        self._client = openai.AsyncOpenAI(
            base_url=base_url,
            api_key=self._key or "none",  # a local server asks for none, the client for some text
            max_retries=0,
            timeout=openai.Timeout(timeout_s, connect=min(timeout_s, CONNECT_S)) if one_of_many else timeout_s,
            default_headers={"Accept-Encoding": "identity"},
            http_client=openai.DefaultAsyncHttpxClient(transport=_Capped(), follow_redirects=False),
        )

    async def ask(self, body: Mapping[str, Any], read: Callable[[bytes], Reply]) -> Reply:
        """The reply to one request.

        Args:
            body: the JSON object of `/chat/completions`.
            read: reads and checks a reply's body; a ValueError means that it is unusable, and it is asked for again.

        Raises:
            RequestRefusedError: the server refused this request for good (HTTP 400, 413, 422).
            NoReplyError: it gave no usable reply in `attempts` attempts; `UnreachableError` where it gave none at all.
            ServerError: it refuses us (401, 403, 404, a redirect).
        """
        waits = wait_random_exponential(multiplier=0.5, max=self.longest_wait_s)

        def wait(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            asked = getattr(error, "retry_after", None)
            return waits(state) if asked is None else min(asked, self.longest_wait_s)

        sent = False

        def again(error: BaseException) -> bool:
            nonlocal sent
            refused = isinstance(error, _PassingError) and error.kind == "refused"
            sent = sent or not refused
            return isinstance(error, _PassingError) and not (refused and self.one_of_many)

        retrying = AsyncRetrying(
            stop=stop_after_attempt(self.attempts), wait=wait, retry=retry_if_exception(again), reraise=True
        )
        try:
            # Not `chat.completions.create`: it walks through the body by its types, which costs more than all the rest.
            ask = partial(self._client.post, "/chat/completions", cast_to=httpx2.Response, body=body)
            return await retrying(self._attempt, ask, read)
        except _PassingError as error:
            attempts = retrying.statistics["attempt_number"]
            said = f"{self.base_url} gave no usable reply in {attempts} attempts; the last one: {error}"
            if error.kind == "unusable":
                raise NoReplyError(said) from error
            raise UnreachableError(said, refused=error.kind == "refused", sent=sent) from error

    async def models(self) -> list[str]:
        """The names that the server gives the models it serves, in one attempt of at most `CONNECT_S`.

        Raises:
            NoReplyError: it does not answer.
            ServerError: it refuses us.
        """
        ask = partial(self._client.get, "/models", cast_to=httpx2.Response)
        try:
            async with asyncio.timeout(CONNECT_S):
                found = await self._attempt(ask, _Models.model_validate_json)
        except (TimeoutError, _PassingError, RequestRefusedError) as error:
            raise NoReplyError(f"{self.base_url}/models: {error or f'no reply within {CONNECT_S:g} s'}") from error
        return [row.id for row in found.data]

    async def tokenize(self, model: str, text: str) -> list[int] | None:
        """The server's token ids of a text, without special tokens; `None` where it does not tell (vLLM does)."""
        root = self.base_url.rstrip("/").removesuffix("/v1")
        body = {"model": model, "prompt": text, "add_special_tokens": False}
        try:
            async with asyncio.timeout(self.timeout_s):
                reply = await self._client.post(f"{root}/tokenize", cast_to=httpx2.Response, body=body)
            return _Tokenized.model_validate_json(reply.content).tokens
        except (TimeoutError, openai.APIError, ValueError):
            return None

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _attempt(self, send: Callable[[], Awaitable[Any]], read: Callable[[bytes], Reply]) -> Reply:
        try:
            async with asyncio.timeout(self.timeout_s):
                reply = await send()
            return read(reply.content)
        except TimeoutError as error:
            raise _PassingError(f"no complete reply within {self.timeout_s:g} s", "broken") from error
        except openai.APIStatusError as error:
            raise self._of_status(error) from error
        except openai.APIConnectionError as error:
            refused = isinstance(error.__cause__, httpx2.ConnectError | httpx2.ConnectTimeout)
            said = f"{error} {error.__cause__ or ''}".strip()
            raise _PassingError(said, "refused" if refused else "broken") from error
        except ValueError as error:
            raise _PassingError(f"an unusable reply ({one_line(str(error), LONGEST_MESSAGE)})") from error

    def _of_status(self, error: openai.APIStatusError) -> Exception:
        status = error.status_code
        said = f"HTTP {status}: {self._said(error)}"
        if status in _REFUSED:
            return RequestRefusedError(said)
        if status in _PASSING or status >= 500:
            kind: _Kind = "broken" if status >= 500 else "unusable"
            return _PassingError(said, kind, retry_after=_seconds(error.response.headers.get("Retry-After")))
        if status in (401, 403):  # what it says may repeat a part of the key
            said = f"HTTP {status}; the key is read from the environment variable {API_KEY}"
        return ServerError(f"{self.base_url} refuses requests ({said}); check base_url, model and key")

    def _said(self, error: openai.APIStatusError) -> str:
        text = error.message
        return one_line(text.replace(self._key, "***") if self._key else text, LONGEST_MESSAGE)


class _Tokenized(Untrusted):
    tokens: list[int]


class _Model(Untrusted):
    id: str


class _Models(Untrusted):
    data: list[_Model]


_Kind = Literal["refused", "broken", "unusable"]  # no connection; no whole reply, or a 5xx; another reply


class _PassingError(Exception):
    """What another attempt may mend."""

    def __init__(self, message: str, kind: _Kind = "unusable", *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.kind, self.retry_after = kind, retry_after


class _Capped(httpx2.AsyncHTTPTransport):
    """Stops reading a reply that is larger than `MAX_REPLY_BYTES`, or packed so that its size cannot be told."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await super().handle_async_request(request)
        if response.headers.get("Content-Encoding", "identity") != "identity":
            await response.aclose()
            raise httpx2.DecodingError("the reply is compressed, although that was not requested")
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        response.stream = _CappedStream(response.stream)
        return response


class _CappedStream(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in self._stream:
            size += len(chunk)
            if size > MAX_REPLY_BYTES:
                raise httpx2.ReadError(f"the reply is larger than {MAX_REPLY_BYTES} bytes")
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


def checked_url(url: str) -> str:
    """The URL itself, which may be shown: it holds no user, password, query or fragment.

    Raises:
        ConfigError: it holds one of these (HTTP libraries log the URLs that they ask), or is no http or https URL.

    Example:
        >>> checked_url("https://host:8000/v1")
        'https://host:8000/v1'
    """
    try:
        parts = urlsplit(url)
        shown = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
        is_address = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number, brackets that do not close
        is_address = False
    if not is_address:
        raise ConfigError("base_url is not an http or https URL; expected one such as http://127.0.0.1:8000/v1")
    if shown != url:
        raise ConfigError(
            f"base_url holds more than an address; give {shown} and put the key in the environment variable {API_KEY}"
        )
    return url


def _seconds(header: str | None) -> float | None:
    """`Retry-After` in seconds; `None` for a date or nonsense."""
    return float(header) if header and header.isascii() and header.isdigit() else None
