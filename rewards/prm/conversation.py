"""The turns in which a PRM is shown a problem and its steps, as its format says."""

from __future__ import annotations

from mpo.multimodal.messages import PLACEHOLDER, Message, assistant_message, system_message, user_message
from rewards.prm.formats import PRMFormat
from rewards.types import Problem


def opening(prm_format: PRMFormat, problem: Problem, step: str, num_images: int) -> list[Message]:
    """The turns up to the first step: the system's, if there is one, and the question with its images and that step."""
    if problem.placed:
        before, after = _around_question(prm_format, step)
        turn = user_message(problem.question, num_images, before=before, after=after, placed=True)
        return [*system_turn(prm_format), turn]
    *before_images, text = first_turn_parts(prm_format, problem, step)
    return [*system_turn(prm_format), user_message(text, num_images, before="".join(before_images))]


def next_turns(prm_format: PRMFormat, step: str) -> list[Message]:
    """What follows a step: the sign that says it is right, and the next step."""
    return [assistant_message(prm_format.positive), user_message(step)]


def first_turn_parts(prm_format: PRMFormat, problem: Problem, step: str) -> list[str]:
    """The first turn's text, cut at the place of the images if it names one, or behind the last that is placed."""
    if problem.placed:
        before, after = _around_question(prm_format, step)
        first, found, last = problem.question.rpartition(PLACEHOLDER)
        return [before + first + found, last + after]
    return [part.format(question=problem.question, step=step) for part in prm_format.first_turn.split("{images}", 1)]


def _around_question(prm_format: PRMFormat, step: str) -> tuple[str, str]:
    """The first turn's text around the question, for images that are inside it."""
    before, _, after = prm_format.first_turn.replace("{images}", "", 1).partition("{question}")
    return before, after.format(step=step)


def system_turn(prm_format: PRMFormat) -> list[Message]:
    """The system's turn, if the format has one."""
    return [system_message(prm_format.system)] if prm_format.system else []
