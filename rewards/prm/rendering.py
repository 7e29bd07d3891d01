"""Problem + steps → tokens with one read position a step.

Text of questions and steps is sanitised before it meets the chat template, so a step that contains turn markers
or a sign can neither add nor move a read position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from mpo.multimodal.messages import (
    Message,
    assistant_message,
    control_tokens_in,
    prompt_text,
    system_message,
    user_message,
)
from mpo.multimodal.prefix import EncodedPrompt, encode_prompt, encode_prompts
from rewards.errors import StepAlignmentError
from rewards.prm.formats import PRMFormat, single_token_id
from rewards.types import Problem, Step

STEP_SEPARATOR = "\n\n"


@dataclass(frozen=True)
class RenderedSolution:
    """One solution as tokens, and where to read; `rewards.prm.sharing.rows_of` makes rows of them.

    Attributes:
        prompt: the part that is encoded with the images.
        continuation: token ids after it.
        read_positions: one absolute position a step, ascending; the label logits are read there.
    """

    prompt: EncodedPrompt
    continuation: tuple[int, ...]
    read_positions: tuple[int, ...]


def render(
    processor: Any,
    prm_format: PRMFormat,
    problem: Problem,
    solutions: Sequence[Sequence[Step]],
    images: Sequence[Image.Image],
) -> list[RenderedSolution]:
    """Render solutions of one problem; where the layout allows it, the prompt and its images are encoded once.

    Args:
        processor: the PRM's processor.
        prm_format: its contract.
        problem: question; its images come decoded in `images`.
        solutions: the steps of each, merged beforehand if there are more than `prm_format.max_steps`.
        images: RGB, in the problem's order.

    Raises:
        StepAlignmentError: no steps, too many steps, a control token inside a step, or positions and steps differ.
    """
    for steps in solutions:
        _check(processor, prm_format, problem, steps)
    layout = _turns if prm_format.layout == "turns" else _one_turn
    rendered = layout(processor, prm_format, problem, solutions, images)
    for steps, row in zip(solutions, rendered, strict=True):
        if len(row.read_positions) != len(steps):
            raise StepAlignmentError(
                f"problem {problem.id!r}: {len(steps)} steps, {len(row.read_positions)} read positions"
            )
    return rendered


def _check(processor: Any, prm_format: PRMFormat, problem: Problem, steps: Sequence[Step]) -> None:
    if not 1 <= len(steps) <= prm_format.max_steps:
        raise StepAlignmentError(
            f"problem {problem.id!r}: expected 1 to {prm_format.max_steps} steps, got {len(steps)}; merge them first"
        )
    for step in steps:
        if found := control_tokens_in(processor, step.text):
            raise StepAlignmentError(
                f"problem {problem.id!r}, step {step.index}: contains the control token {found[0]!r}; drop the response"
            )


def _one_turn(
    processor: Any,
    prm_format: PRMFormat,
    problem: Problem,
    solutions: Sequence[Sequence[Step]],
    images: Sequence[Image.Image],
) -> list[RenderedSolution]:
    """Steps inside the assistant's turn; read at each step's last token, or at the tag after it."""
    messages = [*_system(prm_format), user_message(problem.question, len(images))]
    prompt = encode_prompt(processor, prompt_text(processor, messages), images)
    tag = [single_token_id(processor.tokenizer, prm_format.tag)] if prm_format.layout == "tag" else []
    separator = processor.tokenizer(STEP_SEPARATOR, add_special_tokens=False)["input_ids"]
    rendered = []
    for steps in solutions:
        ids: list[int] = []
        positions: list[int] = []
        for step in steps:
            ids += processor.tokenizer(step.text, add_special_tokens=False)["input_ids"] + tag
            positions.append(len(prompt.input_ids) + len(ids) - 1)
            ids += separator
        rendered.append(RenderedSolution(prompt, tuple(ids), tuple(positions)))
    return rendered


def _turns(
    processor: Any,
    prm_format: PRMFormat,
    problem: Problem,
    solutions: Sequence[Sequence[Step]],
    images: Sequence[Image.Image],
) -> list[RenderedSolution]:
    """A user turn a step, a placeholder sign as each assistant turn; read at the token before the sign."""
    sign = single_token_id(processor.tokenizer, prm_format.positive)
    openings: list[list[Message]] = [
        [*_system(prm_format), _first_turn(prm_format, problem, steps[0], len(images))] for steps in solutions
    ]
    texts = [prompt_text(processor, messages) for messages in openings]
    prompts = encode_prompts(processor, texts, images) if texts else []
    rendered = []
    for steps, messages, text, prompt in zip(solutions, openings, texts, prompts, strict=True):
        ids: list[int] = []
        positions = [len(prompt.input_ids) - 1]
        for step in steps[1:]:
            messages += [assistant_message(prm_format.positive), user_message(step.text)]
            longer = prompt_text(processor, messages)
            if not longer.startswith(text):
                raise StepAlignmentError(f"the chat template of PRM format {prm_format.name!r} rewrites earlier turns")
            turns = processor.tokenizer(longer[len(text) :], add_special_tokens=False)["input_ids"]
            if turns[0] != sign:
                raise StepAlignmentError(
                    f"PRM format {prm_format.name!r}: the chat template does not put the sign {prm_format.positive!r} "
                    "first in the assistant's turn, so no position predicts it; use the 'tag' layout"
                )
            ids += turns
            positions.append(len(prompt.input_ids) + len(ids) - 1)
            text = longer
        rendered.append(RenderedSolution(prompt, tuple(ids), tuple(positions)))
    return rendered


def _first_turn(prm_format: PRMFormat, problem: Problem, step: Step, num_images: int) -> Message:
    before, mark, after = prm_format.first_turn.partition("{images}")
    parts = [part.format(question=problem.question, step=step.text) for part in (before, after)]
    return user_message(parts[1], num_images, before=parts[0]) if mark else user_message(parts[0], num_images)


def _system(prm_format: PRMFormat) -> list[Message]:
    return [system_message(prm_format.system)] if prm_format.system else []
