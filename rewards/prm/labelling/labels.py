"""From Monte-Carlo counts to the labels that a PRM is trained on.

A step's label is 1 or 0 (hard: [mc > threshold], VisualPRM's threshold is 0, arXiv 2503.10291 §3.2), or mc itself
(soft), or `None`: nothing is learned from it. With two thresholds it is 1 above the one, 0 below the other, and `None`
between them. For a likelihood of the count (binomial) it is mc, and the count is kept beside it. Or it tells what the
step does to mc (advantage, an ablation of VisualPRM, there worse than the value): 1, ½ or 0, the signs `+`, `=` and
`-`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from scipy.stats import beta

from mpo.multimodal.errors import ConfigError, DataError
from rewards.errors import StepAlignmentError
from rewards.prm.labelling.source import require_draws, require_estimates
from rewards.steps import merge_to_at_most, merged_size
from rewards.types import MonteCarloCount, Problem, Rollout, Step

# Why a step has no label.
NOT_COUNTED = "not counted"
AFTER_ERROR = "after the first error"
BETWEEN = "between the thresholds"
DOUBTFUL = "in doubt"
NO_CHANGE = "no count before it"


@dataclass(frozen=True)
class LabelledSolution:
    """Steps of one response with one label each, in [0, 1], or None: this step is not trained on.

    Attributes:
        counts: of each step, for a likelihood of counts: a step that has a label has one.
    """

    steps: tuple[Step, ...]
    labels: tuple[float | None, ...]
    counts: tuple[MonteCarloCount | None, ...] | None = None

    def __post_init__(self) -> None:
        if len(self.steps) != len(self.labels):
            raise StepAlignmentError(f"a response has {len(self.steps)} steps but {len(self.labels)} labels")
        if self.counts is None:
            return
        if len(self.steps) != len(self.counts):
            raise StepAlignmentError(f"a response has {len(self.steps)} steps but {len(self.counts)} counts")
        if any(m is not None and count is None for m, count in zip(self.labels, self.counts, strict=True)):
            raise StepAlignmentError("a step has a label but no count: expected the count that it is learned from")

    @property
    def ends_right(self) -> bool:
        """Whether the last step's label is 1: the whole response may be learned from."""
        return self.labels[-1] == 1.0


@dataclass(frozen=True)
class LabelledGroup:
    """Labelled responses of one problem. A batch keeps them together, so that right and wrong answers to the same
    image are side by side; a PRM that never sees that contrast learns how hard an image is and nothing else.
    """

    problem: Problem
    solutions: tuple[LabelledSolution, ...]


