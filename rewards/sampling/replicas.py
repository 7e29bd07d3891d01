"""Several OpenAI-compatible servers of one model: each image has its replica, dead ones are dropped for a while.

A request goes to the replica that its image picks, so the prefix caches of that replica stay warm. The pick is
rendezvous hashing (Thaler and Ravishankar 1998, https://doi.org/10.1109/90.663936): every replica gets the weight
SHA-256(address, key), the largest that is alive wins. So a replica that is lost moves its own keys and no others, and
gets them back when it returns.

The addresses are the user's; nothing in a data set or a server's reply adds one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mpo.multimodal.errors import ConfigError
from rewards.errors import ServerError
from rewards.kept.keys import digest
from rewards.sampling.chat_client import ChatClient, NoReplyError, Reply, UnreachableError, checked_url

FIRST_BACK_OFF_S = 1.0  # before a dropped replica is asked whether it is back; doubled each time
LONGEST_BACK_OFF_S = 30.0
ALL_DOWN_S = 300.0  # after so long with no replica at all the run stops

_log = logging.getLogger(__name__)


def checked_urls(base_url: str | Sequence[str]) -> tuple[str, ...]:
    """One address or several, each checked by `checked_url`.

    Raises:
        ConfigError: none, one that is no address, or one twice.

    Example:
        >>> checked_urls("http://a:8000/v1")
        ('http://a:8000/v1',)
    """
    urls = tuple(checked_url(url) for url in ([base_url] if isinstance(base_url, str) else base_url))
    if not urls or len({url.rstrip("/") for url in urls}) < len(urls):
        raise ConfigError(f"expected base_url to be one server or several different ones, got {list(urls)}")
    return urls


def request_key(pixels: Sequence[str], question: str) -> str:
    """What picks the replica of a request: the `image_sha256` of its images, or the question where it has none."""
    return digest(list(pixels)) if pixels else digest(question)


def ranked(key: str, urls: Sequence[str]) -> list[str]:
    """The addresses in the order in which they are tried for this key, largest weight first.

    Example:
        >>> first, *others = ranked("an image", ["http://a/v1", "http://b/v1", "http://c/v1"])
        >>> ranked("an image", others) == others
        True
    """
    return sorted(urls, key=lambda url: digest(url, key), reverse=True)


class Replicas:
    """Sends chat requests to the servers of one model; use it inside one event loop: `open`, `ask`, `close`.

    One server alone is asked as it is: it has no other to take over, and `ChatClient` decides what becomes of a
        failure.

    Args:
        base_urls: from `checked_urls`.
        model: the name that every replica must serve.
        concurrency: requests at a time, to each replica.
        attempts, timeout_s, longest_wait_s: of one request to one replica, see `ChatClient`.
        check: of a replica before its first request, and before it is taken back; raises a ConfigError.
    """

    def __init__(
        self,
        base_urls: Sequence[str],
        model: str,
        *,
        concurrency: int,
        attempts: int = 6,
        timeout_s: float = 600.0,
        longest_wait_s: float = 30.0,
        check: Callable[[ChatClient], Awaitable[None]] | None = None,
    ) -> None:
        self.model, self.concurrency = model, concurrency
        self._several, self._check = len(base_urls) > 1, check
        self._replicas = {
            url: _Replica(
                ChatClient(
                    url,
                    attempts=attempts,
                    timeout_s=timeout_s,
                    longest_wait_s=longest_wait_s,
                    one_of_many=self._several,
                ),
                asyncio.Semaphore(concurrency),
            )
            for url in base_urls
        }
        self._some_up = asyncio.Event()
        self._some_up.set()
        self._none_since = 0.0
        self._probes: set[asyncio.Task[None]] = set()

    def window(self, ahead: int) -> int:
        """Requests to have under way, waiting ones included.

        One server needs no more than it answers at a time. Of several each must find its own among those that wait.

        Args:
            ahead: requests per place at a server, for several.
        """
        return self.concurrency * (ahead * len(self._replicas) if self._several else 1)

    async def open(self) -> None:
        """Check every replica; one that does not answer is dropped until it does.

        Raises:
            ConfigError: one serves another model, or fails `check`.
            ServerError: one refuses us.
        """
        await asyncio.gather(*[self._open(replica) for replica in self._replicas.values()])

    async def ask(
        self,
        body: Callable[[], Mapping[str, Any]],
        read: Callable[[bytes], Reply],
        *,
        key: Callable[[], str],
    ) -> Reply:
        """The reply to one request, from the first replica alive in the order of its key.

        A request that was sent and broke as many times as there are replicas is at fault itself, and given up.

        Args:
            body: makes the JSON object of `/chat/completions`, when its turn has come.
            read: see `ChatClient.ask`.
            key: makes its `request_key`; not needed for one server.

        Raises:
            RequestRefusedError, NoReplyError, ServerError: see `ChatClient.ask`.
            ServerError: no replica was alive for `ALL_DOWN_S`.
        """
        order = [self._replicas[url] for url in ranked(key() if self._several else "", list(self._replicas))]
        failed: list[_Replica] = []
        while True:
            replica = await self._home(order, failed)
            async with replica.places:
                if replica.down:  # dropped while this request waited for a place
                    continue
                answered = replica.answered
                try:
                    reply = await replica.client.ask(body(), read)
                except UnreachableError as error:
                    if error.sent:
                        failed.append(replica)
                    if error.refused or replica.answered == answered:  # else it answers others
                        self._drop(replica, str(error))
                    if not self._several or len(failed) == len(order):
                        raise
                else:
                    replica.answered += 1
                    replica.back_off_s = FIRST_BACK_OFF_S
                    return reply

    async def close(self) -> None:
        """Close the connections, and ask no more for those that were dropped."""
        for probe in self._probes:
            probe.cancel()
        await asyncio.gather(*self._probes, return_exceptions=True)
        await asyncio.gather(*[replica.client.close() for replica in self._replicas.values()])

    async def _home(self, order: Sequence[_Replica], failed: Sequence[_Replica]) -> _Replica:
        """The first replica alive, and rather one that has not failed at this request."""
        while not (alive := [replica for replica in order if not replica.down]):
            try:
                async with asyncio.timeout_at(self._none_since + ALL_DOWN_S):
                    await self._some_up.wait()
            except TimeoutError as error:
                whys = "; ".join(replica.down for replica in self._replicas.values())
                raise ServerError(
                    f"no server could be reached for {ALL_DOWN_S:g} s: {whys}; what was stored is kept: start them "
                    "again, "
                    "also at other addresses, and run the same command"
                ) from error
        return next((replica for replica in alive if replica not in failed), alive[0])

    async def _open(self, replica: _Replica) -> None:
        try:
            await self._checked(replica.client)
        except NoReplyError as error:
            self._drop(replica, str(error))

    async def _checked(self, client: ChatClient) -> None:
        if self._several and self.model not in (names := await client.models()):
            serves = ", ".join(repr(name[:60]) for name in names[:5]) or "no model"
            raise ConfigError(
                f"{client.base_url} serves {serves}, not {self.model!r}; "
                "all servers of a run must serve one model under one name"
            )
        if self._check is not None:
            await self._check(client)

    def _drop(self, replica: _Replica, why: str) -> None:
        if not self._several or replica.down:
            return
        replica.down = why
        _log.warning("dropped until it is back: %s", why)
        if all(other.down for other in self._replicas.values()):
            self._some_up.clear()
            self._none_since = asyncio.get_running_loop().time()
            _log.warning("no server is left; waiting at most %g s for one", ALL_DOWN_S)
        probe = asyncio.create_task(self._take_back(replica))
        self._probes.add(probe)
        probe.add_done_callback(self._probes.discard)

    async def _take_back(self, replica: _Replica) -> None:
        while replica.down:
            await asyncio.sleep(replica.back_off_s)
            replica.back_off_s = min(2 * replica.back_off_s, LONGEST_BACK_OFF_S)
            try:
                await self._checked(replica.client)
            except (ServerError, ConfigError) as error:
                replica.down = str(error)
            else:
                replica.down = ""
        _log.warning("back: %s", replica.client.base_url)
        self._some_up.set()


@dataclass(eq=False)
class _Replica:
    """One server: its client and places for requests, why it is dropped (empty: it is not), its number of answers."""

    client: ChatClient
    places: asyncio.Semaphore
    down: str = ""
    answered: int = 0
    back_off_s: float = FIRST_BACK_OFF_S
