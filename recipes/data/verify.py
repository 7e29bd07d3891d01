"""`mpo verify`: one verdict per rollout; a failure of the checker is a verdict of its own, never `wrong`.

`auto`, the default, picks a verifier for each problem by its reference and choices; the manifest counts which. A
problem whose `meta["verifier"]` names a row of `rewards.verifying.verification.VERIFIERS` is checked with that one,
so that one file may mix charts, documents and multiple choice; `--verifier` is for all the others. A data row can
only pick from that table: a callable of yours is imported because the flag names it, never because a row does.

`--second_verifier NAME` checks again: where the two disagree on an answer that both read, the response is listed in
`disagreements.jsonl` and stays out of pairs and labels. `judge`, as either, is a model behind a server
(`rewards/verifying/judge.py`). What each answer votes for (`rewards/verifying/equality_classes.py`) is written down.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpo.multimodal.errors import ConfigError
from mpo.multimodal.files import opened_atomically
from recipes.config import VerifyConfig
from recipes.stage.folder import open_stage
from recipes.stage.groups import iter_groups, problems_behind, problems_of, write_groups
from recipes.stage.kept_calls import open_calls
from rewards.kept.calls import CallStore
from rewards.types import Problem, RolloutGroup, Verdict, Verifier
from rewards.verifying.account import VerdictAccount
from rewards.verifying.auto import AutoVerifier, picked
from rewards.verifying.equality_classes import EqualityClasses, numbered
from rewards.verifying.finished import verify_completions
from rewards.verifying.math_verifier import MathVerifier
from rewards.verifying.reading import read_answer
from rewards.verifying.verification import VERIFIERS, faults_of, own_verifier, verify_many
from rewards.verifying.workers import WorkerVerifier

if TYPE_CHECKING:
    from rewards.verifying.judge import Judge

_log = logging.getLogger(__name__)

JUDGE = "judge"
AUTO = ("auto", "auto_rounded")  # each picks a verifier for each problem
DISAGREEMENTS = "disagreements.jsonl"
UNREADABLE = "reference cannot be read"
EXAMPLES = 3  # of faults that are shown
GROUPS_AT_A_TIME = 256  # in memory, handed to the workers in one piece, and kept in one piece

Answers = Sequence[tuple[Problem, str]]


def verify(config: VerifyConfig) -> Path:
    """Check every final answer; math-verify and your own callable run in worker processes that can be killed.

    A problem that cannot be checked (no reference answer for a verifier of ours or one that it cannot read, an unknown
    verifier's name) keeps its rollouts as they are, without verdict, and is counted under `unverified`; references that
    cannot be read are named before the first response is checked. Verdicts are in `calls.sqlite` as soon as
    those of some hundred problems are there, a judge's every some hundred requests: after a kill the same command
    continues. A response that was cut before it stated an answer is `unparsable`, whatever its unfinished work says
    last. At the end one line says what was found, and a warning what could not be read.
    """
    own = {name: found for name in _names(config) if (found := own_verifier(name)) is not None}
    stage = open_stage("verify", config, inputs=[config.groups])
    if stage.complete:
        return stage.out
    second = _second_of(config)
    account, unverified = VerdictAccount(second=second), Counter[str]()
    problems = problems_behind(config.groups)
    with open_calls(stage) as calls, ExitStack() as stack:
        checker = _Checker(calls, cache(partial(_ready, own=own, config=config, stack=stack)))
        plan = checker.plan(problems, config.verifier, rows=config.verifier != JUDGE)
        _say_faults(plan)
        others = checker.plan(problems, second, rows=second == "auto") if second else {}
        groups = checker.checked(iter_groups(config.groups, problems), plan, others)
        if second:
            groups = _listed(groups, stack.enter_context(opened_atomically(stage.out / DISAGREEMENTS, "w")))
        write_groups(stage.out, _counted(groups, plan, account, unverified))
    for text in (account.warning(), account.agreement()):
        if text:
            _log.warning("%s", text)
    total = account.verdicts.total()
    counts = {"in": total, "out": total, "rejected": {}, **account.counts(), "unverified": dict(unverified)}
    return stage.finish({**counts, "problems": str(problems_of(config.groups))}, note=account.line())


@dataclass(frozen=True)
class _Planned:
    """The verifier of a problem, or why it has none: a short reason to count, and for a reference a sentence."""

    name: str
    reason: str = ""
    fault: str = ""


Plan = Mapping[str, _Planned]


class _Checker:
    """Makes the calls of verifiers, each kept; a verifier starts its workers only when there is something to check."""

    def __init__(self, calls: CallStore, ready: Callable[[str], Any]) -> None:
        self.calls, self.ready = calls, ready

    def plan(self, problems: Mapping[str, Problem], default: str, *, rows: bool) -> Plan:
        """For each problem its verifier: the row's own if `rows` may say so, else the default.

        Where it is left to `auto`, what the problem's reference asks for.
        """
        plan: dict[str, _Planned] = {}
        by_name: dict[str, list[Problem]] = {}
        for problem in problems.values():
            from_row = rows and "verifier" in problem.meta
            name = str(problem.meta["verifier"]) if from_row else default
            reason = _unverifiable(problem, name, from_row=from_row)
            if not reason and name in AUTO:
                name = picked(problem, rounded=name != "auto")
            plan[problem.id] = _Planned(name, reason or "")
            if not reason and name in VERIFIERS:
                by_name.setdefault(name, []).append(problem)
        for name, asked in sorted(by_name.items()):
            for start in range(0, len(asked), GROUPS_AT_A_TIME):
                some = asked[start : start + GROUPS_AT_A_TIME]
                about = ["faults", name, [[p.id, p.question, p.answer, dict(p.meta)] for p in some]]
                for problem, fault in zip(some, self.calls.once(about, partial(self._faults, name, some)), strict=True):
                    if fault:
                        plan[problem.id] = _Planned(name, UNREADABLE, fault)
        return plan

    def checked(self, groups: Iterator[RolloutGroup], plan: Plan, others: Plan) -> Iterator[RolloutGroup]:
        """The groups with verdicts and votes, some at a time."""
        while some := list(islice(groups, GROUPS_AT_A_TIME)):
            some = self._with_verdicts(some, plan, "verdict")
            some = self._with_verdicts(some, others, "second_verdict")
            yield from self._with_votes(some, plan)

    def _with_verdicts(self, some: Sequence[RolloutGroup], plan: Plan, field: str) -> list[RolloutGroup]:
        done, names = list(some), dict[str, list[int]]()
        for place, group in enumerate(some):
            planned = plan.get(group.problem.id)
            if planned is not None and not planned.reason:
                names.setdefault(planned.name, []).append(place)
        for name, places in sorted(names.items()):
            asked = [(some[place].problem, r.completion) for place in places for r in some[place].rollouts]
            if ":" in name:  # a callable of the user's sees every text
                verdicts = iter(self._verdicts(name, [(problem, completion.text) for problem, completion in asked]))
            else:
                verdicts = iter(verify_completions(partial(self._verdicts, name), asked))
            for place in places:
                rollouts = tuple(rollout.with_(**{field: next(verdicts)}) for rollout in some[place].rollouts)
                done[place] = RolloutGroup(some[place].problem, rollouts)
        return done

    def _verdicts(self, name: str, answers: Answers) -> list[Verdict]:
        if name == JUDGE:
            return self._judged(answers)
        about = ["verify", name, _about(answers)]
        return [*map(Verdict, self.calls.once(about, lambda: list(verify_many(self.ready(name), answers))))]

    def _judged(self, answers: Answers) -> list[Verdict]:
        """Each comparison is kept by itself, as the replies come; equal ones are asked once."""
        judge: Judge = self.ready(JUDGE)
        from rewards.verifying.judge import comparison_of  # needs the extra, which `ready` has asked for

        asked = [comparison_of(*answer) for answer in answers]
        wanted = list(dict.fromkeys(one for one in asked if one is not None))
        found = self.calls.each([([JUDGE, judge.model, one.about()], one) for one in wanted], judge.run)
        verdicts = dict(zip(wanted, map(Verdict, found), strict=True))
        return [Verdict.UNPARSABLE if one is None else verdicts[one] for one in asked]

    def _with_votes(self, some: Sequence[RolloutGroup], plan: Plan) -> list[RolloutGroup]:
        answers = [(group.problem, r.completion.text) for group in some for r in group.rollouts]
        names = [plan[group.problem.id].name for group in some]
        kept = iter(self.calls.once(["votes", names, _about(answers)], lambda: self._votes(some, names)))
        return [
            RolloutGroup(group.problem, tuple(rollout.with_(vote=next(kept)) for rollout in group.rollouts))
            for group in some
        ]

    def _votes(self, some: Sequence[RolloutGroup], names: Sequence[str]) -> list[int | None]:
        found: list[int | None] = []
        for group, name in zip(some, names, strict=True):
            classes = EqualityClasses(group.problem, self.ready(name if name in VERIFIERS else "auto"))
            found += [rollout.vote for rollout in numbered(group, classes).rollouts]
        return found

    def _faults(self, name: str, problems: list[Problem]) -> list[str | None]:
        return faults_of(self.ready(name), problems)


def _about(answers: Answers) -> list[Any]:
    return [[p.id, p.question, p.answer, dict(p.meta), text] for p, text in answers]


def _say_faults(plan: Plan) -> None:
    """One line about all references that cannot be read."""
    faults = [planned.fault for planned in plan.values() if planned.fault]
    if faults:
        shown = "; ".join(faults[:EXAMPLES])
        _log.warning(
            "%d of %d problems have a reference that their verifier cannot read; their responses get no verdict: %s",
            len(faults), len(plan), shown + ("; …" if len(faults) > EXAMPLES else ""),
        )  # fmt: skip


def _counted(
    groups: Iterable[RolloutGroup], plan: Plan, account: VerdictAccount, unverified: Counter[str]
) -> Iterator[RolloutGroup]:
    """The same groups, counted as they pass; those that could not be checked by reason."""
    for group in groups:
        planned = plan[group.problem.id]
        account.add(group, planned.name)
        if planned.reason:
            unverified[planned.reason] += 1
        yield group


def _listed(groups: Iterable[RolloutGroup], file: Any) -> Iterator[RolloutGroup]:
    """The same groups; responses on which two verifiers disagree are written down, a line each."""
    for group in groups:
        for index, rollout in enumerate(group.rollouts):
            if rollout.is_disputed:
                answer = read_answer(rollout.completion.text)
                row = {
                    "problem_id": group.problem.id,
                    "index": index,
                    "reference": group.problem.answer,
                    "answer": answer.value if answer else None,
                    "verdict": rollout.verdict,
                    "second_verdict": rollout.second_verdict,
                }
                file.write(json.dumps(row) + "\n")
        yield group


def _names(config: VerifyConfig) -> list[str]:
    """The verifiers that are asked for, checked before anything is read.

    Raises:
        ConfigError: an unknown one, the same twice, or a judge without a server (or the other way round).
    """
    names = [name for name in (config.verifier, _second_of(config)) if name]
    for name in names:
        if ":" not in name and name not in (*VERIFIERS, JUDGE):
            raise ConfigError(
                f"unknown verifier {name!r}: expected one of {', '.join([*VERIFIERS, JUDGE])}, or "
                "package.module:function"
            )
    if len(set(names)) < len(names):
        raise ConfigError(f"second_verifier={names[1]} is the verifier itself; expected another one")
    is_judged, has_server = JUDGE in names, bool(config.base_url) and config.model is not None
    if is_judged != has_server or bool(config.base_url) != (config.model is not None):
        raise ConfigError(
            "a judge is a model behind a server: expected verifier or second_verifier judge together with base_url and "
            f"model, got {' and '.join(names)}, base_url={config.base_url}, model={config.model}"
        )
    return names


def _second_of(config: VerifyConfig) -> str:
    """The second verifier; a judge is always compared with the rules."""
    return config.second_verifier or ("auto" if config.verifier == JUDGE else "")


def _ready(name: str, *, own: Mapping[str, Verifier], config: VerifyConfig, stack: ExitStack) -> Any:
    """A verifier with the flags' limits; `stack` stops its processes."""
    if name == "math" or name in AUTO:
        math = stack.enter_context(MathVerifier(workers=config.workers, timeout_s=config.timeout_s))
        return math if name == "math" else AutoVerifier(math=math, rounded=name != "auto")
    if name in own:
        return stack.enter_context(WorkerVerifier(own[name], workers=config.workers, timeout_s=config.timeout_s))
    if name == JUDGE:
        try:
            from rewards.verifying.judge import Judge
        except ImportError as error:
            raise ConfigError(f"a judge needs the extra: pip install -e '.[server]' ({error})") from error

        return Judge(config.base_url, str(config.model), concurrency=config.concurrency)
    return VERIFIERS[name]


def _unverifiable(problem: Problem, name: str, *, from_row: bool) -> str | None:
    """Why a problem cannot be checked, or None. A callable of the user's may do without a reference answer."""
    if from_row and name not in VERIFIERS:
        return "meta.verifier is not in the table"
    return None if ":" in name or (problem.answer or "").strip() else "no reference answer"
