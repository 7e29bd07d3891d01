"""Preference pairs → the account of them: what was kept and dropped, how the sides differ, and what a blind ruler sees.

A ruler that never reads an answer (the longest, the shortest, the first sample) should pick the chosen side half of
the time. Where it does far better, a policy can win by being long, and a PRM can look good by counting characters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rewards.statistics import wilson_interval
from rewards.steps import split_on_blank_lines
from rewards.types import PreferencePair

EXPLAINS = 0.55  # a ruler explains the pairs if the low end of its interval is above this


@dataclass(frozen=True)
class PairingReport:
    """What went in and what came out: problems_in = problems_with_pairs + Σ dropped.

    Attributes:
        sources: source of the pairs → number.
        dropped: reason → problems that gave no pair.
        rejected_rollouts: reason → rollouts that could take no side, over all problems.
        mean_characters, mean_steps: side ("chosen", "rejected") → mean length; empty without pairs.
        blind_rulers: share of pairs where picking the longest / shortest / first picks the chosen, ties half.
        blind_intervals: its 95 % interval, with the problems as independent draws.
        rejected_counted: share of the characters of the rejected responses that count in L_p and L_q; 1 without spans.
        lowest_steps: pairs whose rejected response has no step under the threshold, so that its lowest one counts.
        mean_dependence: side → mean visual dependence (`rewards/scoring/visual_dependence.py`); empty unless every
            pair has it.
        warnings: what a user should see before training; empty if there is nothing.
    """

    problems_in: int
    problems_with_pairs: int
    pairs: int
    sources: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    rejected_rollouts: dict[str, int] = field(default_factory=dict)
    mean_characters: dict[str, float] = field(default_factory=dict)
    mean_steps: dict[str, float] = field(default_factory=dict)
    blind_rulers: dict[str, float] = field(default_factory=dict)
    blind_intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    rejected_counted: float = 1.0
    lowest_steps: int = 0
    mean_dependence: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


class PairAccount:
    """Adds up a report, one problem at a time, so that the pairs need not be kept.

    Example:
        >>> from rewards.types import Completion, Problem
        >>> account = PairAccount()
        >>> account.add([PreferencePair(Problem("p", "?"), Completion("a long one"), Completion("short"), "by hand")])
        >>> account.add([], why_none="all_right")
        >>> report = account.report()
        >>> report.problems_in, report.pairs, report.dropped, report.blind_rulers
        (2, 1, {'all_right': 1}, {'longest': 1.0, 'shortest': 0.0})
    """

    def __init__(self) -> None:
        self.problems = self.pairs = self.sampled = self.counted = self.lowest_steps = 0
        self.sources, self.dropped, self.rejected = Counter[str](), Counter[str](), Counter[str]()
        self.characters, self.steps = Counter[str](), Counter[str]()
        self.dependence, self.known_dependence = Counter[str](), Counter[str]()
        self.longest = self.first = 0.0  # pairs whose chosen side the ruler picks, ties half

    def add(
        self, pairs: Sequence[PreferencePair], *, rejected: Mapping[str, int] | None = None, why_none: str = ""
    ) -> None:
        """One problem.

        Args:
            pairs: that it gave.
            rejected: reason → its rollouts that could take no side.
            why_none: the reason, if it gave no pair.
        """
        assert bool(pairs) != bool(why_none), (len(pairs), why_none)
        self.problems += 1
        self.rejected.update(rejected or {})
        if not pairs:
            self.dropped[why_none] += 1
        for pair in pairs:
            self._add_pair(pair)

    def _add_pair(self, pair: PreferencePair) -> None:
        self.pairs += 1
        self.sources[pair.source] += 1
        for side, completion in (("chosen", pair.chosen), ("rejected", pair.rejected)):
            self.characters[side] += len(completion.text)
            self.steps[side] += len(split_on_blank_lines(completion.text))
            if (dependence := pair.meta.get(f"{side}_dependence")) is not None:
                self.dependence[side] += dependence
                self.known_dependence[side] += 1
        start, end = pair.rejected_span or (0, len(pair.rejected.text))
        self.counted += end - start
        self.lowest_steps += bool(pair.meta.get("bad_step_is_lowest"))
        self.longest += _share(len(pair.chosen.text), len(pair.rejected.text))
        if {"chosen_index", "rejected_index"} <= pair.meta.keys():
            self.sampled += 1
            self.first += _share(pair.meta["rejected_index"], pair.meta["chosen_index"])

    def blind_rulers(self) -> dict[str, float]:
        """Share of pairs whose chosen side each ruler picks; "first" only where all sides of all pairs were sampled."""
        if not self.pairs:
            return {}
        longer = self.longest / self.pairs
        rulers = {"longest": longer, "shortest": 1.0 - longer}
        return rulers | ({"first": self.first / self.pairs} if self.sampled == self.pairs else {})

    def _mean_dependence(self) -> dict[str, float]:
        """A side's mean, only where both sides of all pairs were scored without the image."""
        known = self.known_dependence["chosen"] == self.known_dependence["rejected"] == self.pairs > 0
        return {side: total / self.pairs for side, total in self.dependence.items()} if known else {}

    def report(self) -> PairingReport:
        """The report of everything added so far."""
        rulers = self.blind_rulers()
        with_pairs = self.problems - self.dropped.total()
        intervals = {name: wilson_interval(share, with_pairs) for name, share in rulers.items()}
        return PairingReport(
            problems_in=self.problems,
            problems_with_pairs=with_pairs,
            pairs=self.pairs,
            sources=dict(sorted(self.sources.items())),
            dropped=dict(sorted(self.dropped.items())),
            rejected_rollouts=dict(sorted(self.rejected.items())),
            mean_characters={side: total / self.pairs for side, total in self.characters.items()},
            mean_steps={side: total / self.pairs for side, total in self.steps.items()},
            blind_rulers=rulers,
            blind_intervals=intervals,
            rejected_counted=self.counted / self.characters["rejected"] if self.pairs else 1.0,
            lowest_steps=self.lowest_steps,
            mean_dependence=self._mean_dependence(),
            warnings=tuple(
                _warning(name, rulers[name], intervals[name]) for name in rulers if intervals[name][0] > EXPLAINS
            ),
        )


def _warning(ruler: str, share: float, interval: tuple[float, float]) -> str:
    low, high = interval
    return (
        f"picking the {ruler} response finds the chosen one in {share:.0%} of the pairs (95 % interval {low:.0%} to "
        f"{high:.0%}); training may teach that instead of correctness: set max_length_ratio or choose another rule"
    )


def _share(a: int, b: int) -> float:
    return 0.5 if a == b else float(a > b)
