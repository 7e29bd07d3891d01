"""`mpo verify`: one verdict a rollout; trouble of the checker is its own verdict, never `wrong`.

A problem whose `meta["verifier"]` names a row of `rewards.verification.VERIFIERS` is checked with that one, so that one
file may mix charts, documents and multiple choice; `--verifier` is for all the others. A data row can only pick from
that table: a callable of yours is imported because the flag names it, never because a row does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from importlib import import_module
from pathlib import Path

from mpo.multimodal.errors import ConfigError
from recipes.calls import open_calls
from recipes.config import VerifyConfig
from recipes.groups import problems_of, read_groups, write_groups
from recipes.run import open_stage
from rewards.call_store import CallStore
from rewards.math_verifier import MathVerifier
from rewards.types import Problem, Rollout, RolloutGroup, Verdict, Verifier
from rewards.verification import VERIFIERS, verify_many
from rewards.workers import WorkerVerifier

ANSWERS_A_WORKER = 4096  # of a call: seconds of checking, so that its slowest check is a small part and little is lost


def verify(config: VerifyConfig) -> Path:
    """Check every final answer; math-verify and your own callable run in worker processes that can be killed.

    A problem that cannot be checked (no reference answer for a verifier of ours, an unknown verifier's name) keeps its
    rollouts as they are, without verdict, and is counted under `unverified`. Verdicts are in `calls.sqlite` as soon as
    a call of some thousand answers is through: after a kill the same command goes on.
    """
    default = _named(config)
    stage = open_stage("verify", config, inputs=[config.groups])
    if stage.complete:
        return stage.out
    groups = read_groups(config.groups)
    own = ":" in config.verifier
    names = {group.problem.id: _verifier_of(group.problem, config.verifier) for group in groups}
    why = {group.problem.id: _unverifiable(group.problem, names[group.problem.id], own=own) for group in groups}
    done: dict[str, RolloutGroup] = {}
    with open_calls(stage) as calls, ExitStack() as stack:
        for name in sorted({names[id] for id, reason in why.items() if reason is None}):
            chosen = [g for g in groups if names[g.problem.id] == name and why[g.problem.id] is None]
            answers = [(group.problem, rollout.completion.text) for group in chosen for rollout in group.rollouts]
            verdicts = _verdicts(calls, name, _ready(name, default, config, stack), answers, workers=config.workers)
            done |= {
                group.problem.id: RolloutGroup(
                    group.problem, tuple(rollout.with_(verdict=next(verdicts)) for rollout in group.rollouts)
                )
                for group in chosen
            }
    verified = [done.get(group.problem.id, group) for group in groups]
    write_groups(stage.out, verified)
    found = Counter(verdict_of(rollout) for group in verified for rollout in group.rollouts)
    unverified = Counter(reason for reason in why.values() if reason)
    total = sum(len(group.rollouts) for group in groups)
    counts = {"in": total, "out": total, "rejected": {}, "verdicts": dict(sorted(found.items()))}
    return stage.finish({**counts, "unverified": dict(unverified), "problems": str(problems_of(config.groups))})


def _verdicts(
    calls: CallStore, name: str, verifier: Verifier, answers: Sequence[tuple[Problem, str]], *, workers: int
) -> Iterator[Verdict]:
    """One verdict an answer, in order, call by call."""
    size = calls.note("answers_a_call", ANSWERS_A_WORKER * max(1, workers))  # other workers go on with the same calls
    for start in range(0, len(answers), size):
        some = answers[start : start + size]
        about = ["verify", name, [[p.id, p.question, p.answer, dict(p.meta), text] for p, text in some]]
        yield from map(Verdict, calls.once(about, partial(verify_many, verifier, some)))


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


def verdict_of(rollout: Rollout) -> str:
    """The verdict's name, "none" if there is none: the problem could not be checked."""
    return rollout.verdict.value if rollout.verdict else "none"
