"""`mpo verify`: one verdict per rollout; trouble of the checker is its own verdict, never `wrong`.

`auto`, the default, picks a verifier for each problem by its reference and choices; the manifest counts which. A
problem whose `meta["verifier"]` names a row of `rewards.verifying.verification.VERIFIERS` is checked with that one,
so that one file may mix charts, documents and multiple choice; `--verifier` is for all the others. A data row can
only pick from that table: a callable of yours is imported because the flag names it, never because a row does.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from itertools import islice
from pathlib import Path

from mpo.multimodal.errors import ConfigError
from recipes.config import VerifyConfig
from recipes.stage.folder import open_stage
from recipes.stage.groups import iter_groups, problems_of, read_problems, write_groups
from recipes.stage.kept_calls import open_calls
from rewards.kept.calls import CallStore
from rewards.types import Problem, RolloutGroup, Verdict, Verifier, verdict_of
from rewards.verifying.auto import picked
from rewards.verifying.math_verifier import MathVerifier
from rewards.verifying.verification import VERIFIERS, faults_of, verify_many
from rewards.verifying.workers import WorkerVerifier

_log = logging.getLogger(__name__)

UNREADABLE = "reference cannot be read"
EXAMPLES = 3  # of faults that are shown
GROUPS_AT_A_TIME = 256  # in memory, handed to the workers in one piece, and kept in one piece


def verify(config: VerifyConfig) -> Path:
    """Check every final answer; math-verify and your own callable run in worker processes that can be killed.

    A problem that cannot be checked (no reference answer for a verifier of ours or one that it cannot read, an unknown
    verifier's name) keeps its rollouts as they are, without verdict, and is counted under `unverified`; references that
    cannot be read are named before the first response is checked. Verdicts are in `calls.sqlite` as soon as
    those of some hundred problems are there: after a kill the same command goes on.
    """
    default = _named(config)
    stage = open_stage("verify", config, inputs=[config.groups])
    if stage.complete:
        return stage.out
    verdicts, unverified, picks = Counter[str](), Counter[str](), Counter[str]()
    with open_calls(stage) as calls, ExitStack() as stack:
        ready = cache(lambda name: _ready(name, default, config, stack))
        problems = read_problems(problems_of(config.groups), on_bad=lambda *_: None)  # `mpo sample` has reported them
        plan = _plan(problems, config.verifier, ready, calls)
        _say_faults(plan)
        groups = _verified(iter_groups(config.groups), plan, ready, calls, unverified, picks)
        write_groups(stage.out, _counted(groups, verdicts))
    total = verdicts.total()
    counts = {"in": total, "out": total, "rejected": {}, "verdicts": dict(sorted(verdicts.items()))}
    checked = {"unverified": dict(unverified), "verifiers": dict(sorted(picks.items()))}
    return stage.finish({**counts, **checked, "problems": str(problems_of(config.groups))})


@dataclass(frozen=True)
class _Planned:
    """The verifier of a problem, or why it has none: a short reason to count, and for a reference a sentence."""

    name: str
    reason: str = ""
    fault: str = ""


def _plan(
    problems: dict[str, Problem], default: str, ready: Callable[[str], Verifier], calls: CallStore
) -> dict[str, _Planned]:
    """For each problem its verifier; what its reference asks for, where that is left to `auto`."""
    plan: dict[str, _Planned] = {}
    by_name: dict[str, list[Problem]] = {}
    for problem in problems.values():
        name = str(problem.meta.get("verifier", default))
        reason = _unverifiable(problem, name, own=":" in default)
        if not reason and name == "auto":
            name = picked(problem)
        plan[problem.id] = _Planned(name, reason or "")
        if not reason and ":" not in name:
            by_name.setdefault(name, []).append(problem)
    for name, asked in sorted(by_name.items()):
        for start in range(0, len(asked), GROUPS_AT_A_TIME):
            some = asked[start : start + GROUPS_AT_A_TIME]
            about = ["faults", name, [[p.id, p.question, p.answer, dict(p.meta)] for p in some]]
            for problem, fault in zip(some, calls.once(about, partial(_faults, ready, name, some)), strict=True):
                if fault:
                    plan[problem.id] = _Planned(name, UNREADABLE, fault)
    return plan


def _faults(ready: Callable[[str], Verifier], name: str, problems: list[Problem]) -> list[str | None]:
    return faults_of(ready(name), problems)


def _say_faults(plan: dict[str, _Planned]) -> None:
    """One line about all references that cannot be read."""
    faults = [planned.fault for planned in plan.values() if planned.fault]
    if faults:
        shown = "; ".join(faults[:EXAMPLES])
        _log.warning(
            "%d of %d problems have a reference that their verifier cannot read; their responses get no verdict: %s",
            len(faults), len(plan), shown + ("; …" if len(faults) > EXAMPLES else ""),
        )  # fmt: skip


def _verified(
    groups: Iterator[RolloutGroup],
    plan: dict[str, _Planned],
    ready: Callable[[str], Verifier],
    calls: CallStore,
    unverified: Counter[str],
    picks: Counter[str],
) -> Iterator[RolloutGroup]:
    """The groups with their verdicts, some at a time; those that cannot be checked are counted by reason."""
    while some := list(islice(groups, GROUPS_AT_A_TIME)):
        names: dict[str, list[int]] = {}
        for place, group in enumerate(some):
            planned = plan[group.problem.id]
            if planned.reason:
                unverified[planned.reason] += 1
            else:
                names.setdefault(planned.name, []).append(place)
        for name, places in sorted(names.items()):
            picks[name] += len(places)
            answers = [(some[place].problem, r.completion.text) for place in places for r in some[place].rollouts]
            about = ["verify", name, [[p.id, p.question, p.answer, dict(p.meta), text] for p, text in answers]]
            verdicts = map(Verdict, calls.once(about, partial(_checked, ready, name, answers)))
            for place in places:
                rollouts = tuple(rollout.with_(verdict=next(verdicts)) for rollout in some[place].rollouts)
                some[place] = RolloutGroup(some[place].problem, rollouts)
        yield from some


def _checked(ready: Callable[[str], Verifier], name: str, answers: list[tuple[Problem, str]]) -> list[Verdict]:
    """The verdicts of one call; a verifier starts its workers only when there is something to check."""
    return list(verify_many(ready(name), answers))


def _counted(groups: Iterator[RolloutGroup], verdicts: Counter[str]) -> Iterator[RolloutGroup]:
    """The same groups; the names of their verdicts are counted as they pass."""
    for group in groups:
        verdicts.update(verdict_of(rollout) for rollout in group.rollouts)
        yield group


def _named(config: VerifyConfig) -> Verifier:
    """The verifier of the flag.

    Raises:
        ConfigError: neither a row of the table nor an importable callable; limits that cannot work.
    """
    name = config.verifier
    if ":" not in name:
        if name not in VERIFIERS:
            raise ConfigError(
                f"unknown verifier {name!r}: expected one of {', '.join(VERIFIERS)}, or package.module:function"
            )
        return VERIFIERS[name]
    module, _, attribute = name.partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"verifier {name!r} cannot be imported: {error}; expected package.module:function") from error
    if not callable(found):
        raise ConfigError(f"verifier {name!r} is a {type(found).__name__}; expected a callable (problem, text)")
    return found


def _ready(name: str, default: Verifier, config: VerifyConfig, stack: ExitStack) -> Verifier:
    """A verifier with the flags' limits; `stack` stops its processes."""
    if name == "math":
        return stack.enter_context(MathVerifier(workers=config.workers, timeout_s=config.timeout_s))
    if ":" in name:
        return stack.enter_context(WorkerVerifier(default, workers=config.workers, timeout_s=config.timeout_s))
    return VERIFIERS[name]


def _unverifiable(problem: Problem, name: str, *, own: bool) -> str | None:
    """Why a problem cannot be checked, or None. A callable of the user's may do without a reference answer."""
    from_row = "verifier" in problem.meta
    if from_row and name not in VERIFIERS:
        return "meta.verifier is not in the table"
    if not (problem.answer or "").strip() and (from_row or not own):
        return "no reference answer"
    return None
