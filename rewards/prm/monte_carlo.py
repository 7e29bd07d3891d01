"""Monte-Carlo step labels: the expected accuracy of a solution after each of its steps.

mc_i = (continuations from the end of step i that reach the right answer) / K  (VisualPRM, arXiv 2503.10291,
Eq. 1). Counts are kept, not bits. A continuation whose check timed out or failed counts as neither right nor
wrong: it is taken out of K.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mpo.multimodal.errors import DataError
from rewards.types import Generator, MonteCarloCount, Problem, Rollout, RolloutGroup, Splitter, Verdict

VerifyMany = Callable[[Sequence[tuple[Problem, str]]], list[Verdict]]


@dataclass(frozen=True)
class _Prefix:
    """The end of one step: which rollout of which group, and the text so far."""

    group: int
    rollout: int
    step: int
    text: str


def label_steps(
    groups: Sequence[RolloutGroup],
    *,
    generator: Generator,
    verify_many: VerifyMany,
    splitter: Splitter,
    num_continuations: int,
    seed: int,
) -> tuple[list[RolloutGroup], Counter[str]]:
    """Fill in `mc` of every rollout.

    Args:
        groups: verified rollouts that can be split: no empty text, no control tokens.
        generator: draws the continuations.
        verify_many: checks whole answers (prefix ⊕ continuation).
        splitter: where steps end.
        num_continuations: K, at least 1; VisualPRM takes 16. The end of the last step is not continued: the
            response ends there, so its own verdict is the count, K of K or 0 of K.
        seed: changes the draw.

    Returns:
        The groups with counts, without the rollouts for which some step has no count left; and reason → number of
        rollouts taken out.

    Raises:
        DataError: generator or verifier gave another number of results than it was asked for.
    """
    prefixes = _prefixes(groups, splitter)
    order = sorted(range(len(prefixes)), key=lambda i: len(prefixes[i].text))  # equal lengths pad less
    problems = [groups[prefixes[i].group].problem for i in order]
    drawn = generator.generate(problems, num_continuations, prefixes=[prefixes[i].text for i in order], seed=seed)
    answers = [
        (problem, prefixes[i].text + completion.text)
        for problem, i, completions in zip(problems, order, drawn, strict=True)
        for completion in completions
    ]
    verdicts = verify_many(answers)
    expected = len(prefixes) * num_continuations
    if not len(answers) == len(verdicts) == expected:
        raise DataError(
            f"expected {expected} continuations and as many verdicts, got {len(answers)} and {len(verdicts)}; "
            "counts would move to other steps"
        )
    counts: dict[tuple[int, int, int], MonteCarloCount | None] = {}
    for place, i in enumerate(order):
        found = verdicts[place * num_continuations : (place + 1) * num_continuations]
        counts[prefixes[i].group, prefixes[i].rollout, prefixes[i].step] = count(found)
    return _with_counts(groups, counts, splitter, num_continuations)


def count(verdicts: Sequence[Verdict]) -> MonteCarloCount | None:
    """Right among the verdicts that say something; `None` when none does.

    Example:
        >>> count([Verdict.CORRECT, Verdict.WRONG, Verdict.TIMEOUT, Verdict.UNPARSABLE])
        MonteCarloCount(correct=1, total=3)
    """
    decided = [v for v in verdicts if v not in (Verdict.TIMEOUT, Verdict.ERROR)]
    return MonteCarloCount(sum(v is Verdict.CORRECT for v in decided), len(decided)) if decided else None


def _prefixes(groups: Sequence[RolloutGroup], splitter: Splitter) -> list[_Prefix]:
    """The end of every step but the last, of every rollout."""
    found = []
    for g, group in enumerate(groups):
        for r, rollout in enumerate(group.rollouts):
            text = rollout.completion.text
            found += [_Prefix(g, r, step.index, text[: step.end]) for step in splitter(text)[:-1]]
    return found


def _with_counts(
    groups: Sequence[RolloutGroup],
    counts: dict[tuple[int, int, int], MonteCarloCount | None],
    splitter: Splitter,
    num_continuations: int,
) -> tuple[list[RolloutGroup], Counter[str]]:
    labelled, rejected = [], Counter[str]()
    for g, group in enumerate(groups):
        kept: list[Rollout] = []
        for r, rollout in enumerate(group.rollouts):
            steps = splitter(rollout.completion.text)
            own = count([rollout.verdict] * num_continuations if rollout.verdict else [])
            mc = [*(counts[g, r, step.index] for step in steps[:-1]), own]
            if None in mc:
                rejected["a step without a decided continuation"] += 1
            else:
                kept.append(rollout.with_(mc=tuple(mc)))
        labelled.append(RolloutGroup(group.problem, tuple(kept)))
    return labelled, rejected
