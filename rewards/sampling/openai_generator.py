"""Sampling from a server: vLLM, SGLang or any other with OpenAI's chat completions.

Images are sent as `data:` URIs of PNG bytes that we encoded, so the server fetches nothing. Where a server takes the
thought of a model out of its text (`reasoning_content`), it is put back, as the model writes it. A request asks for the
missing samples of one problem (`n`), with a seed of its own. Which texts a seed gives is the server's affair: here a
resumed run promises the same units, none lost, none twice, not the same bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, repeat
from typing import Any

from mpo.multimodal.errors import ConfigError, ImageError
from mpo.multimodal.messages import assistant_message
from rewards.errors import ServerError
from rewards.kept.keys import derived_seed
from rewards.sampling.chat_client import NoReplyError, RequestRefusedError, UnreachableError
from rewards.sampling.chat_messages import SentImages, with_pictures
from rewards.sampling.chat_reply import ChatReply, Choice, Usage
from rewards.sampling.generator import Generator, Sample, SamplingParams, check_number
from rewards.sampling.prompts import messages_of
from rewards.sampling.replicas import Replicas, checked_urls, request_key
from rewards.types import Completion, FinishReason, Problem
from rewards.verifying.thoughts import with_thought

GIVE_UP_AFTER = 3  # problems in a row for which the server gave no usable reply
AHEAD = 4  # requests under way per place at one of several servers, see `Replicas.window`


class OpenAIGenerator(Generator):
    """Draws n completions per problem from a model behind an OpenAI-compatible server.

    The server's chat template renders the question. It must not take control tokens in a question's text for structure,
    as no processor is here to break them up.

    Args:
        base_url: of the API, e.g. `http://127.0.0.1:8000/v1`, or of several servers of one model; the key is read from
            `OPENAI_API_KEY`.
        model: the server's name of it.
        params: sampling settings; `top_k` is sent only if it is set, for it is not in OpenAI's own API.
        concurrency: requests at a time, to each server.
        samples_a_request: largest `n` of a request; 0 asks for all samples of a problem at once. A server that ignores
            `n` needs 1.
        logprobs: ask for the log-probability of every token; it also counts the tokens where n > 1.
        attempts, timeout_s, longest_wait_s: of one request, see `ChatClient`.
        describe: text of the progress bar of `generate`; empty for none.
    """

    def __init__(
        self,
        base_url: str | Sequence[str],
        model: str,
        params: SamplingParams,
        *,
        concurrency: int = 16,
        samples_a_request: int = 0,
        logprobs: bool = False,
        attempts: int = 6,
        timeout_s: float = 600.0,
        longest_wait_s: float = 30.0,
        describe: str = "",
    ) -> None:
        if concurrency < 1 or samples_a_request < 0 or attempts < 1:
            raise ConfigError(
                "expected concurrency >= 1, samples_a_request >= 0 and attempts >= 1, "
                f"got {concurrency}, {samples_a_request}, {attempts}"
            )
        self.model, self.params = model, params
        self.concurrency, self.samples_a_request, self.logprobs = concurrency, samples_a_request, logprobs
        self._connect = partial(
            Replicas,
            checked_urls(base_url),
            model,
            concurrency=concurrency,
            attempts=attempts,
            timeout_s=timeout_s,
            longest_wait_s=longest_wait_s,
        )
        self.describe = describe
        self._sent = SentImages()

    def draw(
        self,
        problems: Sequence[Problem],
        n: int,
        *,
        prefixes: Sequence[str] | None = None,
        seed: int,
        done: Container[tuple[int, int]] = frozenset(),
    ) -> Iterator[list[Sample]]:
        """Samples 0 … n-1 of each problem as the replies come, those that come together in one list.

        Arguments are those of `Generator.draw`.

        A request that the server refuses gives samples without completion, with its reason. One that gets no usable
        reply does not stop the others, unless the next ones get none either.

        Raises:
            ConfigError: n is below 1, or above 1 with `temperature` 0; one of several servers serves another model.
            ServerError: a server refuses us, all are gone, or `GIVE_UP_AFTER` problems in a row got no usable reply;
                or, when all others are drawn, some got none.
        """
        check_number(n, self.params)
        starts = prefixes if prefixes is not None else repeat("", len(problems))
        left = (
            Request(place, problem, start, tuple(indexes), seed)
            for place, (problem, start) in enumerate(zip(problems, starts, strict=True))
            for indexes in self._cut([index for index in range(n) if (place, index) not in done])
        )
        for replies in self._replies(lambda number: list(islice(left, number))):
            yield [sample for samples in replies for sample in samples]

    def stream(self, more: Callable[[int], Sequence[Request]]) -> Iterator[list[Sample]]:
        """The samples of requests that are made while others are under way, request by request as the replies come.

        Args:
            more: gives up to that many further requests; it is asked again after each reply, and the stream ends when
                it gives none and all are answered.

        Raises:
            ConfigError, ServerError: see `draw`; of a request without usable reply when all others are answered.
        """
        for replies in self._replies(more):
            yield from replies

    def _replies(self, more: Callable[[int], Sequence[Request]]) -> Iterator[list[list[Sample]]]:
        """`stream`, with the replies that have come together in one list."""
        failed: list[str] = []
        at_fault: dict[str, str] = {}
        in_a_row: set[str] = set()
        with asyncio.Runner() as runner:
            servers = self._connect()
            pending: set[asyncio.Task[list[Sample]]] = set()
            finished: set[asyncio.Task[list[Sample]]] = set()
            try:
                runner.run(servers.open())
                while True:
                    room = servers.window(AHEAD) - len(pending)
                    for request in more(room) if room > 0 else ():
                        pending.add(runner.get_loop().create_task(self._ask(servers, request), name=request.problem.id))
                    if not pending:
                        break
                    finished, pending = runner.run(_first(pending))
                    if replies := [task.result() for task in finished if task.exception() is None]:
                        in_a_row.clear()
                        yield replies
                    for task in finished:
                        error = task.exception()
                        if isinstance(error, NoReplyError):
                            failed.append(f"problem {task.get_name()}: {error}")
                            in_a_row.add(task.get_name())
                            if not (isinstance(error, UnreachableError) and error.refused):
                                at_fault[task.get_name()] = str(error)
                        elif error is not None:
                            raise error
                    if len(in_a_row) >= GIVE_UP_AFTER:  # the server is at fault, not they
                        at_fault.clear()
                        break
            finally:
                runner.run(_stop(pending | finished, servers))
        if failed:
            said = f"{failed[0]} ({len(failed)} requests failed)"
            raise ServerError(f"{said}; what was drawn is kept; run the same command to continue", problems=at_fault)

    def _cut(self, indexes: list[int]) -> Iterator[list[int]]:
        size = self.samples_a_request or max(1, len(indexes))
        for start in range(0, len(indexes), size):
            yield indexes[start : start + size]

    async def _ask(self, servers: Replicas, request: Request) -> list[Sample]:
        seed = derived_seed(request.seed, request.problem, request.indexes[0], request.prefix) >> 32  # 31 bits
        n = len(request.indexes)
        try:
            reply = await servers.ask(
                lambda: self._body(request, seed),
                lambda content: ChatReply.read(content, n),
                key=lambda: request_key(
                    [self._sent(image).pixels for image in request.problem.images], request.problem.question
                ),
            )
        except RequestRefusedError as error:
            return [Sample(request.place, index, seed, None, f"the server: {error}") for index in request.indexes]
        except ImageError as error:  # it was there when the problems were read
            return [Sample(request.place, index, seed, None, str(error)) for index in request.indexes]
        outcomes = [_outcome(choice, reply.usage if n == 1 else None) for choice in reply.choices]
        return [
            Sample(request.place, index, seed, *outcome, share)
            for index, outcome, share in zip(request.indexes, outcomes, _shares(reply.usage, n), strict=True)
        ]

    def _body(self, request: Request, seed: int) -> dict[str, Any]:
        problem, params = request.problem, self.params
        messages = with_pictures(messages_of(problem), [self._sent(image).uri for image in problem.images])
        extra: dict[str, Any] = {"top_k": params.top_k} if params.top_k else {}
        if request.prefix:
            messages.append(assistant_message(request.prefix))
            extra |= {"add_generation_prompt": False, "continue_final_message": True}  # both: see vLLM's chat API
        return {
            "model": self.model,
            "messages": messages,
            "n": len(request.indexes),
            "seed": seed,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "max_tokens": params.max_new_tokens,
            **({"logprobs": True} if self.logprobs else {}),
            **extra,
        }


@dataclass(frozen=True)
class Request:
    """Some samples of one problem.

    Attributes:
        place: what the asker calls the problem, or the place in a response, in the samples.
        problem: what is asked.
        prefix: text that the response starts with.
        indexes: of the samples.
        seed: the draw of a sample is a function of this, problem, prefix and its request's first index.
    """

    place: int
    problem: Problem
    prefix: str
    indexes: tuple[int, ...]
    seed: int


def _shares(usage: Usage | None, n: int) -> list[int]:
    """Equal shares of the tokens that the server counts for all choices, so that their sum is exact."""
    each, more = divmod((usage and usage.completion_tokens) or 0, n)
    return [each + (choice < more) for choice in range(n)]


def _outcome(choice: Choice, usage: Usage | None) -> tuple[Completion | None, str]:
    """The completion, or why there is none. A null content is an empty answer; a thought apart is put back."""
    if choice.finish_reason not in (FinishReason.STOP, FinishReason.LENGTH):
        return None, f"the server: finish_reason {str(choice.finish_reason)[:40]!r}"
    logprobs = None
    if choice.logprobs is not None and choice.logprobs.content is not None:
        logprobs = tuple(min(0.0, token.logprob) for token in choice.logprobs.content)
    num_tokens = len(logprobs) if logprobs is not None else (usage and usage.completion_tokens) or 0
    reason, message = FinishReason(choice.finish_reason), choice.message
    text, thought = message.content or "", message.reasoning_content or message.reasoning or ""
    if thought.strip():
        text = with_thought(thought, text, cut=reason is FinishReason.LENGTH)
    return Completion(text, reason, num_tokens, logprobs), ""


async def _first(pending: set[asyncio.Task[list[Sample]]]) -> tuple[set[Any], set[Any]]:
    return await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)


async def _stop(tasks: set[asyncio.Task[list[Sample]]], servers: Replicas) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await servers.close()
