"""The words of this package as frozen types. Stages never change one; they return a new one.

A `Problem` is asked; a policy answers with `Completion`s; a completion is split into `Step`s, a process
reward model gives each step P(correct) (`StepScores`), an aggregation turns those into one reward, a
verifier checks the final answer (`Verdict`). A `Rollout` is one completion with what is known of it so far;
a `RolloutGroup` is one problem with all its rollouts. Two rollouts of a group make a `PreferencePair`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpo.multimodal.errors import DataError
from mpo.multimodal.messages import PLACEHOLDER
from rewards.errors import StepAlignmentError

if TYPE_CHECKING:
    from pathlib import Path

    from PIL import Image

    ImageLike = str | Path | Image.Image


def _text_of(answer: Any) -> str:
    return str(answer).lower() if isinstance(answer, bool) else str(answer)


@dataclass(frozen=True)
class Prompt:
    """How a policy is asked a question (`rewards/sampling/prompts.py`).

    Attributes:
        template: text that holds `{question}` where the question goes.
        system: a system message; empty for none.
    """

    template: str = "{question}"
    system: str = ""

    def text(self, question: str) -> str:
        """The question as it is asked.

        Example:
            >>> Prompt("{question} Think {first}.").text("What is {question}?")
            'What is {question}? Think {first}.'
        """
        before, _, after = self.template.partition("{question}")
        return f"{before}{question}{after}"


@dataclass(frozen=True)
class Problem:
    """A question about zero or more images.

    Attributes:
        id: unique within a dataset.
        question: the bare question: what a process reward model is shown.
        images: local paths or PIL images, in the order in which they precede the question, or come in it.
        answer: the reference answer, or `None` where nobody knows it. A number or a truth value becomes its text; of a
            list of accepted answers the first stays and all of them go to `meta["answers"]`.
        meta: whatever else the dataset gives (strings, numbers, lists); carried along. Read are `verifier`, a name of
            `rewards.verifying.verification.VERIFIERS` (by `mpo verify`), `choices`, the texts of the options (by
            `choice`), and `answers`, all accepted answers.
        prompt: how the policy is asked; the bare question unless somebody chose a template.
        placed: whether `<image>` in the question stands for an image, one for each; else all images precede it, and
            `<image>` is text.
    """

    id: str
    question: str
    images: tuple[ImageLike, ...] = ()
    answer: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    prompt: Prompt = Prompt()
    placed: bool = False

    def __post_init__(self) -> None:
        if self.placed and self.question.count(PLACEHOLDER) != len(self.images):
            raise DataError(
                f"problem {self.id!r}: {self.question.count(PLACEHOLDER)} {PLACEHOLDER} in the question for "
                f"{len(self.images)} images; expected as many",
                reason="placeholders and images differ in number",
            )
        if self.answer is None or isinstance(self.answer, str):
            return
        several = self.answer if isinstance(self.answer, list | tuple) else [self.answer]
        texts = [_text_of(one) for one in several if one is not None]
        object.__setattr__(self, "answer", texts[0] if texts else None)
        if len(texts) > 1:
            object.__setattr__(self, "meta", {**self.meta, "answers": texts})


def without_images(problem: Problem) -> Problem:
    """The problem as it is asked without its images.

    Example:
        >>> without_images(Problem("p", "Is <image> red?", ("a.png",), placed=True)).question
        'Is  red?'
    """
    question = problem.question.replace(PLACEHOLDER, "") if problem.placed else problem.question
    return replace(problem, question=question, images=(), placed=False)


class FinishReason(StrEnum):
    """Why a completion ended."""

    STOP = "stop"  # the policy ended its turn
    LENGTH = "length"  # cut at the token limit: never a chosen response


@dataclass(frozen=True)
class Completion:
    """One sampled response.

    Attributes:
        text: what was generated, without a prefix that it continues.
        finish_reason: why it ended.
        num_tokens: tokens generated, end-of-turn included; 0 if a server did not report it.
        token_logprobs: natural log-probability of each generated token under the policy itself (temperature 1, all
            tokens allowed), where it was asked for.
    """

    text: str
    finish_reason: FinishReason = FinishReason.STOP
    num_tokens: int = 0
    token_logprobs: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Step:
    """A span of a completion. Adjacent steps' spans touch, and all of them together tile the text."""

    index: int
    start: int
    end: int
    text: str


