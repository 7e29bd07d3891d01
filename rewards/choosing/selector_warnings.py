"""When not to believe a best-of-N number: warnings read off results, each an estimate with its interval.

- over-optimisation: best@k is shown to fall while k grows (arXiv 2210.10760 shows why it can);
- no gain: the PRM's choice is not above the majority;
- length: among equally right responses the PRM prefers long (or short) ones;
- blind: right responses keep their rewards when they are scored with another problem's image.

All functions are pure. A warning reports what was measured. Its absence means only that none of these four problems
was found.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean

from rewards.statistics import CHANGE, Difference, Estimate, mean_with_interval, paired_difference
from rewards.types import RolloutGroup, correctness_of

LENGTH_SHARE = 0.7  # of equally right pairs: a PRM that prefers the longer (shorter) one more often chooses by length
LEAST_DROP = 0.02  # of the mean reward of right responses under another image

Curve = Mapping[int, Sequence[float]]  # k → expected correctness, one value per problem


@dataclass(frozen=True)
class TrustWarning:
    """One reason not to trust the PRM's choices.

    Attributes:
        name: over_optimisation, not_above_majority, length or image_blind.
        message: one sentence with the numbers.
        evidence: what was measured, over problems.
    """

    name: str
    message: str
    evidence: Estimate


def selector_regret(oracle: Sequence[float], chosen: Sequence[float]) -> Difference:
    """Oracle minus choice, over problems: what a perfect selector would still gain at the same k.

    Example:
        >>> selector_regret([1.0, 1.0], [0.5, 0.5]).mean
        0.5
    """
    return paired_difference(oracle, chosen)


def over_optimisation(best: Curve) -> TrustWarning | None:
    """Warn if best@k falls with more samples: some k′ > k where best@k′ is shown to be below best@k.

    Args:
        best: best@k by the PRM; the same problems at every k.

    Returns:
        The deepest such fall. With several k the verdicts are not corrected for their number.
    """
    falls = []
    for k, larger in combinations(sorted(best), 2):
        difference = paired_difference(best[larger], best[k])
        if difference.verdict == "reversed":
            falls.append((difference.mean, k, larger, difference))
    if not falls:
        return None
    _, k, larger, difference = min(falls, key=lambda fall: fall[0])
    message = (
        f"over-optimisation: best@{larger} is below best@{k} by {_shown(difference, sign=-1)}: more samples find more "
        f"of the PRM's mistakes; answer with k={k}, or train the PRM on the samples that it overrates"
    )
    return TrustWarning("over_optimisation", message, difference)


def not_above_majority(prm: Curve, majority: Curve) -> TrustWarning | None:
    """Warn if the PRM's choice is not shown to be above the majority at the largest k that is more than 2.

    A majority of one or two samples is the first of them, so smaller k show nothing.
    """
    ks = [k for k in prm if k > 2 and k in majority]
    if not ks:
        return None
    k = max(ks)
    difference = paired_difference(prm[k], majority[k])
    if difference.verdict == "holds":
        return None
    message = (
        f"no gain: PRM best@{k} minus majority@{k} is {_shown(difference)}, not shown to be above 0"
        if difference.verdict == "not shown"
        else f"no gain: PRM best@{k} is below majority@{k} by {_shown(difference, sign=-1)}; answer with the vote"
    )
    return TrustWarning("not_above_majority", message, difference)


def length_preference(groups: Iterable[RolloutGroup]) -> Estimate | None:
    """How often the longer of two equally right responses of a problem has the higher reward, see `longer_wins`.

    Returns:
        Over problems: 0.5 for no preference, 1 for "the longer, the better"; `None` without such pairs.
    """
    return length_preference_of(map(longer_wins, groups))


def length_preference_of(wins: Iterable[float | None]) -> Estimate | None:
    """The mean over the problems that have a share."""
    shares = [share for share in wins if share is not None]
    return mean_with_interval(shares) if shares else None


def longer_wins(group: RolloutGroup) -> float | None:
    """Share of the pairs of equally right responses in which the longer one has the higher reward; ties count half.

    Only pairs that share correctness count: long responses may well be right more often, and a PRM may know it.
    Rollouts without reward, or neither right nor wrong, are left out; `None` without such pairs.
    """
    rows = [
        (right, len(rollout.completion.text), rollout.reward)
        for right, rollout in zip(correctness_of(group), group.rollouts, strict=True)
        if rollout.reward is not None and rollout.verdict and rollout.verdict.is_decided
    ]
    wins = [
        0.5 if a[2] == b[2] else float((a[2] > b[2]) == (a[1] > b[1]))
        for a, b in combinations(rows, 2)
        if a[0] == b[0] and a[1] != b[1]
    ]
    return fmean(wins) if wins else None


def length_bias(share: Estimate | None) -> TrustWarning | None:
    """Warn if this `length_preference` lies beyond `LENGTH_SHARE`, interval included, or below 1 − `LENGTH_SHARE`."""
    if share is None or (share.high >= 1 - LENGTH_SHARE and share.low <= LENGTH_SHARE):
        return None
    kind = "longer" if share.mean > 0.5 else "shorter"
    message = (
        f"length: of two equally correct responses the PRM prefers the {kind} one; the longer has the higher reward in "
        f"{_shown(share)} of the pairs (0.5 is fair); compare with `longest` and `shortest`, and match the lengths "
        "in its training data"
    )
    return TrustWarning("length", message, share)


def image_drop(groups: Iterable[RolloutGroup]) -> Estimate | None:
    """How far the mean reward of a problem's right responses falls when they are scored with another image.

    Args:
        groups: verified, and scored with the images of other problems too (`rewards.scoring.groups.score_unseen`).

    Returns:
        Over the problems with a right response that was scored so; `None` if there are none.
    """
    return image_drop_of(map(reward_drop, groups))


def image_drop_of(drops: Iterable[float | None]) -> Estimate | None:
    """The mean over the problems that have a drop."""
    found = [drop for drop in drops if drop is not None]
    return mean_with_interval(found, bounds=CHANGE) if found else None


def reward_drop(group: RolloutGroup) -> float | None:
    """The mean fall of one problem's right responses; `None` if none was scored with both images."""
    falls = [
        rollout.reward - rollout.swapped.reward
        for right, rollout in zip(correctness_of(group), group.rollouts, strict=True)
        if right and rollout.reward is not None and rollout.swapped is not None
    ]
    return fmean(falls) if falls else None


