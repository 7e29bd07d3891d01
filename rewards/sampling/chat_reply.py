"""What is read of the reply to a chat request: the one schema for samples and for step scores.

A server is untrusted: types are strict, numbers finite, and what is not named here is not read.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

ROUNDING = 1e-3  # how far above 0 rounding may lift the log-probability of a certain token; more is no probability


class Untrusted(BaseModel):
    """A part of a server's reply; pydantic raises a ValueError for anything of another form."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class Listed(Untrusted):
    """A token that could have come at a place, with its log-probability."""

    token: str
    logprob: float = Field(allow_inf_nan=False, le=ROUNDING)


class Token(Untrusted):
    """A generated token's log-probability, and the tokens that the request asked to be listed beside it."""

    logprob: float = Field(allow_inf_nan=False, le=ROUNDING)
    top_logprobs: list[Listed] = []


class Logprobs(Untrusted):
    """Of each generated token, where the request asked for it."""

    content: list[Token] | None = None


class Message(Untrusted):
    """The generated text; a null content is an empty one. Some servers give a model's thought apart from it."""

    content: str | None
    reasoning_content: str | None = None
    reasoning: str | None = None  # its newer name


class Choice(Untrusted):
    """One of the n responses of a request."""

    index: int
    message: Message
    finish_reason: str | None
    logprobs: Logprobs | None = None


class Usage(Untrusted):
    """Tokens that the server counted; `completion_tokens` is the sum over all choices. `None`: it did not say."""

    prompt_tokens: int | None = Field(None, ge=0, lt=2**31)
    completion_tokens: int | None = Field(None, ge=0, lt=2**31)


class ChatReply(Untrusted):
    """A reply with its choices in order of their index."""

    choices: list[Choice]
    usage: Usage | None = None

    @classmethod
    def read(cls, content: bytes, n: int) -> ChatReply:
        """A reply's body, with exactly n choices.

        Raises:
            ValueError: anything else.

        Example:
            >>> body = b'{"choices": [{"index": 0, "message": {"content": "4"}, "finish_reason": "stop"}]}'
            >>> ChatReply.read(body, 1).choices[0].message.content
            '4'
        """
        reply = cls.model_validate_json(content)
        choices = sorted(reply.choices, key=lambda choice: choice.index)
        if [choice.index for choice in choices] != list(range(n)):
            raise ValueError(
                f"asked for n={n} choices, got {len(choices)}; where a server ignores n, ask for 1 per request"
            )
        return cls(choices=choices, usage=reply.usage)
