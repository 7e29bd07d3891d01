"""Problem + steps → tokens with one read position per step.

Text of questions and steps is sanitised before it meets the chat template, so a step that contains turn markers
or a sign can neither add nor move a read position. Markers are inserted by token id, and its inverse turns tokens and
positions into steps again: `render` compares every row with what it was made of (`rewards/prm/inverse.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from PIL import Image

from mpo.multimodal.messages import (
    Message,
    broken_up,
    control_tokens_in,
    prompt_text,
    sanitised,
    user_message,
)
from mpo.multimodal.prefix import EncodedPrompt, encode_prompt, encode_prompts
from mpo.multimodal.prompt_length import PromptLength
from rewards.errors import StepAlignmentError
from rewards.prm.conversation import first_turn_parts, next_turns, opening, system_turn
from rewards.prm.formats import PRMFormat, single_token_id
from rewards.prm.inverse import Frame, OneTurnFrame, TurnsFrame, as_read, check_row
from rewards.prm.response_text import one_turn_text, turns_text
from rewards.types import Problem, Step


@dataclass(frozen=True)
class RenderedSolution:
    """One response as tokens, and where to read; `rewards.prm.rows.rows_of` makes rows of them.

    Attributes:
        prompt: the part that is encoded with the images.
        continuation: token ids after it.
        read_positions: one absolute position per step, ascending; the label logits are read there.
        text: the absolute positions of the response's own tokens (`rewards/prm/response_text.py`); None: not asked for.
    """

    prompt: EncodedPrompt
    continuation: tuple[int, ...]
    read_positions: tuple[int, ...]
    text: tuple[int, ...] | None = None


def render(
    processor: Any,
    prm_format: PRMFormat,
    problem: Problem,
    solutions: Sequence[Sequence[Step]],
    images: Sequence[Image.Image],
    *,
    with_text: bool = False,
) -> list[RenderedSolution]:
    """Render responses to one problem; where the layout allows it, the prompt and its images are encoded once.

    Args:
        processor: the PRM's processor.
        prm_format: its contract.
        problem: question; its images come decoded in `images`.
        solutions: the steps of each, merged beforehand if there are more than `prm_format.max_steps`.
        images: RGB, in the problem's order.
        with_text: find `text`.

    Raises:
        StepAlignmentError: no steps, too many steps, an empty step, a control token inside a step, or the text
            between two read positions is not the step that it should be. Names problem, rollout and step.
    """
    if not solutions:
        return []
    for index, steps in enumerate(solutions):
        _check(processor, prm_format, f"problem {problem.id!r}, rollout {index}", steps)
    if marker := _tag_token(processor, prm_format):
        problem = replace(problem, question=broken_up(problem.question, marker))
    layout = _turns if prm_format.layout == "turns" else _one_turn
    frame, rendered = layout(processor, prm_format, problem, solutions, images)
    start, frame = _from_the_steps(processor, frame, rendered[0].prompt)
    for index, (steps, row) in enumerate(zip(solutions, rendered, strict=True)):
        ids = [*row.prompt.input_ids[start:].tolist(), *row.continuation]
        positions = [position - start for position in row.read_positions]
        where = f"PRM format {prm_format.name!r}, problem {problem.id!r}, rollout {index}"
        check_row(processor.tokenizer, frame, ids, positions, [step.text for step in steps], where=where)
    return _with_text(processor, prm_format, problem, solutions, rendered, len(images)) if with_text else rendered


def _with_text(
    processor: Any,
    prm_format: PRMFormat,
    problem: Problem,
    solutions: Sequence[Sequence[Step]],
    rendered: Sequence[RenderedSolution],
    num_images: int,
) -> list[RenderedSolution]:
    """The same, with the positions of the responses' own text."""
    if prm_format.layout != "turns":
        marks = [row.read_positions if prm_format.layout == "tag" else () for row in rendered]
        own = [range(n := len(row.prompt.input_ids), n + len(row.continuation)) for row in rendered]
        return [replace(r, text=one_turn_text(o, m)) for r, o, m in zip(rendered, own, marks, strict=True)]
    around, found = _around(processor, prm_format, problem, num_images), []
    for steps, row in zip(solutions, rendered, strict=True):
        first, turns = _later_texts(processor, prm_format, around, problem, steps, num_images)
        ids, texts = [*row.prompt.input_ids.tolist(), *row.continuation], [step.text for step in steps]
        text = turns_text(processor.tokenizer, ids, row.read_positions, [first, *turns], texts)
        found.append(replace(row, text=text))
    return found