@dataclass(frozen=True)
class LabelRule:
    """How counts become labels.

    Attributes:
        soft: mc itself instead of [mc > threshold].
        threshold: a step is right if mc > threshold, in [0, 1).
        until_first_error: no labels after the first step whose mc is 0, as in PRM800K (arXiv 2305.20050).
        advantage: 1 where mc_i − mc_{i−1} is above this, 0 where it is below minus this, else ½. The first step gets no
            label: mc before it is not counted. `None` for labels of the value.
        max_doubt: no label where P(mc is on the other side of the threshold) is above this; 1 keeps all.
        binomial: the counts themselves are learned, by their likelihood; the labels are mc.
        good_above: a step is right if mc > good_above, in (0, 1), and wrong if mc < bad_below; else it has no label.
        bad_below: in (0, good_above]; both are given, or neither, in place of `threshold`.

    Raises:
        ConfigError: a number out of its range, or `max_doubt` below 1 with soft labels or at threshold 0: soft labels
            take no side, and 0 successes never make mc = 0 certain. Or two ways of labelling at once.
    """

    soft: bool = False
    threshold: float = 0.0
    until_first_error: bool = False
    max_doubt: float = 1.0
    advantage: float | None = None
    binomial: bool = False
    good_above: float | None = None
    bad_below: float | None = None

    def __post_init__(self) -> None:
        self._check_ways()
        if not 0.0 <= self.threshold < 1.0 or not 0.0 < self.max_doubt <= 1.0:
            raise ConfigError(f"expected 0 <= threshold < 1 and 0 < max_doubt <= 1, got {self}")
        if self.max_doubt < 1.0 and (self.soft or self.threshold == 0.0):
            raise ConfigError(f"max_doubt needs hard labels at a threshold above 0, got {self}")
        if self.advantage is not None:
            others = self.soft or self.threshold != 0.0 or self.max_doubt < 1.0
            if not 0.0 <= self.advantage < 1.0 or others:
                raise ConfigError(
                    f"advantage must be in [0, 1) and cannot be combined with soft, threshold or max_doubt, got {self}"
                )

    def _check_ways(self) -> None:
        """Whether at most one of the ways to make labels is asked for, and the two thresholds are in order."""
        ways = {
            "soft labels": self.soft,
            "binomial": self.binomial,
            "advantage": self.advantage is not None,
            "good_above and bad_below": (self.good_above, self.bad_below) != (None, None),
        }
        asked = [way for way, wanted in ways.items() if wanted]
        if len(asked) > 1 and asked != ["soft labels", "advantage"]:  # which has a message of its own
            raise ConfigError(f"{' and '.join(asked)} are different ways to learn from counts: choose one of them")
        if (self.binomial or self.good_above is not None) and (self.threshold != 0.0 or self.max_doubt < 1.0):
            raise ConfigError(
                f"{asked[0]} cannot be combined with threshold or max_doubt: leave them out, got threshold="
                f"{self.threshold:g} and max_doubt={self.max_doubt:g}"
            )
        if (self.good_above is None) != (self.bad_below is None):
            raise ConfigError(
                f"expected good_above and bad_below together, got {self.good_above} and {self.bad_below}: steps "
                "between them have no label"
            )
        if self.good_above is not None and not 0.0 < (self.bad_below or 0.0) <= self.good_above < 1.0:
            raise ConfigError(f"expected 0 < bad_below <= good_above < 1, got {self.bad_below} and {self.good_above}")

    def check_sources(self, rollouts: Iterable[Rollout]) -> None:
        """Whether labels of this kind can be made from these counts.

        Raises:
            ConfigError: a budget that stopped early, or one that inferred counts, gave some of them.
        """
        if self.binomial:
            require_draws(rollouts, use="--loss binomial")
        elif self.needs:
            require_estimates(rollouts, use=self.needs)

    @property
    def needs(self) -> str | None:
        """What of the rule needs counts that estimate mc, for `require_estimates`; None if nothing does."""
        if self.advantage is not None:
            return "advantage labels (--advantage)"
        if self.soft:
            return "soft labels (--soft_labels)"
        if self.good_above is not None:
            return "labels at --good_above and --bad_below"
        return f"labels at --threshold {self.threshold}" if self.threshold != 0.0 else None

    def labels(self, counts: Sequence[MonteCarloCount | None], *, exact: bool = False) -> tuple[float | None, ...]:
        """One label per step.

        Args:
            counts: of each step; one that was not counted gets no label.
            exact: they are the truth and not a sample of it: nothing is in doubt.

        Example:
            >>> counts = [MonteCarloCount(4, 4), MonteCarloCount(2, 4), MonteCarloCount(0, 4)]
            >>> LabelRule().labels(counts), LabelRule(soft=True).labels(counts)
            ((1.0, 1.0, 0.0), (1.0, 0.5, 0.0))
            >>> LabelRule(threshold=0.5, max_doubt=0.1).labels(counts)
            (1.0, None, 0.0)
            >>> LabelRule(advantage=0.1).labels([*counts, MonteCarloCount(0, 4)])
            (None, 0.0, 0.0, 0.5)
            >>> LabelRule().labels([*counts, None])
            (1.0, 1.0, 0.0, None)
            >>> LabelRule(good_above=0.6, bad_below=0.4).labels(counts)
            (1.0, None, 0.0)
        """
        values = [None if count is None else count.value for count in counts]
        labels: list[float | None] = (
            [*values]
            if self.soft or self.binomial
            else [v if v is None else float(v > self._right_above) for v in values]
        )
        if self.advantage is not None:
            labels = [None, *(_change(*pair, self.advantage) for pair in pairwise(values))]
        lost = self.reasons(counts, exact=exact)
        return tuple(label if reason is None else None for label, reason in zip(labels, lost, strict=True))

    def reasons(self, counts: Sequence[MonteCarloCount | None], *, exact: bool = False) -> tuple[str | None, ...]:
        """Why each step has no label; None: it has one. Arguments are those of `labels`.

        Example:
            >>> counts = [MonteCarloCount(4, 4), MonteCarloCount(2, 4), MonteCarloCount(0, 4), None]
            >>> LabelRule(good_above=0.6, bad_below=0.4).reasons(counts)
            (None, 'between the thresholds', None, 'not counted')
        """
        first_zero = next((i for i, count in enumerate(counts) if count and not count.correct), len(counts))
        found: list[str | None] = []
        for index, count in enumerate(counts):
            if self.until_first_error and index > first_zero:
                found.append(AFTER_ERROR)
            elif count is None:
                found.append(NOT_COUNTED)
            elif self.advantage is not None and (index == 0 or counts[index - 1] is None):
                found.append(NO_CHANGE)
            elif self.bad_below is not None and self.bad_below <= count.value <= self._right_above:
                found.append(BETWEEN)
            elif self.max_doubt < 1.0 and not exact and doubt(count, threshold=self.threshold) > self.max_doubt:
                found.append(DOUBTFUL)
            else:
                found.append(None)
        return tuple(found)

    @property
    def _right_above(self) -> float:
        return self.threshold if self.good_above is None else self.good_above


