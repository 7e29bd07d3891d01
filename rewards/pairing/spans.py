"""Which part of a rejected response carries the gradient: the whole of it, or its first bad step.

Most of a wrong response is not wrong: steps before the error are right, and many behind it are sound arithmetic on a
wrong number. MPO as published (arXiv 2411.10442) pushes all of them down. A process reward model, Monte-Carlo counts or
exact labels know where the response first goes wrong; the pair then says so in characters, and the trainer counts only
those tokens (`mpo/spans.py`). Related: Mask-DPO (arXiv 2503.02846), Step-DPO (arXiv 2406.18629).
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import NamedTuple

from mpo.multimodal.errors import ConfigError
from rewards.errors import StepAlignmentError
from rewards.kept.keys import seed_of
from rewards.prm.labelling.source import EXACT, counts_estimate_mc
from rewards.steps import split_into
from rewards.types import Rollout, Step, Verdict

PARTS = ("full", "first_bad_step", "up_to_first_bad_step")
# source of the steps' values → a step is bad if its value is at most this (for scores: below it)
SOURCES = {"prm": 0.5, "mc": 0.0, "exact": 0.0, "random": 0.5}


class BadStep(NamedTuple):
    """The first bad step of a response, its value, and whether it is only the lowest, not under the threshold."""

    step: Step
    value: float
    is_lowest: bool = False


@dataclass(frozen=True)
class RejectedSpan:
    """Where in a rejected response L_p and L_q look.

    Attributes:
        part: "full", the paper's; "first_bad_step"; or "up_to_first_bad_step", from the start to that step's end.
        source: what finds the bad step. "prm": step scores, the first one below the threshold, and where none is below
            it the lowest, since the response is known to be wrong. "mc": Monte-Carlo counts, "exact": a world's own
            labels, the first one at most the threshold. "random": the control, as long as the PRM's, elsewhere.
        threshold: None takes 0.5 for scores and 0 for counts and labels.

    Raises:
        ConfigError: an unknown part or source, or a threshold outside [0, 1].

    Example:
        >>> from rewards.types import Completion, StepScores
        >>> rollout = Rollout(Completion("3\\n\\n8\\n\\n11"), step_scores=StepScores((0.9, 0.2, 0.1)))
        >>> RejectedSpan("first_bad_step").of(rollout), RejectedSpan().of(rollout)
        ((3, 4), None)
    """

    part: str = "full"
    source: str = "prm"
    threshold: float | None = None

    def __post_init__(self) -> None:
        if self.part not in PARTS:
            raise ConfigError(f"unknown rejected_span {self.part!r}: expected one of {', '.join(PARTS)}")
        if self.source not in SOURCES:
            raise ConfigError(f"unknown span_source {self.source!r}: expected one of {', '.join(SOURCES)}")
        if self.threshold is not None and not 0.0 <= self.threshold <= 1.0:
            raise ConfigError(f"bad_step_threshold must be in [0, 1], got {self.threshold}")

    def of(self, rollout: Rollout) -> tuple[int, int] | str | None:
        """[start, end) of the characters that count, None for the whole response, or why there is no such part.

        The blank line behind a step is not in it. A response without a final answer counts whole: what is wrong with
        it is no step.
        """
        if self.part == "full" or rollout.verdict is Verdict.UNPARSABLE:
            return None
        found = self.bad_step(rollout)
        if isinstance(found, str):
            return found
        start, end = _own_text(rollout, found.step)
        if self.part == "up_to_first_bad_step":
            return 0, end
        return self._elsewhere(rollout, start, end) if self.source == "random" else (start, end)

    def bad_step(self, rollout: Rollout) -> BadStep | str:
        """The first bad step, or why there is none to use."""
        values = self._values(rollout)
        if isinstance(values, str):
            return values
        try:
            steps = self._steps(rollout, len(values))
        except StepAlignmentError:
            return "steps_and_values_differ"
        threshold = SOURCES[self.source] if self.threshold is None else self.threshold
        scored = self.source in ("prm", "random")
        for step, value in zip(steps, values, strict=True):
            if value < threshold or (value == threshold and not scored):
                return BadStep(step, value)
        if not scored:
            return "no_bad_step"
        lowest = min(range(len(values)), key=lambda index: values[index])
        return BadStep(steps[lowest], values[lowest], is_lowest=True)

    def _steps(self, rollout: Rollout, number: int) -> tuple[Step, ...]:
        """The steps that were scored, of the part that the PRM was shown; counts are of the solution."""
        scores = rollout.step_scores if self.source in ("prm", "random") else None
        return split_into(rollout.completion.text, number, part=scores.part if scores else "solution")

    def _elsewhere(self, rollout: Rollout, first: int, last: int) -> tuple[int, int]:
        """As many characters from the start of another step; the same ones where no other has as many behind it."""
        text, length = rollout.completion.text, last - first
        assert rollout.step_scores is not None  # a bad step was found in them
        steps = self._steps(rollout, len(rollout.step_scores.values))
        starts = [
            step.start for step in steps if not step.start <= first < step.end and step.start + length <= len(text)
        ]
        start = random.Random(seed_of(text)).choice(starts or [first])
        return start, start + length

    def _values(self, rollout: Rollout) -> tuple[float, ...] | str:
        if self.source in ("prm", "random"):
            return rollout.step_scores.values if rollout.step_scores else "no_step_scores"
        is_exact = rollout.label_source == EXACT
        if rollout.mc is None or is_exact != (self.source == "exact"):
            return "no_exact_labels" if self.source == "exact" else "no_counts"
        if self.threshold and not counts_estimate_mc(rollout.label_source):
            return "counts_say_only_above_0"
        # A step that was not counted comes after the first error, so it is never the first bad step.
        return tuple(math.inf if count is None else count.value for count in rollout.mc)


def _own_text(rollout: Rollout, step: Step) -> tuple[int, int]:
    """[start, end) of a step without the whitespace around it."""
    text = rollout.completion.text[step.start : step.end]
    return step.end - len(text.lstrip()), step.start + len(text.rstrip())
