"""Problems with only wrong samples: the sound beginnings of those samples, continued again.

Plain rejection sampling learns nothing from such a problem. Its wrong responses mostly begin well, and a step-level PRM
knows how far: the steps before the first bad one. From there the policy is asked again, a stated number of times, and
what comes out right stands against the first bad step (`step_prefix`), as in Step-DPO (arXiv 2406.18629), with the PRM
in place of a judge. The chosen side is still verified right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from rewards.kept.calls import Each, Run, each_time
from rewards.pairing.limits import Limits
from rewards.pairing.spans import RejectedSpan
from rewards.pairing.step_pairs import step_prefix
from rewards.sampling.generator import Task
from rewards.types import Completion, FinishReason, PreferencePair, Problem, Rollout, RolloutGroup, Verdict

Made = tuple[list[PreferencePair], Counter[str]]


@dataclass(frozen=True)
class Beginning:
    """The steps of a wrong response before its first bad one, with the blank line behind them."""

    problem: Problem
    prefix: str


@dataclass(frozen=True)
class Continued:
    """What was drawn.

    Attributes:
        groups: one for each problem that was continued; a rollout is prefix ⊕ continuation, with its verdict.
        tokens: generated, without the prefixes.
    """

    groups: list[RolloutGroup]
    tokens: int


def is_all_wrong(group: RolloutGroup) -> bool:
    """Whether a problem has wrong responses and no right one; one that nobody could check is not."""
    verdicts = {rollout.verdict for rollout in group.rollouts}
    return Verdict.WRONG in verdicts and Verdict.CORRECT not in verdicts


def sound_beginnings(group: RolloutGroup, span: RejectedSpan, *, most: int) -> tuple[list[Beginning], Counter[str]]:
    """The distinct beginnings of a problem's wrong responses, the longest first; and reason → responses with none.

    Args:
        group: verified, its steps scored, counted or labelled as `span.source` says.
        span: finds the first bad step.
        most: beginnings of one problem.
    """
    found: dict[str, None] = {}
    reasons: Counter[str] = Counter()
    for rollout in group.rollouts:
        if rollout.verdict is not Verdict.WRONG or rollout.is_disputed:
            continue
        bad = span.bad_step(rollout)
        if isinstance(bad, str):
            reasons[bad] += 1
        elif bad.step.index == 0:
            reasons["bad_from_the_start"] += 1
        else:
            found[rollout.completion.text[: bad.step.start]] = None
    longest = sorted(found, key=lambda prefix: -len(prefix))[:most]
    reasons["over_the_number_of_prefixes"] += len(found) - len(longest)
    return [Beginning(group.problem, prefix) for prefix in longest], +reasons


def continue_beginnings(
    beginnings: Sequence[Beginning],
    *,
    run: Run,
    num_continuations: int,
    seed: int,
    rows_a_call: int = 1024,
    each: Each = each_time,
    on_drawn: Callable[[int], object] = lambda number: None,
) -> Continued:
    """Draw and check K continuations of every beginning.

    Args:
        beginnings: those of a problem stand side by side.
        run: makes the calls: a `rewards.prm.labelling.monte_carlo.Continuer(…, with_texts=True)`.
        num_continuations: K, at least 1.
        seed: changes the draw.
        rows_a_call: continuations per call, at most; the K of one beginning are never divided.
        each: keeps what each call gave, so that a killed run resumes (`CallStore.each`).
        on_drawn: told the number of continuations of each beginning that is done.
    """
    size = max(1, rows_a_call // num_continuations)
    parts = [beginnings[start : start + size] for start in range(0, len(beginnings), size)]
    tasks = [Task([b.problem for b in p], [b.prefix for b in p], num_continuations, seed) for p in parts]
    about = [["continue", seed, num_continuations, [[b.problem.id, b.prefix] for b in part]] for part in parts]
    drawn: dict[str, tuple[Problem, list[Rollout]]] = {}
    tokens = 0
    for part, result in zip(parts, each([*zip(about, tasks, strict=True)], run), strict=True):
        tokens += result["tokens"]
        asked = [beginning for beginning in part for _ in range(num_continuations)]
        for beginning, made, verdict in zip(asked, result["drawn"], result["verdicts"], strict=True):
            if made is None:  # refused, such as a prompt too long
                continue
            text, reason, number = made
            completion = Completion(beginning.prefix + text, FinishReason(reason), number)
            rollouts = drawn.setdefault(beginning.problem.id, (beginning.problem, []))[1]
            rollouts.append(Rollout(completion, Verdict(verdict)))
        on_drawn(len(asked))
    return Continued([RolloutGroup(problem, tuple(rollouts)) for problem, rollouts in drawn.values()], tokens)


def with_step_pairs(
    rule: Callable[[RolloutGroup, Limits], Made], continued: Iterable[RolloutGroup]
) -> Callable[[RolloutGroup, Limits], Made]:
    """The rule, but `step_prefix` for problems with only wrong samples that were continued.

    Right continuations follow the samples, so an index that is not below the number of samples names one of them.
    """
    right: Mapping[str, tuple[Rollout, ...]] = {
        group.problem.id: tuple(rollout for rollout in group.rollouts if rollout.verdict is Verdict.CORRECT)
        for group in continued
    }

    def pairs_of(group: RolloutGroup, limits: Limits) -> Made:
        more = right.get(group.problem.id, ())
        if not more or not is_all_wrong(group):
            return rule(group, limits)
        return step_prefix(replace(group, rollouts=(*group.rollouts, *more)), limits)

    return pairs_of