def _from_the_steps(processor: Any, frame: Frame, prompt: EncodedPrompt) -> tuple[int, Frame]:
    """How many tokens a check may leave out, and the frame without them: a prompt of one turn, or all its images."""
    if isinstance(frame, OneTurnFrame):
        return frame.start, replace(frame, start=0)
    images = (prompt.input_ids == getattr(processor, "image_token_id", -1)).nonzero()
    return int(images[-1]) + 1 if len(images) else 0, frame


def row_length(
    processor: Any, prm_format: PRMFormat, problem: Problem, steps: Sequence[Step], count: PromptLength
) -> int:
    """Tokens of the row that `render` makes of one response, images included.

    Args:
        processor, prm_format, problem, steps: as in `render`.
        count: of the same processor; it opens an image no further than it has to.

    Raises:
        StepAlignmentError: steps that `render` refuses.
        DataError: an image that cannot be used.
    """
    _check(processor, prm_format, f"problem {problem.id!r}", steps)
    if marker := _tag_token(processor, prm_format):
        problem = replace(problem, question=broken_up(problem.question, marker))
    if prm_format.layout == "turns":
        around = _around(processor, prm_format, problem, len(problem.images))
        text, turns = _later_texts(processor, prm_format, around, problem, steps, len(problem.images))
        ids, _ = _joined(prm_format, around.sign, _ids(processor, turns))
    else:
        text = _one_turn_prompt(processor, prm_format, problem, len(problem.images))
        ids, _ = _step_tokens(processor, prm_format, steps)
    return count(text, problem.images).total + len(ids)


def conversations(
    processor: Any, prm_format: PRMFormat, problem: Problem, steps: Sequence[Step], num_images: int
) -> list[list[Message]]:
    """The turns up to each step of a response (`turns` layout), for a server that renders them itself.

    With the PRM's chat template and a generation prompt the i-th ends at read position i of `render`, which accepts the
    same steps. Control tokens are broken up as there.
    """
    turns = [sanitised(processor, opening(prm_format, problem, steps[0].text, num_images))]
    for step in steps[1:]:
        turns.append([*turns[-1], *sanitised(processor, next_turns(prm_format, step.text))])
    return turns


def forbidden_in(processor: Any, prm_format: PRMFormat, text: str) -> list[str]:
    """Control tokens that a step's text contains literally, the format's tag among them if it is an added token."""
    marker = _tag_token(processor, prm_format)
    return [*control_tokens_in(processor, text), *([marker] if marker and marker in text else [])]


def _check(processor: Any, prm_format: PRMFormat, where: str, steps: Sequence[Step]) -> None:
    if not 1 <= len(steps) <= prm_format.max_steps:
        raise StepAlignmentError(
            f"{where}: expected 1 to {prm_format.max_steps} steps, got {len(steps)}; merge them first"
        )
    for step in steps:
        if not step.text.strip():
            raise StepAlignmentError(f"{where}, step {step.index}: is empty; drop empty steps before scoring")
        if found := forbidden_in(processor, prm_format, step.text):
            raise StepAlignmentError(
                f"{where}, step {step.index}: contains the control token {found[0]!r}; drop the response"
            )


def _tag_token(processor: Any, prm_format: PRMFormat) -> str | None:
    """The tag, if no text can contain it: an added token such as `<extra_0>`. A tag `+` is an ordinary character."""
    is_added = prm_format.layout == "tag" and prm_format.tag in processor.tokenizer.get_added_vocab()
    return prm_format.tag if is_added else None


def _one_turn(
    processor: Any,
    prm_format: PRMFormat,
    problem: Problem,
    solutions: Sequence[Sequence[Step]],
    images: Sequence[Image.Image],
) -> tuple[Frame, list[RenderedSolution]]:
    """Steps inside the assistant's turn; read at each step's last token, or at the tag after it."""
    prompt = encode_prompt(processor, _one_turn_prompt(processor, prm_format, problem, len(images)), images)
    start = len(prompt.input_ids)
    rendered = []
    for steps in solutions:
        ids, ends = _step_tokens(processor, prm_format, steps)
        rendered.append(RenderedSolution(prompt, tuple(ids), tuple(start + end for end in ends)))
    tag, separator = _marks(processor, prm_format)
    return OneTurnFrame(start, tuple(tag), tuple(separator)), rendered


def _one_turn_prompt(processor: Any, prm_format: PRMFormat, problem: Problem, num_images: int) -> str:
    turn = user_message(problem.question, num_images, placed=problem.placed)
    return prompt_text(processor, [*system_turn(prm_format), turn])


def _marks(processor: Any, prm_format: PRMFormat) -> tuple[list[int], list[int]]:
    """Token ids of the tag behind each step, of the separator behind that."""
    tag = [single_token_id(processor.tokenizer, prm_format.tag)] if prm_format.layout == "tag" else []
    return tag, processor.tokenizer(prm_format.separator, add_special_tokens=False)["input_ids"]


