"""Groups of responses → the same groups with step scores and rewards: the only place that composes the two."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, tee
from typing import Any

from tqdm.auto import tqdm

from mpo.multimodal.errors import DataError
from rewards.kept.calls import Each, Run, watched
from rewards.scoring.aggregation import aggregate
from rewards.scoring.other_images import blanked, partners, showing
from rewards.scoring.process_reward_model import ProcessRewardModel
from rewards.types import Aggregator, Problem, RolloutGroup, StepScores, Unseen

BLANK_AT_A_TIME = 64  # problems whose blank images are in memory together
CALLS_AT_A_TIME = 512  # whose responses are in memory together; several workers wait for the last of them


class StoredScorer(ProcessRewardModel):
    """A PRM whose calls are kept: scoring the same list continues where a run was killed, with the same bits.

    Args:
        run: makes calls: `json_scores` with a PRM, here or on several workers.
        each: of the store (`CallStore.each`).
        rows_a_call: responses per call; the number that the PRM itself takes at a time.
        kind: tells these calls from others of the store about the same responses.
    """

    def __init__(self, run: Run, each: Each, *, rows_a_call: int, kind: str = "score") -> None:
        self.run, self.each, self.rows_a_call, self.kind = run, each, rows_a_call, kind

    def for_image(self, kind: str) -> StoredScorer:
        """The same PRM and store for calls with other images, e.g. "blank"."""
        return StoredScorer(self.run, self.each, rows_a_call=self.rows_a_call, kind=kind)

    def outcomes(self, items: Sequence[tuple[Problem, str]], *, describe: str = "") -> list[StepScores | DataError]:
        """Step scores of each (problem, response), or why it has none; in order."""
        return list(self.in_turn(items, total=len(items), describe=describe))

    def in_turn(
        self, items: Iterable[tuple[Problem, str]], *, total: int | None = None, describe: str = ""
    ) -> Iterator[StepScores | DataError]:
        """`outcomes`, in the same calls, with those of `CALLS_AT_A_TIME` calls in memory."""
        left = iter(items)
        with tqdm(total=total, desc=describe, unit="response", disable=not describe) as bar:
            while some := list(islice(left, CALLS_AT_A_TIME * self.rows_a_call)):
                tasks = [some[start : start + self.rows_a_call] for start in range(0, len(some), self.rows_a_call)]
                calls = [
                    ([self.kind, [[problem.id, problem.question, text] for problem, text in task]], task)
                    for task in tasks
                ]
                run = watched(self.run, len(some), len, bar.update)
                yield from [_from_json(kept) for results in self.each(calls, run) for kept in results]


def json_scores(prm: ProcessRewardModel, items: Sequence[tuple[Problem, str]]) -> list[Any]:
    """A PRM's outcomes as a JSON value, which `StoredScorer` reads: the work of one call."""
    return [o.reason if isinstance(o, DataError) else _to_json(o) for o in prm.outcomes(items)]


def _to_json(scores: StepScores) -> list[Any]:
    """Values, bounds, part; and spreads where there are some, so that calls of other PRMs are kept as they were."""
    return [scores.values, scores.bounds, scores.part, *([] if scores.spreads is None else [scores.spreads])]


def _from_json(kept: Any) -> StepScores | DataError:
    if isinstance(kept, str):
        return DataError(f"this response has no step scores: {kept}", reason=kept)
    values, bounds, part, *spreads = kept
    pairs = None if bounds is None else tuple((low, high) for low, high in bounds)
    return StepScores(tuple(values), pairs, part, tuple(spreads[0]) if spreads else None)


def score_groups(
    groups: Sequence[RolloutGroup], prm: ProcessRewardModel, *, how: str | Aggregator = "mean", describe: str = ""
) -> tuple[list[RolloutGroup], Counter[str]]:
    """Score every rollout and aggregate its step scores to a reward.

    Args:
        groups: the rollouts.
        prm: scores responses.
        how: a name of `rewards.scoring.aggregation.AGGREGATIONS`, or a callable of its shape.
        describe: names a progress bar.

    Returns:
        The groups, same rollouts in the same order; those that cannot be scored get `reward=None`, whatever an
        earlier PRM gave them; and reason → number of those. What an earlier PRM said without the image is gone.
    """
    items = [(group.problem, rollout.completion.text) for group in groups for rollout in group.rollouts]
    reasons = Counter[str]()
    return list(_with_scores(groups, iter(prm.outcomes(items, describe=describe)), how, reasons)), reasons


