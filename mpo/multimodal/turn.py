"""What a chat template writes for a response behind its generation prompt, found by rendering the whole conversation.

Most templates write `prompt ⊕ response ⊕ end`. Some put something in between: a space (Idefics3, SmolVLM, LLaVA-NeXT),
the end of a thought that the prompt has opened (Qwen3.5), an empty thought (Qwen3, GLM). A response of someone else's
data is trained as its template would write it, so what comes in between is a part of y. A response that the policy
itself has sampled behind the prompt has it already, and stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from mpo.multimodal.messages import (
    TEMPLATE_FAILURES,
    Message,
    assistant_message,
    prompt_text,
    template_of,
    user_message,
)

PROBE = "ANSWER"
REFUSED = "response kept as it is: the chat template refuses an assistant's turn"
OTHER_PROMPT = "response kept as it is: with an answer the chat template writes another prompt"
REWRITTEN = "response kept as it is: the chat template rewrites it"
NO_BLOCKS = "response kept as it is: the chat template takes no blocks of text"

_TAG = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")
_SEAMS: WeakKeyDictionary[Any, tuple[str, Seam]] = WeakKeyDictionary()  # tokenizer → template and what was seen


@dataclass(frozen=True)
class Seam:
    """Where a template's generation prompt meets an answer, seen on a question of one word.

    Attributes:
        before: what the template writes between generation prompt and answer.
        after: what it writes behind the answer, to the end of the conversation.
        kept: why the template cannot be seen through, or None.
    """

    before: str
    after: str
    kept: str | None = None

    @property
    def tags(self) -> list[str]:
        """The marks in `before`, such as `</think>`: a response that has one of them writes its own."""
        return _TAG.findall(self.before)


class Turn(NamedTuple):
    """What precedes a response in y, and why y is not what the template writes (None: it is)."""

    before: str
    kept: str | None


def seam_of(processor: Any) -> Seam:
    """What the processor's chat template writes around an answer; looked at once per template."""
    template, tokenizer = template_of(processor), processor.tokenizer
    if tokenizer not in _SEAMS or _SEAMS[tokenizer][0] != template:
        _SEAMS[tokenizer] = template, _seen(processor)
    return _SEAMS[tokenizer][1]


def turn_of(processor: Any, messages: Sequence[Message], prompt: str, text: str, *, truncated: bool = False) -> Turn:
    """What the chat template writes before a response to this conversation.

    Args:
        processor: with a chat template.
        messages: the conversation up to the response.
        prompt: its rendering with a generation prompt.
        text: the response, not empty, without control tokens.
        truncated: the response was cut at a limit. Behind a prompt that opens a thought it may have been cut in the
            thought, so none is closed for it.

    Returns:
        `Turn("", None)` where the template writes the response as it is, and where the response has already what the
        template would put before it; `Turn("", why)` where the template rewrites the response, for example because it
        removes thoughts. White space around a response that a template removes stays.
    """
    seam = seam_of(processor)
    if seam.kept is not None:
        return Turn("", seam.kept)
    try:
        whole = prompt_text(processor, [*messages, assistant_message(text)], add_generation_prompt=False)
    except TEMPLATE_FAILURES:
        return Turn("", REFUSED)
    if not whole.startswith(prompt):
        return Turn("", OTHER_PROMPT)
    written = whole[len(prompt) :]
    if written.startswith(text) or _was_sampled(seam, text, truncated=truncated):
        return Turn("", None)
    if written.startswith((seam.before + text, seam.before + text.strip())):
        return Turn(seam.before, None)
    return Turn("", REWRITTEN)


def _was_sampled(seam: Seam, text: str, *, truncated: bool) -> bool:
    """Whether a response was drawn right behind the generation prompt, so that it brings its own beginning."""
    if not seam.before:
        return False
    cut_in_a_thought = truncated and any(tag.startswith("</") for tag in seam.tags[:1])
    return text.startswith(seam.before) or cut_in_a_thought or any(tag in text for tag in seam.tags)


def _seen(processor: Any) -> Seam:
    question = [user_message("q")]
    prompt = prompt_text(processor, question)
    try:
        whole = prompt_text(processor, [*question, assistant_message(PROBE)], add_generation_prompt=False)
    except TEMPLATE_FAILURES:
        return Seam("", "", REFUSED)
    if not whole.startswith(prompt):
        return Seam("", "", OTHER_PROMPT)
    before, found, after = whole[len(prompt) :].partition(PROBE)
    if found and ("'text'" in before or '"text"' in before):  # it prints the block that holds the text
        return Seam("", "", NO_BLOCKS)
    return Seam(before, after) if found else Seam("", "", REWRITTEN)
