"""One request to an OpenAI-compatible chat server, asked until it gives a usable reply or shows that it will not.

A server is untrusted: an attempt ends at a deadline even if bytes still trickle in, a reply has a largest size, and
redirects are not followed. The API key comes from the environment alone and stands in no message.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import httpx2
import openai
from pydantic import BaseModel
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from mpo.multimodal.errors import ConfigError, DataError
from rewards.errors import ServerError

API_KEY = "OPENAI_API_KEY"
MAX_REPLY_BYTES = 64 * 2**20
_REFUSED = (400, 413, 422)  # this request will never do: a prompt too long, a picture that the server cannot read
_PASSING = (408, 409, 425, 429)  # and every 5xx: try again

Reply = TypeVar("Reply")


class RequestRefusedError(DataError):
    """The server will not answer this request; another request may do."""

    reason = "refused by the server"


class NoReplyError(ServerError):
    """The server gave no usable reply to this request in all attempts."""


class ChatClient:
    """Sends chat requests; use it inside one event loop and `close` it there.

    Args:
        base_url: of the API, e.g. `http://127.0.0.1:8000/v1`.
        attempts: for one request, the first included.
        timeout_s: for one attempt, from connecting to the reply's last byte.
        longest_wait_s: between two attempts, also where the server asks for more (`Retry-After`).
    """

    def __init__(
        self, base_url: str, *, attempts: int = 6, timeout_s: float = 600.0, longest_wait_s: float = 30.0
    ) -> None:
        self.base_url = checked_url(base_url)
        self.attempts, self.timeout_s, self.longest_wait_s = attempts, timeout_s, longest_wait_s
        self._key = os.environ.get(API_KEY, "")
        self._client = openai.AsyncOpenAI(
            base_url=base_url,
            api_key=self._key or "none",  # a local server asks for none, the client for some text
            max_retries=0,
            timeout=timeout_s,
            default_headers={"Accept-Encoding": "identity"},
            http_client=openai.DefaultAsyncHttpxClient(transport=_Capped(), follow_redirects=False),
        )

    async def ask(self, body: Mapping[str, Any], read: Callable[[bytes], Reply]) -> Reply:
        """The reply to one request.

        Args:
            body: keyword arguments of `chat.completions.create`.
            read: reads and checks a reply's body; a ValueError means that it is unusable, and it is asked for again.

        Raises:
            RequestRefusedError: the server refused this request for good (HTTP 400, 413, 422).
            NoReplyError: it gave no usable reply in `attempts` attempts.
            ServerError: it refuses us (401, 403, 404, a redirect).
        """
        waits = wait_random_exponential(multiplier=0.5, max=self.longest_wait_s)

        def wait(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            asked = getattr(error, "retry_after", None)
            return waits(state) if asked is None else min(asked, self.longest_wait_s)

        retrying = AsyncRetrying(
            stop=stop_after_attempt(self.attempts),
            wait=wait,
            retry=retry_if_exception_type(_PassingError),
            reraise=True,
        )
        try:
            return await retrying(self._attempt, body, read)
        except _PassingError as error:
            raise NoReplyError(
                f"{self.base_url} gave no usable reply in {self.attempts} attempts, the last time: {error}"
            ) from error

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

    async def _attempt(self, body: Mapping[str, Any], read: Callable[[bytes], Reply]) -> Reply:
        try:
            async with asyncio.timeout(self.timeout_s):
                reply = await self._client.chat.completions.with_raw_response.create(**body)
            return read(reply.content)
        except TimeoutError as error:
            raise _PassingError(f"no whole reply within {self.timeout_s:g} s") from error
        except openai.APIStatusError as error:
            raise self._of_status(error) from error
        except openai.APIConnectionError as error:
            raise _PassingError(f"{error} {error.__cause__ or ''}".strip()) from error
        except ValueError as error:
            raise _PassingError(f"an unusable reply ({_clipped(str(error))})") from error

    def _of_status(self, error: openai.APIStatusError) -> Exception:
        status = error.status_code
        said = f"HTTP {status}: {self._said(error)}"
        if status in _REFUSED:
            return RequestRefusedError(said)
        if status in _PASSING or status >= 500:
            return _PassingError(said, retry_after=_seconds(error.response.headers.get("Retry-After")))
        if status in (401, 403):  # what it says may repeat a part of the key
            said = f"HTTP {status}; the key is read from the environment variable {API_KEY}"
        return ServerError(f"{self.base_url} refuses requests ({said}); look at base_url, model and key")

    def _said(self, error: openai.APIStatusError) -> str:
        text = error.message
        return _clipped(text.replace(self._key, "***") if self._key else text)


class _Tokenized(BaseModel):
    tokens: list[int]


class _PassingError(Exception):
    """What another attempt may mend."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class _Capped(httpx2.AsyncHTTPTransport):
    """Stops reading a reply that is larger than `MAX_REPLY_BYTES`, or packed so that its size cannot be told."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await super().handle_async_request(request)
        if response.headers.get("Content-Encoding", "identity") != "identity":
            await response.aclose()
            raise httpx2.DecodingError("the reply is compressed, which was not asked for")
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


def _clipped(text: str) -> str:
    return " ".join(text.split())[:200]