def score_in_turn(
    groups: Iterable[RolloutGroup],
    prm: StoredScorer,
    *,
    how: str | Aggregator = "mean",
    reasons: Counter[str],
    total: int | None = None,
    describe: str = "",
) -> Iterator[RolloutGroup]:
    """`score_groups` of more groups than memory holds: one at a time, read as the calls need them.

    Args:
        groups, prm, how, describe: see `score_groups`.
        reasons: counts the responses that cannot be scored.
        total: of responses, for the progress bar.
    """
    asked, given = tee(groups)
    items = ((group.problem, rollout.completion.text) for group in asked for rollout in group.rollouts)
    return _with_scores(given, prm.in_turn(items, total=total, describe=describe), how, reasons)


def _with_scores(
    groups: Iterable[RolloutGroup],
    outcomes: Iterator[StepScores | DataError],
    how: str | Aggregator,
    reasons: Counter[str],
) -> Iterator[RolloutGroup]:
    for group in groups:
        rollouts = []
        for rollout in group.rollouts:
            outcome = next(outcomes)
            if isinstance(outcome, DataError):
                reasons[outcome.reason] += 1
            scores = None if isinstance(outcome, DataError) else outcome
            reward = aggregate(scores, how=how) if scores else None
            rollouts.append(rollout.with_(step_scores=scores, reward=reward, blank=None, swapped=None))
        yield RolloutGroup(group.problem, tuple(rollouts))


def score_unseen(
    groups: Sequence[RolloutGroup],
    prm: ProcessRewardModel,
    *,
    image: str,
    how: str | Aggregator = "mean",
    describe: str = "",
) -> tuple[list[RolloutGroup], Counter[str]]:
    """The scored groups with every scored rollout scored again under an image that is not its own.

    Args:
        groups: scored by the same PRM and aggregation (`score_groups`).
        prm: scores responses.
        image: "blank" or "swapped" (another problem's); the field of the rollouts that is filled.
        how: a name of `rewards.scoring.aggregation.AGGREGATIONS`, or a callable of its shape.
        describe: names a progress bar.

    Returns:
        The groups; and reason → number of scored rollouts that keep `None` there: "no image", "no other image", or
        why the PRM could not score them.
    """
    lacking: Counter[str] = Counter()
    problems = [group.problem for group in groups]
    done = score_unseen_in_turn(groups, problems, prm, image=image, how=how, lacking=lacking, describe=describe)
    return list(done), lacking


def score_unseen_in_turn(
    groups: Iterable[RolloutGroup],
    problems: Sequence[Problem],
    prm: ProcessRewardModel,
    *,
    image: str,
    how: str | Aggregator = "mean",
    lacking: Counter[str],
    describe: str = "",
) -> Iterator[RolloutGroup]:
    """`score_unseen` of more groups than memory holds.

    Args:
        groups, prm, image, how, describe: see `score_unseen`.
        problems: those of the groups, in their order.
        lacking: counts the scored rollouts that keep `None` there.
    """
    left, start = iter(groups), 0
    other = partners(problems) if image == "swapped" else [None] * len(problems)
    with tqdm(total=len(problems), desc=describe, unit="problem", disable=not describe) as bar:
        while part := list(islice(left, BLANK_AT_A_TIME)):
            asked = [
                blanked(group.problem) if image == "blank" else _shown(group.problem, problems, other[start + row])
                for row, group in enumerate(part)
            ]
            yield from _with_unseen(part, asked, prm, image, how, lacking)
            start += len(part)
            bar.update(len(part))


def _shown(problem: Problem, problems: Sequence[Problem], partner: int | None) -> Problem:
    """The problem under its partner's images; as it is where it has none."""
    return problem if partner is None else showing(problem, problems[partner])


def _with_unseen(
    groups: Sequence[RolloutGroup],
    asked: Sequence[Problem],
    prm: ProcessRewardModel,
    field: str,
    how: str | Aggregator,
    lacking: Counter[str],
) -> list[RolloutGroup]:
    """Some problems in one call of the PRM; what stays without is counted in `lacking`."""
    places: list[tuple[int, int]] = []
    for row, (group, problem) in enumerate(zip(groups, asked, strict=True)):
        own = [(row, index) for index, rollout in enumerate(group.rollouts) if rollout.step_scores is not None]
        if problem.images != group.problem.images:
            places += own
        elif own:
            lacking["no other image" if group.problem.images else "no image"] += len(own)
    items = [(asked[row], groups[row].rollouts[index].completion.text) for row, index in places]
    found: dict[tuple[int, int], Unseen] = {}
    for place, outcome in zip(places, prm.outcomes(items), strict=True):
        if isinstance(outcome, DataError):
            lacking[outcome.reason] += 1
        else:
            found[place] = Unseen(outcome, aggregate(outcome, how=how))
    return [
        RolloutGroup(
            group.problem,
            tuple(rollout.with_(**{field: found.get((row, i))}) for i, rollout in enumerate(group.rollouts)),
        )
        for row, group in enumerate(groups)
    ]