@dataclass(frozen=True)
class StepScores:
    """P(correct up to this step) for each step: finite, in [0, 1], at least one.

    Attributes:
        values: one score per step.
        bounds: where a server told only a part of what a score is made of, the interval that it lies in, one per step;
            an exact score has two equal ends. `None`: all scores are exact.
        part: of the response whose steps these are: "solution", "thought" or "both" (`rewards/verifying/thoughts.py`).
        spreads: how far mc may lie from each score, as a standard deviation in [0, ½]; one per step, from a PRM that
            tells it (`rewards/prm/concentration.py`). `None`: it told none, which is not a spread of 0.

    Example:
        >>> StepScores((0.9, 0.5)).values
        (0.9, 0.5)
        >>> StepScores((1.5,))
        Traceback (most recent call last):
        ...
        rewards.errors.StepAlignmentError: step scores must be finite and in [0, 1], got 1.5 at step 0
    """

    values: tuple[float, ...]
    bounds: tuple[tuple[float, float], ...] | None = None
    part: str = field(default="solution", repr=False)
    spreads: tuple[float, ...] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not self.values:
            raise StepAlignmentError("a response has no step scores: expected at least one step")
        if self.bounds is not None and len(self.bounds) != len(self.values):
            raise StepAlignmentError(f"expected one interval per step, got {len(self.bounds)} for {len(self.values)}")
        if self.spreads is not None and len(self.spreads) != len(self.values):
            raise StepAlignmentError(f"expected one spread per step, got {len(self.spreads)} for {len(self.values)}")
        for index, spread in enumerate(self.spreads or ()):
            if not 0.0 <= spread <= 0.5:
                raise StepAlignmentError(f"the spread of a step must be in [0, 0.5], got {spread} at step {index}")
        for index, value in enumerate(self.values):
            if not (math.isfinite(value) and 0.0 <= value <= 1.0):
                raise StepAlignmentError(f"step scores must be finite and in [0, 1], got {value} at step {index}")
            low, high = self.bounds[index] if self.bounds else (value, value)
            if not 0.0 <= low <= value <= high <= 1.0:
                raise StepAlignmentError(f"step {index}: the score {value} is not inside its interval [{low}, {high}]")


class Verdict(StrEnum):
    """What a verifier found of a final answer. Trouble of the verifier is never `WRONG`."""

    CORRECT = "correct"
    WRONG = "wrong"
    UNPARSABLE = "unparsable"  # no final answer could be read from the response
    TIMEOUT = "timeout"
    ERROR = "error"

    @property
    def is_decided(self) -> bool:
        """Whether it says something of the answer. A miss (the other three) is neither a success nor a failure."""
        return self in (Verdict.CORRECT, Verdict.WRONG)


@dataclass(frozen=True)
class MonteCarloCount:
    """`correct` of `total` continuations from a step's end reached the right answer.

    Under a budget that stops early, `correct > 0` is all that it tells (`rewards/prm/labelling/source.py`).
    """

    correct: int
    total: int

    def __post_init__(self) -> None:
        if not 0 <= self.correct <= self.total or self.total < 1:
            raise DataError(
                f"Monte-Carlo counts must satisfy 0 <= correct <= total >= 1, got {self.correct}/{self.total}"
            )

    @property
    def value(self) -> float:
        """Expected accuracy, mc = correct / total (VisualPRM, arXiv 2503.10291, Eq. 1)."""
        return self.correct / self.total


@dataclass(frozen=True)
class Unseen:
    """The PRM's scores of a response when it is shown an image that is not the problem's."""

    step_scores: StepScores
    reward: float


NO_VOTE = -1  # of a response that states no answer that its verifier can read