def _change(before: float | None, after: float | None, advantage: float) -> float | None:
    """1, ½ or 0: a step raises mc, keeps it, or lowers it."""
    if before is None or after is None:
        return None
    gain = after - before
    return (1 + (gain > advantage) - (gain < -advantage)) / 2


def merged_counts(
    steps: Sequence[Step], counts: Sequence[MonteCarloCount | None], *, max_steps: int
) -> tuple[tuple[Step, ...], tuple[MonteCarloCount | None, ...]]:
    """Counted steps merged as `merge_to_at_most` merges them, which is how a PRM reads them.

    mc of a merged step is that of its end: the count of its last member. Where nothing was drawn there, since a member
    before it was the first error, the last count of the group stands.

    Args:
        steps: of one response, as they were counted.
        counts: of each.
        max_steps: most steps that the PRM's format takes.

    Example:
        >>> from rewards.steps import split_on_blank_lines
        >>> counts = [MonteCarloCount(4, 4), MonteCarloCount(1, 4), MonteCarloCount(0, 4)]
        >>> steps, kept = merged_counts(split_on_blank_lines("a\\n\\nb\\n\\nc"), counts, max_steps=2)
        >>> [step.text.split() for step in steps], [count.correct for count in kept]
        ([['a', 'b'], ['c']], [1, 0])
    """
    size = merged_size(len(steps), max_steps=max_steps)
    groups = [counts[start : start + size] for start in range(0, len(counts), size)]
    kept = tuple(next((count for count in reversed(group) if count is not None), None) for group in groups)
    return merge_to_at_most(steps, max_steps=max_steps), kept


def doubt(count: MonteCarloCount, *, threshold: float) -> float:
    """P(mc is on the other side of the threshold than correct / total), mc ~ Beta(1 + correct, 1 + total − correct).

    That is the posterior of mc after `correct` of `total` successes under a uniform prior.

    Example:
        >>> doubt(MonteCarloCount(1, 1), threshold=0.5), round(doubt(MonteCarloCount(16, 16), threshold=0.5), 6)
        (0.25, 8e-06)
    """
    below = float(beta.cdf(threshold, 1 + count.correct, 1 + count.total - count.correct))
    return below if count.value > threshold else 1.0 - below


def class_weights(groups: Sequence[LabelledGroup]) -> tuple[float, float]:
    """Weights of the right and the wrong class under which both weigh the same in the loss: n / (2·n_class).

    n_right = Σ m and n_wrong = Σ (1 − m) over the labels m. VisualPRM400K has about 10 % wrong steps (arXiv
    2503.10291), which then weigh 5 and the right ones 0.56.

    Raises:
        DataError: a class does not occur.
    """
    labels = [m for group in groups for solution in group.solutions for m in solution.labels if m is not None]
    right = sum(labels)
    wrong = len(labels) - right
    if not right or not wrong:
        raise DataError(f"classes cannot be balanced: of {len(labels)} labels {right} are right and {wrong} wrong")
    return len(labels) / (2 * right), len(labels) / (2 * wrong)