def _step_tokens(processor: Any, prm_format: PRMFormat, steps: Sequence[Step]) -> tuple[list[int], list[int]]:
    """Token ids of all steps with their marks, and of each step the last one's index."""
    tag, separator = _marks(processor, prm_format)
    ids: list[int] = []
    ends: list[int] = []
    for own in _ids(processor, [step.text for step in steps]):
        ids += own + tag
        ends.append(len(ids) - 1)
        ids += separator
    return ids, ends


def _turns(
    processor: Any,
    prm_format: PRMFormat,
    problem: Problem,
    solutions: Sequence[Sequence[Step]],
    images: Sequence[Image.Image],
) -> tuple[Frame, list[RenderedSolution]]:
    """A user turn per step, a placeholder sign as each assistant turn; read at the token before the sign."""
    around = _around(processor, prm_format, problem, len(images))
    rest = [_later_texts(processor, prm_format, around, problem, steps, len(images)) for steps in solutions]
    prompts = encode_prompts(processor, [text for text, _ in rest], images)
    tokens = iter(_ids(processor, [turn for _, turns in rest for turn in turns]))
    rendered = []
    for prompt, (_, turns) in zip(prompts, rest, strict=True):
        ids, ends = _joined(prm_format, around.sign, [next(tokens) for _ in turns])
        last = len(prompt.input_ids) - 1
        rendered.append(RenderedSolution(prompt, tuple(ids), (last, *(last + 1 + end for end in ends))))
    head, before, after = (as_read(processor.tokenizer, text) for text in (around.head, around.before, around.after))
    return TurnsFrame(head, before, after, around.sign), rendered


class _Around(NamedTuple):
    """What the chat template puts around steps: `opened` step `after`, then `before` step `after` for each later one.

    `head` is the end of `opened` that the format itself writes.
    """

    opened: str
    before: str
    after: str
    head: str
    sign: int


def _around(processor: Any, prm_format: PRMFormat, problem: Problem, num_images: int) -> _Around:
    """Seen on a conversation whose steps are a known word."""
    probe = "STEP"
    messages = opening(prm_format, problem, probe, num_images)
    first = prompt_text(processor, messages)
    opened, _, after = first.rpartition(probe)
    second = prompt_text(processor, [*messages, *next_turns(prm_format, probe)])
    before = second[len(first) :].rpartition(probe)[0]
    head = first_turn_parts(prm_format, problem, "")[-1].strip()
    return _Around(opened, before, after, head or opened, single_token_id(processor.tokenizer, prm_format.positive))


def _later_texts(
    processor: Any,
    prm_format: PRMFormat,
    around: _Around,
    problem: Problem,
    steps: Sequence[Step],
    num_images: int,
) -> tuple[str, list[str]]:
    """The text of the first turn of a solution, and what each later step adds to it.

    The whole conversation is rendered once; where it is not the steps with `around` around them, since a template
    treats some text in its own way, every turn is rendered.
    """
    messages = opening(prm_format, problem, steps[0].text, num_images)
    later = [message for step in steps[1:] for message in next_turns(prm_format, step.text)]
    text = around.opened + steps[0].text + around.after
    turns = [around.before + step.text + around.after for step in steps[1:]]
    if prompt_text(processor, [*messages, *later]) == text + "".join(turns):
        return text, turns
    text, turns = prompt_text(processor, messages), []
    so_far = text
    for step in steps[1:]:
        messages = [*messages, *next_turns(prm_format, step.text)]
        longer = prompt_text(processor, messages)
        if not longer.startswith(so_far):
            raise StepAlignmentError(f"the chat template of PRM format {prm_format.name!r} rewrites earlier turns")
        turns.append(longer[len(so_far) :])
        so_far = longer
    return text, turns


def _joined(prm_format: PRMFormat, sign: int, turns: Sequence[Sequence[int]]) -> tuple[list[int], list[int]]:
    """Token ids after the first turn, and the last index of each later step."""
    ids: list[int] = []
    ends: list[int] = []
    for turn in turns:
        if turn[0] != sign:
            raise StepAlignmentError(
                f"PRM format {prm_format.name!r}: the chat template does not put the sign {prm_format.positive!r} "
                "first in the assistant's turn, so no position predicts it; use the 'tag' layout"
            )
        ids += turn
        ends.append(len(ids) - 1)
    return ids, ends


def _ids(processor: Any, texts: Sequence[str]) -> list[list[int]]:
    """The tokens of each text, without special ones around it."""
    return processor.tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