@dataclass(frozen=True)
class Rollout:
    """One completion and what is known of it so far; `None` means "not computed", never "bad".

    Attributes:
        mc: counts for the end of each step; None where nothing was drawn, behind a first error: no label.
        second_verdict: of another verifier that checked the same answer.
        vote: number of its answer's class among the group's, from 0, or `NO_VOTE`
            (`rewards/verifying/equality_classes.py`).
        label_source: where they come from, which decides what they may be used for (`rewards/prm/labelling/source.py`).
        blank: scored with a white image of the same size (`rewards/scoring/visual_dependence.py`).
        swapped: scored with another problem's image.
    """

    completion: Completion
    verdict: Verdict | None = None
    step_scores: StepScores | None = None
    reward: float | None = None
    mc: tuple[MonteCarloCount | None, ...] | None = None
    label_source: str | None = None
    blank: Unseen | None = None
    swapped: Unseen | None = None
    second_verdict: Verdict | None = None
    vote: int | None = None

    def __post_init__(self) -> None:
        for name, other in (("blank", self.blank), ("swapped", self.swapped)):
            steps = len(self.step_scores.values) if self.step_scores else 0
            if other is not None and len(other.step_scores.values) != steps:
                raise StepAlignmentError(
                    f"{len(other.step_scores.values)} step scores with a {name} image for {steps} with the problem's "
                    "own; expected as many"
                )

    @property
    def is_disputed(self) -> bool:
        """Whether two verifiers read the answer and only one of them calls it right."""
        both = (self.verdict, self.second_verdict)
        return all(one is not None and one.is_decided for one in both) and both[0] is not both[1]

    def with_(self, **changes: Any) -> Rollout:
        """The same rollout with some fields replaced."""
        return replace(self, **changes)


@dataclass(frozen=True)
class RolloutGroup:
    """A problem and its rollouts, in sampling order."""

    problem: Problem
    rollouts: tuple[Rollout, ...]


@dataclass(frozen=True)
class PreferencePair:
    """Two completions of one problem, the first better than the second.

    Attributes:
        source: which pairing rule made it, e.g. "correctness_and_prm".
        meta: rewards and sample indices of both sides: the provenance.
        rejected_span: [start, end) of the characters of the rejected response that count in L_p and L_q; `None`: all.
    """

    problem: Problem
    chosen: Completion
    rejected: Completion
    source: str
    meta: Mapping[str, Any] = field(default_factory=dict)
    rejected_span: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        start, end = self.rejected_span or (0, len(self.rejected.text))
        if not 0 <= start <= end <= len(self.rejected.text) or (self.rejected_span and start == end):
            raise DataError(
                f"pair of problem {self.problem.id!r}: expected a rejected_span 0 <= start < end <= "
                f"{len(self.rejected.text)}, the rejected response's characters; got {self.rejected_span}"
            )
        if not self.chosen.text.strip() or not self.rejected.text.strip():
            raise DataError(f"pair of problem {self.problem.id!r} has an empty side; drop it before pairing")
        if self.chosen.text.strip() == self.rejected.text.strip():
            raise DataError(f"pair of problem {self.problem.id!r} has chosen equal to rejected; drop it before pairing")


Splitter = Callable[[str], tuple[Step, ...]]
Verifier = Callable[[Problem, str], Verdict]
Aggregator = Callable[[StepScores], float]


def verdict_of(rollout: Rollout) -> str:
    """The verdict's name, "none" if there is none: the problem could not be checked."""
    return rollout.verdict.value if rollout.verdict else "none"


def correctness_of(group: RolloutGroup) -> tuple[bool, ...]:
    """Which rollouts are verified correct; for accuracies, in which a miss counts as not correct: report their number.

    Raises:
        DataError: the group is empty or a rollout has not been verified.
    """
    if not group.rollouts or any(rollout.verdict is None for rollout in group.rollouts):
        raise DataError(
            f"problem {group.problem.id!r}: expected verified rollouts, at least one; run the verifier first"
        )
    return tuple(rollout.verdict is Verdict.CORRECT for rollout in group.rollouts)
