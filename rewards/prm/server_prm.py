"""A process reward model behind an OpenAI-compatible server: the scores of `ModelPRM`, read over HTTP.

Each step is one request: the conversation up to that step, a `+` in every earlier assistant turn, one token to
generate. The prompt then ends where `ModelPRM` reads, right before the sign. The PRM's folder is needed here too, for
its contract and its processor: control tokens are broken up as in training, and the length of every prompt is known.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from mpo.multimodal.errors import ConfigError, DataError
from mpo.multimodal.images import load_image
from mpo.multimodal.loading import load_processor
from mpo.multimodal.messages import Message
from rewards.errors import ServerError, StepAlignmentError
from rewards.prm.formats import PRMFormat
from rewards.prm.model_prm import load_format
from rewards.prm.rendering import conversations, render
from rewards.prm.server_readout import READS, Labels, StepReading, read_reply, request_of, step_reply
from rewards.prm.step_prm import CutResponse, StepPRM, by_problem
from rewards.sampling.chat_client import ChatClient, RequestRefusedError
from rewards.sampling.chat_messages import sent_image, with_pictures
from rewards.sampling.replicas import Replicas, checked_urls, request_key
from rewards.types import StepScores

AHEAD = 32  # as in `openai_generator`, but the steps of all responses to an image come together

_log = logging.getLogger(__name__)


class ServerPRM(StepPRM):
    """Scores every step of a response with P(correct up to this step), by asking a server.

    Args:
        base_url: of the API, e.g. `http://127.0.0.1:8000/v1`, or of several servers of the PRM; the key is read from
            `OPENAI_API_KEY`.
        model: the server's name of the PRM.
        processor: the PRM's processor; its weights are not needed.
        prm_format: how it was trained to be asked, of the `turns` layout.
        read: a name of `rewards.prm.server_readout.READS`. `token_ids` needs vLLM; `choice` a server with
            `structured_outputs`; `top` any server, and gives intervals where it does not list a label.
        check_prompts: compare the prompt tokens that the server counts with the PRM's own rendering, at every reply.
            Only for a server that does not count the tokens of images should it be off.
        concurrency: requests at a time, to each server.
        attempts, timeout_s, longest_wait_s: of one request, see `ChatClient`.

    Raises:
        ConfigError: another layout, an unknown `read`, or a URL that is none.
    """

    def __init__(
        self,
        base_url: str | Sequence[str],
        model: str,
        processor: Any,
        prm_format: PRMFormat,
        *,
        read: str = "token_ids",
        check_prompts: bool = True,
        concurrency: int = 16,
        attempts: int = 6,
        timeout_s: float = 600.0,
        longest_wait_s: float = 30.0,
    ) -> None:
        super().__init__(processor, prm_format)
        if prm_format.layout != "turns":
            raise ConfigError(
                f"PRM format {prm_format.name!r}: a server can be read only at the end of a prompt, as the turns "
                "layout "
                f"reads; score a PRM of the {prm_format.layout} layout in this process"
            )
        if read not in READS or concurrency < 1 or attempts < 1:
            raise ConfigError(
                f"expected read of {', '.join(READS)}, concurrency >= 1 and attempts >= 1, "
                f"got {read!r}, {concurrency}, {attempts}"
            )
        urls = checked_urls(base_url)
        self.base_url, self.model, self.read = ", ".join(urls), model, read
        self.check_prompts, self.concurrency = check_prompts, concurrency
        self._connect = partial(
            Replicas,
            urls,
            model,
            concurrency=concurrency,
            attempts=attempts,
            timeout_s=timeout_s,
            longest_wait_s=longest_wait_s,
            check=self._check_labels,
        )
        self._labels = Labels(prm_format.label_texts, prm_format.label_ids(processor.tokenizer))
        self._labels_checked: set[str] = set()
        self._has_answered = False

    @classmethod
    def load(
        cls,
        path: str | Path,
        base_url: str | Sequence[str],
        model: str,
        *,
        prm_format: str | None = None,
        **settings: Any,
    ) -> ServerPRM:
        """The PRM that a server serves, with contract and processor of its folder, whose weights are not read.

        Args:
            path: its folder.
            base_url, model: of the server or servers.
            prm_format: for a folder without `prm.json`: a name of `rewards.prm.formats.FORMATS` or a YAML file.
            **settings: the other arguments of `ServerPRM`.
        """
        return cls(base_url, model, load_processor(path), load_format(path, prm_format), **settings)

    def _scores(self, items: Sequence[CutResponse], describe: str) -> list[StepScores | DataError]:
        """All steps of all responses, `concurrency` at a time.

        Raises:
            ServerError: a server refuses us, gives no usable reply, or refuses everything; all are gone.
            StepAlignmentError: it renders another prompt than the PRM's own chat template.
            ConfigError: its label tokens are others; one of several servers serves another model.
        """
        if not items:
            return []
        total = sum(len(steps) for _, steps in items)
        with (
            asyncio.Runner() as runner,
            tqdm(total=total, desc=describe, unit="step", disable=not describe) as bar,
        ):
            found = runner.run(self._ask_all(items, bar))
        refused = [error for row in found for error in row if isinstance(error, RequestRefusedError)]
        if refused and not self._has_answered:
            raise ServerError(f"{self.base_url} refused every request, the first: {refused[0]}; check model and read")
        if refused:
            _log.warning("the server refused %d steps, the first: %s", len(refused), refused[0])
        return [_step_scores(row) for row in found]

    async def _ask_all(self, items: Sequence[CutResponse], bar: Any) -> list[list[StepReading | DataError]]:
        found: list[list[StepReading | DataError]] = [[_NOT_ASKED] * len(steps) for _, steps in items]
        left = self._requests(items)
        servers = self._connect()

        async def work() -> None:
            for request in left:  # all workers take from one iterator
                found[request.response][request.step] = await self._ask(servers, request)
                bar.update()

        workers: list[asyncio.Task[None]] = []
        try:
            await servers.open()
            workers += [asyncio.create_task(work()) for _ in range(servers.window(AHEAD))]
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            await servers.close()
        return found

    def _requests(self, items: Sequence[CutResponse]) -> Iterator[_Request]:
        place = 0
        for problem, responses in by_problem(items):
            images = [load_image(image) for image in problem.images]
            rendered = render(self.processor, self.format, problem, responses, images)
            sent = [sent_image(image) for image in images]
            uris = [image.uri for image in sent]
            key = request_key([image.pixels for image in sent], problem.question)
            for steps, row in zip(responses, rendered, strict=True):
                turns = conversations(self.processor, self.format, problem, steps, len(images))
                for step, (messages, position) in enumerate(zip(turns, row.read_positions, strict=True)):
                    where = f"problem {problem.id!r}, step {step}"
                    yield _Request(place, step, where, key, with_pictures(messages, uris), position + 1)
                place += 1

    async def _ask(self, servers: Replicas, request: _Request) -> StepReading | DataError:
        body = {"model": self.model, "messages": request.messages, **request_of(self.read, self._labels)}
        try:
            reply = await servers.ask(lambda: body, step_reply, key=lambda: request.key)
        except RequestRefusedError as error:
            return error
        self._has_answered = True
        counted = reply.usage.prompt_tokens if reply.usage else None
        if self.check_prompts and counted not in (None, request.prompt_tokens):
            raise StepAlignmentError(
                f"{request.where}: {self.base_url} counts {counted} prompt tokens, PRM format {self.format.name!r} "
                f"renders {request.prompt_tokens}; serve the PRM with its own chat template and processor (if the "
                "server does not count the tokens of images, set check_prompts=False)"
            )
        return read_reply(reply, self._labels, self.read)

    async def _check_labels(self, client: ChatClient) -> None:
        """Once per server: its tokenizer, if it can be asked, has the labels as the same tokens."""
        if client.base_url in self._labels_checked:
            return
        for text, token_id in zip(self._labels.texts, self._labels.ids, strict=True):
            ids = await client.tokenize(self.model, text)
            if ids is not None and ids != [token_id]:
                raise ConfigError(
                    f"{client.base_url} reads the label {text!r} as the tokens {ids}, the PRM's folder as "
                    f"[{token_id}]; the server runs another model than the one in the folder"
                )
        self._labels_checked.add(client.base_url)


@dataclass(frozen=True)
class _Request:
    """One step of one response; `prompt_tokens` is the length of its prompt in the PRM's own rendering."""

    response: int
    step: int
    where: str
    key: str
    messages: list[Message]
    prompt_tokens: int


_NOT_ASKED = DataError("was not asked")


def _step_scores(row: Sequence[StepReading | DataError]) -> StepScores | DataError:
    """The scores of a response's steps, with intervals if one is not exact; or its first error."""
    readings = []
    for found in row:
        if isinstance(found, DataError):
            return found
        readings.append(found)
    bounds = tuple((found.low, found.high) for found in readings)
    exact = all(low == high for low, high in bounds)
    return StepScores(tuple(found.value for found in readings), None if exact else bounds)
