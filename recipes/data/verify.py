"""`mpo verify`: one verdict per rollout; trouble of the checker is its own verdict, never `wrong`.

A problem whose `meta["verifier"]` names a row of `rewards.verifying.verification.VERIFIERS` is checked with that one,
so that one file may mix charts, documents and multiple choice; `--verifier` is for all the others. A data row can
only pick from that table: a callable of yours is imported because the flag names it, never because a row does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache, partial
from importlib import import_module
from itertools import islice
from pathlib import Path

from mpo.multimodal.errors import ConfigError
from recipes.config import VerifyConfig
from recipes.stage.folder import open_stage
from recipes.stage.groups import iter_groups, problems_of, write_groups
from recipes.stage.kept_calls import open_calls
from rewards.kept.calls import CallStore
from rewards.types import Problem, RolloutGroup, Verdict, Verifier, verdict_of
from rewards.verifying.math_verifier import MathVerifier
from rewards.verifying.verification import VERIFIERS, verify_many
from rewards.verifying.workers import WorkerVerifier

GROUPS_AT_A_TIME = 256  # in memory, handed to the workers in one piece, and kept in one piece


def verify(config: VerifyConfig) -> Path:
    """Check every final answer; math-verify and your own callable run in worker processes that can be killed.

    A problem that cannot be checked (no reference answer for a verifier of ours, an unknown verifier's name) keeps its
    rollouts as they are, without verdict, and is counted under `unverified`. Verdicts are in `calls.sqlite` as soon as
    those of some hundred problems are there: after a kill the same command goes on.
    """
    default = _named(config)
    stage = open_stage("verify", config, inputs=[config.groups])
    if stage.complete:
        return stage.out
    verdicts, unverified = Counter[str](), Counter[str]()
    with open_calls(stage) as calls, ExitStack() as stack:
        ready = cache(lambda name: _ready(name, default, config, stack))
        groups = iter_groups(config.groups)
        write_groups(stage.out, _counted(_verified(groups, config.verifier, ready, calls, unverified), verdicts))
    total = verdicts.total()
    counts = {"in": total, "out": total, "rejected": {}, "verdicts": dict(sorted(verdicts.items()))}
    return stage.finish({**counts, "unverified": dict(unverified), "problems": str(problems_of(config.groups))})


def _verified(
    groups: Iterator[RolloutGroup],
    default: str,
    ready: Callable[[str], Verifier],
    calls: CallStore,
    unverified: Counter[str],
) -> Iterator[RolloutGroup]:
    """The groups with their verdicts, some at a time; those that cannot be checked are counted by reason."""
    while some := list(islice(groups, GROUPS_AT_A_TIME)):
        names: dict[str, list[int]] = {}
        for place, group in enumerate(some):
            name = _verifier_of(group.problem, default)
            reason = _unverifiable(group.problem, name, own=":" in default)
            if reason:
                unverified[reason] += 1
            else:
                names.setdefault(name, []).append(place)
        for name, places in sorted(names.items()):
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


def _verifier_of(problem: Problem, default: str) -> str:
    return str(problem.meta.get("verifier", default))


def _unverifiable(problem: Problem, name: str, *, own: bool) -> str | None:
    """Why a problem cannot be checked, or None. A callable of the user's may do without a reference answer."""
    from_row = "verifier" in problem.meta
    if from_row and name not in VERIFIERS:
        return "meta.verifier is not in the table"
    if not (problem.answer or "").strip() and (from_row or not own):
        return "no reference answer"
    return None
