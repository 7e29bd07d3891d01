"""The limits that every pairing rule keeps, checked where they are set."""

from __future__ import annotations

from dataclasses import dataclass

from mpo.multimodal.errors import ConfigError
from rewards.pairing.spans import RejectedSpan


@dataclass(frozen=True)
class Limits:
    """What a pairing rule may make of one problem.

    Attributes:
        max_pairs: pairs per problem at most, at least 1; `correctness` makes so many of each of its two kinds. MMPR
            takes 15.
        format_negatives: a response that truly states no final answer (`rewards.pairing.eligibility.states_no_answer`)
            may be rejected.
        max_length_ratio: the longer side of a pair has at most this many times the characters of the shorter one, at
            least 1. None: no limit.
        min_visual_dependence: in [-1, 1]; a right response whose score depends on the image by less
            (`rewards/scoring/visual_dependence.py`), or that was not scored without it, is on no side. None: no limit.
        min_step_score: in [0, 1]; a right response with a step score below it, or without step scores, is on no side:
            its answer may be right by luck, and the chosen side teaches every step. 0: no limit.
        rejected_span: the part of a rejected response that carries the gradient; a wrong response without such a part
            is on no side.

    Raises:
        ConfigError: a limit outside its range.

    Example:
        >>> Limits(max_length_ratio=1.5).length_fits("four", "sixsix"), Limits().length_fits("a", "far longer")
        (True, True)
        >>> Limits(max_pairs=0)
        Traceback (most recent call last):
        ...
        mpo.multimodal.errors.ConfigError: max_pairs must be at least 1, got 0
    """

    max_pairs: int = 15
    format_negatives: bool = False
    max_length_ratio: float | None = None
    min_visual_dependence: float | None = None
    min_step_score: float = 0.0
    rejected_span: RejectedSpan = RejectedSpan()  # noqa: RUF009 - frozen

    def __post_init__(self) -> None:
        if self.max_pairs < 1:
            raise ConfigError(f"max_pairs must be at least 1, got {self.max_pairs}")
        if self.max_length_ratio is not None and not self.max_length_ratio >= 1.0:
            raise ConfigError(f"max_length_ratio must be at least 1, got {self.max_length_ratio}")
        if self.min_visual_dependence is not None and not -1.0 <= self.min_visual_dependence <= 1.0:
            raise ConfigError(f"min_visual_dependence must be in [-1, 1], got {self.min_visual_dependence}")
        if not 0.0 <= self.min_step_score <= 1.0:
            raise ConfigError(f"min_step_score must be in [0, 1], got {self.min_step_score}")

    def length_fits(self, first: str, second: str) -> bool:
        """Whether the lengths of two texts, without blanks around them, are within `max_length_ratio`."""
        shorter, longer = sorted((len(first.strip()), len(second.strip())))
        return self.max_length_ratio is None or longer <= self.max_length_ratio * shorter