def image_blind(drop: Estimate | None) -> TrustWarning | None:
    """Warn if this `image_drop` is about 0: below `LEAST_DROP`, or an interval that holds 0."""
    if drop is None or (drop.low > 0 and drop.mean >= LEAST_DROP):
        return None
    message = (
        f"blind: with another problem's image the reward of correct responses falls by only {_shown(drop)}: the PRM "
        "hardly looks at the image; check that the image is sent, and train the PRM on responses that are wrong "
        "about the image"
        if drop.mean < LEAST_DROP
        else f"perhaps blind: with another problem's image the reward of correct responses falls by {_shown(drop)} on "
        f"{drop.n} problems, not shown to be above 0: score more problems before you believe that the PRM looks"
    )
    return TrustWarning("image_blind", message, drop)


def trust_warnings(
    prm: Curve, majority: Curve, preference: Estimate | None, drop: Estimate | None
) -> list[TrustWarning]:
    """All warnings that hold.

    Args:
        prm: k → best of k by the PRM, one value per problem.
        majority: the same of the vote.
        preference: `length_preference`.
        drop: `image_drop`: whether the PRM looks is known only of groups that were scored with other images.
    """
    found = [over_optimisation(prm), not_above_majority(prm, majority), length_bias(preference), image_blind(drop)]
    return [warning for warning in found if warning is not None]


def _shown(estimate: Estimate, *, sign: int = 1) -> str:
    low, high = sorted((sign * estimate.low, sign * estimate.high))
    assert math.isfinite(low)
    assert math.isfinite(high)
    return f"{sign * estimate.mean:.3f} [{low:.3f}, {high:.3f}]".replace("-", "−")
