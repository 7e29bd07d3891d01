"""How a server is asked for the label tokens of one step, and what its reply tells about the step's score.

Every way asks for one token and reads its log-probabilities. A label that a reply does not list is no label of
probability 0: it is at most as likely as the least likely token that was listed, which bounds the score.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

from mpo.multimodal.errors import DataError
from rewards.errors import ServerError
from rewards.prm.readout import label_scores
from rewards.sampling.chat_reply import ChatReply

TOP = 20  # the most that vLLM and OpenAI list without further settings


@dataclass(frozen=True)
class Labels:
    """The label tokens, in the order positive, negative and, if there is one, neutral."""

    texts: tuple[str, ...]
    ids: tuple[int, ...]


@dataclass(frozen=True)
class StepReading:
    """What one reply tells: P(correct) and its interval, with equal ends if the reply lists every label."""

    value: float
    low: float
    high: float


def by_token_ids(labels: Labels) -> dict[str, Any]:
    """vLLM's `logprob_token_ids`: exactly these tokens are listed, as ids, however unlikely they are."""
    return {"logprob_token_ids": list(labels.ids), "return_tokens_as_token_ids": True}


def by_choice(labels: Labels) -> dict[str, Any]:
    """Structured output that allows the labels alone: their probabilities are renormalised over them."""
    choice = {"structured_outputs": {"choice": list(labels.texts)}}
    return {"top_logprobs": len(labels.texts), **choice}


def by_top(labels: Labels) -> dict[str, Any]:
    """Plain `top_logprobs`, which any server has: a label may be missing."""
    return {"top_logprobs": TOP}


READS: dict[str, Callable[[Labels], dict[str, Any]]] = {"token_ids": by_token_ids, "choice": by_choice, "top": by_top}


def step_reply(content: bytes) -> ChatReply:
    """The reply to a request of one step.

    Raises:
        ValueError: it has another form, or says nothing of the token that it generated.
    """
    reply = ChatReply.read(content, 1)
    logprobs = reply.choices[0].logprobs
    if logprobs is not None and not logprobs.content:
        raise ValueError("expected the log-probabilities of one token, got those of none")
    return reply


def read_reply(reply: ChatReply, labels: Labels, read: str) -> StepReading | DataError:
    """The score of a step.

    Args:
        reply: to a request with the fields of `READS[read]`.
        labels: that it was asked for.
        read: a name of `READS`.

    Returns:
        The reading, or an error where no label was listed, since then nothing is known.

    Raises:
        ServerError: the server did not do what was asked for, and never will.
    """
    logprobs = reply.choices[0].logprobs
    listed = [
        (entry.token, entry.logprob)
        for entry in (logprobs.content[0].top_logprobs if logprobs and logprobs.content else ())
    ]
    if not listed:
        raise ServerError(f"the server lists no log-probabilities (read={read}); {_advice(read)}")
    if read == "token_ids":
        of_ids = dict(listed)
        names = [f"token_id:{id}" for id in labels.ids]
        if missing := [name for name in names if name not in of_ids]:
            raise ServerError(f"the server does not list {', '.join(missing)} for logprob_token_ids; {_advice(read)}")
        return reading([(of_ids[name], of_ids[name]) for name in names])
    intervals = label_intervals(listed, labels.texts)
    if all(low == -math.inf for low, _ in intervals):
        return DataError(
            f"none of the labels {', '.join(map(repr, labels.texts))} is among the {len(listed)} tokens that the "
            f"server lists (read={read}); does it serve the PRM? read=token_ids and read=choice see every label",
            reason="no label among the server's log-probabilities",
        )
    return reading(intervals)


def label_intervals(listed: Sequence[tuple[str, float]], texts: Sequence[str]) -> list[tuple[float, float]]:
    """The interval of each label's log-probability.

    A label that is not listed lies below the least listed one. Two listed tokens of one text (`+` and ` +` may be
    written alike) leave open which of them is the label.

    Example:
        >>> label_intervals([("+", -0.1), ("the", -3.0)], ["+", "-"])
        [(-0.1, -0.1), (-inf, -3.0)]
    """
    least = min(logprob for _, logprob in listed)
    found = [[logprob for token, logprob in listed if token == text] for text in texts]
    return [(min(own), max(own)) if own else (-math.inf, least) for own in found]


def reading(intervals: Sequence[tuple[float, float]]) -> StepReading:
    """The score at the intervals' upper ends, and the least and largest of all corners, one label known at least.

    The score rises or falls all the way with each label's log-probability, so its extremes lie in corners. With - not
    listed the value is the lowest possible, with + not listed the highest: the end nearer to an even chance.

    Example:
        >>> reading([(0.0, 0.0), (-math.inf, 0.0)])
        StepReading(value=0.5, low=0.5, high=1.0)
    """
    value, *corners = label_scores(torch.tensor([[high for _, high in intervals], *product(*intervals)])).tolist()
    return StepReading(value, min(value, *corners), max(value, *corners))


def request_of(read: str, labels: Labels) -> Mapping[str, Any]:
    """The fields of a request that reads one step, besides model and messages."""
    return {"max_tokens": 1, "temperature": 0.0, "n": 1, "logprobs": True, **READS[read](labels)}


def _advice(read: str) -> str:
    others = [f"read={name}" for name in READS if name != read]
    return f"try {' or '.join(others)}, or serve the PRM with vLLM"
