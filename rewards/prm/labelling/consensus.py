"""Two sources of step labels: a step counts only where both call it the same.

The second source (a stronger completer, another budget, a judge) is kept apart: its labels decide which labels of the
first are kept, and never what they are. Weak and strong completers that agree gave the labels of Athena-PRM (arXiv
2506.09532). Responses are matched by what they are and not by their place: question, images, reference answer and text.
Steps are matched by where they end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpo.multimodal.errors import ImageError
from mpo.multimodal.images import image_sha256, load_image
from rewards.types import MonteCarloCount, Problem, Rollout, RolloutGroup, Step

if TYPE_CHECKING:
    from rewards.types import ImageLike

# Why a step that the first source labels has no label.
NO_IMAGE = "image cannot be read"
NO_RESPONSE = "response not in the second source"
NO_STEP = "step not in the second source"
NO_LABEL = "no label in the second source"
DISAGREE = "sources disagree"

Labels = tuple[float | None, ...]
Label = Callable[[Rollout], tuple[Sequence[Step], Sequence[MonteCarloCount | None], Labels]]  # as of the label rule


@dataclass
class Consensus:
    """What a second source says of the steps of responses.

    Args:
        groups: of the second source, labelled; of a response that is in it twice the first counts.
        label: a rollout → its steps, their counts, and the hard labels that are compared, for both sources.

    Attributes:
        reasons: reason → steps that the first source labels and that got no label.
        disagreements: one JSON object per step that the sources label differently, in the order of the first source.
    """

    groups: Iterable[RolloutGroup]
    label: Label
    reasons: Counter[str] = field(default_factory=Counter)
    disagreements: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._second: dict[Hashable, Rollout] = {}
        for group in self.groups:
            problem = _readable_content(group.problem)
            for rollout in group.rollouts:
                if rollout.mc is not None:
                    self._second.setdefault((problem, rollout.completion.text), rollout)

    def agreed(self, problem: Problem, rollout: Rollout) -> tuple[bool, ...]:
        """For each step of a response of the first source, whether its label may be learned.

        True also where the first source has no label, which is nothing to disagree with.

        Args:
            problem: that the response is to.
            rollout: of the first source, labelled.
        """
        steps, counts, labels = self.label(rollout)
        content = _readable_content(problem)
        second = self._second.get((content, rollout.completion.text)) if content else None
        if second is None:
            self.reasons[NO_RESPONSE if content else NO_IMAGE] += sum(label is not None for label in labels)
            return tuple(label is None for label in labels)
        found = {step.end: said for step, *said in zip(*self.label(second), strict=True)}
        kept = []
        for step, count, label in zip(steps, counts, labels, strict=True):
            other, theirs = found.get(step.end, (None, None))
            reason = None
            if label is None:
                pass
            elif step.end not in found:
                reason = NO_STEP
            elif theirs is None:
                reason = NO_LABEL
            elif theirs != label:
                reason = DISAGREE
                self._list(problem, rollout, step, (count, label), second, (other, theirs))
            if reason:
                self.reasons[reason] += 1
            kept.append(reason is None)
        return tuple(kept)

    def _list(self, problem: Problem, first: Rollout, step: Step, said: Any, second: Rollout, theirs: Any) -> None:
        row: dict[str, Any] = {"problem_id": problem.id, "question": problem.question, "step": step.index}
        row |= {"step_text": step.text, "response": first.completion.text}
        for name, rollout, (count, label) in (("first", first, said), ("second", second, theirs)):
            row[name] = {"label": label, "count": [count.correct, count.total], "label_source": rollout.label_source}
        self.disagreements.append(row)


def content_of(problem: Problem) -> Hashable:
    """What makes two problems the same whatever their ids: question, reference answer, and the pixels of the images.

    Example:
        >>> content_of(Problem("a", "How many?", answer="3")) == content_of(Problem("b", "How many?", answer="3"))
        True
    """
    return problem.question, problem.answer, tuple(map(_pixels, problem.images))


def _readable_content(problem: Problem) -> Hashable | None:
    """`content_of`; None if an image cannot be read, which equals nothing."""
    try:
        return content_of(problem)
    except ImageError:
        return None


def _pixels(image: ImageLike) -> str:
    return _pixels_of_file(str(image)) if isinstance(image, str | Path) else image_sha256(load_image(image))


@cache
def _pixels_of_file(path: str) -> str:
    return image_sha256(load_image(path))
