"""A hard limit on continuations, kept by the choice of problems before anything is drawn.

A problem is taken only if the most that its responses can cost still fits, so a run never stops in the middle of a
response, and a resumed one ends with the same labels. A budget that stops early (`sequential`, `bisect`) draws less
than its most, and what it saves is not spent.
"""

from __future__ import annotations

from collections.abc import Sequence

from mpo.multimodal.errors import DataError
from rewards.kept.keys import seed_of
from rewards.prm.labelling.budgets import budget_named
from rewards.prm.labelling.cost import most
from rewards.prm.labelling.monte_carlo import responses_of
from rewards.types import RolloutGroup, Splitter


def within_limit(
    groups: Sequence[RolloutGroup],
    *,
    limit: int,
    splitter: Splitter,
    num_continuations: int,
    seed: int,
    budget: str = "full",
) -> list[RolloutGroup]:
    """Problems in a random order, each if what it can cost at most fits into what is left of the limit.

    Args:
        groups: verified responses that would be labelled.
        limit: continuations, at least 1.
        splitter, num_continuations, budget: see `label_steps`.
        seed: of the order, with the problem's id, so that adding problems moves no other.

    Returns:
        The problems that are taken, in the order of `groups`.

    Raises:
        ConfigError: no such budget.
        DataError: not one problem fits.

    Example:
        >>> from rewards.steps import split_on_blank_lines
        >>> from rewards.types import Completion, Problem, Rollout, Verdict
        >>> wrong = Rollout(Completion("See 3\\n\\nSee 4\\n\\nFinal answer: 8"), Verdict.WRONG)
        >>> groups = [RolloutGroup(Problem(name, "3 + 4?"), (wrong,)) for name in "abc"]
        >>> some = within_limit(groups, limit=20, splitter=split_on_blank_lines, num_continuations=4, seed=0)
        >>> len(some)  # two steps of each are continued, 8 continuations per problem
        2
    """
    budgeted, costs = budget_named(budget, num_continuations), {}
    for group in groups:
        if endings := [response.ending for response in responses_of([group], splitter)]:
            costs[group.problem.id] = most(budgeted, endings, num_continuations)
    taken, left = set(), limit
    for name in sorted(costs, key=lambda name: seed_of("limit", seed, name)):
        if costs[name] <= left:
            taken.add(name)
            left -= costs[name]
    if costs and not taken:
        raise DataError(
            f"max_continuations={limit}: expected room for one problem at least, and the cheapest of {len(costs)} can "
            f"take {min(costs.values())}; raise it, or lower num_continuations or responses"
        )
    return [group for group in groups if group.problem.id in taken]
