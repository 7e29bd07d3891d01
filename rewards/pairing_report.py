"""Preference pairs → the account of them: what was kept and dropped, how the sides differ, and what a blind ruler sees.

A ruler that never reads an answer (the longest, the shortest, the first sample) should pick the chosen side half of
the time. Where it does far better, a policy can win by being long, and a PRM can look good by counting characters.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from rewards.splitting import split_on_blank_lines
from rewards.types import PreferencePair

EXPLAINS = 0.55  # a ruler explains the pairs if the low end of its interval is above this
_Z = 1.959964  # 95 % of a normal distribution


@dataclass(frozen=True)
class PairingReport:
    """What went in and what came out: problems_in = problems_with_pairs + Σ dropped.

    Attributes:
        sources: source of the pairs → number.
        dropped: reason → problems that gave no pair.
        rejected_rollouts: reason → rollouts that could stand on no side, over all problems.
        mean_characters, mean_steps: side ("chosen", "rejected") → mean length; empty without pairs.
        blind_rulers: share of pairs where picking the longest / shortest / first picks the chosen, ties half.
        blind_intervals: its 95 % interval, with the problems as independent draws.
        mean_dependence: side → mean visual dependence (`rewards/visual_dependence.py`); empty unless every pair has it.
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
    mean_dependence: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def report_on(
    pairs: Sequence[PreferencePair],
    *,
    problems: int,
    dropped: Mapping[str, int],
    rejected: Mapping[str, int],
) -> PairingReport:
    """The report of a list of pairs.

    Args:
        pairs: all pairs of all problems.
        problems: how many problems went in.
        dropped: reason → problems without a pair.
        rejected: reason → rollouts on no side.
    """
    rulers = blind_rulers(pairs)
    with_pairs = problems - sum(dropped.values())
    intervals = {name: wilson_interval(share, with_pairs) for name, share in rulers.items()}
    texts = {"chosen": [p.chosen.text for p in pairs], "rejected": [p.rejected.text for p in pairs]} if pairs else {}
    return PairingReport(
        problems_in=problems,
        problems_with_pairs=with_pairs,
        pairs=len(pairs),
        sources=dict(sorted(Counter(pair.source for pair in pairs).items())),
        dropped=dict(sorted(dropped.items())),
        rejected_rollouts=dict(sorted(rejected.items())),
        mean_characters={side: fmean(map(len, found)) for side, found in texts.items()},
        mean_steps={side: fmean(len(split_on_blank_lines(t)) for t in found) for side, found in texts.items()},
        blind_rulers=rulers,
        blind_intervals=intervals,
        mean_dependence=_mean_dependence(pairs),
        warnings=tuple(
            _warning(name, rulers[name], intervals[name]) for name in rulers if intervals[name][0] > EXPLAINS
        ),
    )


def blind_rulers(pairs: Sequence[PreferencePair]) -> dict[str, float]:
    """Share of pairs whose chosen side each ruler picks, ties half; "first" only where both sides were sampled.

    Example:
        >>> from rewards.types import Completion, Problem
        >>> pair = PreferencePair(Problem("p", "?"), Completion("a long one"), Completion("short"), "by hand")
        >>> blind_rulers([pair])
        {'longest': 1.0, 'shortest': 0.0}
    """
    if not pairs:
        return {}
    longer = fmean(_share(len(pair.chosen.text), len(pair.rejected.text)) for pair in pairs)
    rulers = {"longest": longer, "shortest": 1.0 - longer}
    sampled = [pair.meta for pair in pairs if {"chosen_index", "rejected_index"} <= pair.meta.keys()]
    if len(sampled) == len(pairs):
        rulers["first"] = fmean(_share(meta["rejected_index"], meta["chosen_index"]) for meta in sampled)
    return rulers


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a share of n independent draws (Wilson 1927): honest for few draws and for shares of 0 and 1.

    Example:
        >>> [round(end, 3) for end in wilson_interval(1.0, 3)], wilson_interval(0.5, 0)
        ([0.439, 1.0], (0.0, 1.0))
    """
    if n == 0:
        return 0.0, 1.0
    middle = share + _Z**2 / (2 * n)
    spread = _Z * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    low, high = ((middle + sign * spread) / (1 + _Z**2 / n) for sign in (-1, 1))
    return max(0.0, low), min(1.0, high)


def _mean_dependence(pairs: Sequence[PreferencePair]) -> dict[str, float]:
    sides = {side: [pair.meta.get(f"{side}_dependence") for pair in pairs] for side in ("chosen", "rejected")}
    known = {side: [value for value in values if value is not None] for side, values in sides.items()}
    return {side: fmean(values) for side, values in known.items()} if pairs and known == sides else {}


def _warning(ruler: str, share: float, interval: tuple[float, float]) -> str:
    low, high = interval
    return (
        f"picking the {ruler} response finds the chosen one in {share:.0%} of the pairs (95 % interval {low:.0%} to "
        f"{high:.0%}); training may teach that instead of being right: set max_length_ratio or choose another rule"
    )


def _share(a: int, b: int) -> float:
    return 0.5 if a == b else float(a > b)
