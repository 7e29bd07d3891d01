r"""Completion → Verdict of its final answer: one verifier per kind of question, and the table of them.

A verifier reads the answer (`reading.py`), reads it again as what it looks for (a letter, a number, …) and compares
it with each accepted reference. What it cannot read is `UNPARSABLE`, never `WRONG`; its own trouble (a reference that
it cannot read, a check that hangs) is `ERROR` or `TIMEOUT`. `VERIFIERS` is a plain dict; any callable of the type
`Verifier` is accepted in place of a name.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib import import_module

from mpo.multimodal.errors import ConfigError
from rewards.types import Problem, Verdict, Verifier
from rewards.verifying.answers import canonical_answer, extract_final_answer
from rewards.verifying.auto import AutoVerifier
from rewards.verifying.choices import ChoiceVerifier, YesNoVerifier
from rewards.verifying.math_verifier import MathVerifier
from rewards.verifying.numbers import NumberVerifier, RelaxedVerifier, RoundedVerifier
from rewards.verifying.texts import AnlsVerifier, ExactVerifier, ShortVerifier, VqaVerifier, anls, vqa_accuracy

__all__ = [
    "VERIFIERS",
    "AnlsVerifier",
    "AutoVerifier",
    "ChoiceVerifier",
    "ExactVerifier",
    "MathVerifier",
    "NumberVerifier",
    "RelaxedVerifier",
    "RoundedVerifier",
    "ShortVerifier",
    "VqaVerifier",
    "YesNoVerifier",
    "anls",
    "anls_verifier",
    "canonical_answer",
    "choice_verifier",
    "exact_verifier",
    "extract_final_answer",
    "faults_of",
    "number_verifier",
    "own_verifier",
    "relaxed_verifier",
    "verify_many",
    "vqa_accuracy",
]

_log = logging.getLogger(__name__)

exact_verifier = ExactVerifier()
choice_verifier = ChoiceVerifier()
number_verifier = NumberVerifier()
relaxed_verifier = RelaxedVerifier()
anls_verifier = AnlsVerifier()
_math = MathVerifier()  # starts its process when it is first needed; make your own for limits or more workers

VERIFIERS: dict[str, Verifier] = {
    "exact": exact_verifier,
    "math": _math,
    "choice": choice_verifier,
    "number": number_verifier,
    "rounded": RoundedVerifier(),
    "yes_no": YesNoVerifier(),
    "short": ShortVerifier(),
    "relaxed": relaxed_verifier,
    "anls": anls_verifier,
    "vqa": VqaVerifier(),
    "auto": AutoVerifier(math=_math),
    "auto_rounded": AutoVerifier(math=_math, rounded=True),
}


def own_verifier(name: str) -> Verifier | None:
    """The user's callable of the name `package.module:function`; None for a name without a colon, one of ours.

    Raises:
        ConfigError: it cannot be imported, or is no callable.
    """
    module, colon, attribute = name.partition(":")
    if not colon:
        return None
    try:
        found: Verifier = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"verifier {name!r} cannot be imported: {error}; expected package.module:function") from error
    if not callable(found):
        raise ConfigError(f"verifier {name!r} is a {type(found).__name__}; expected a callable (problem, text)")
    return found


def verify_many(verifier: Verifier, pairs: Sequence[tuple[Problem, str]]) -> list[Verdict]:
    """One verdict per pair, in order; a verifier that raises gives `ERROR`, logged with the problem's id.

    A verifier with a `verify_many` of its own (`MathVerifier`, `AutoVerifier`, `WorkerVerifier`) is given all pairs at
    once.
    """
    batched = getattr(verifier, "verify_many", None)
    return batched(pairs) if batched is not None else [_safely(verifier, problem, text) for problem, text in pairs]


def faults_of(verifier: Verifier, problems: Sequence[Problem]) -> list[str | None]:
    """Why a verifier cannot check each problem, or None; a callable of your own is taken to know its problems.

    Example:
        >>> faults_of(number_verifier, [Problem("p", "?", answer="many"), Problem("q", "?", answer="7")])[1] is None
        True
    """
    batched = getattr(verifier, "faults", None)
    return batched(problems) if batched is not None else [None] * len(problems)


def _safely(verifier: Verifier, problem: Problem, text: str) -> Verdict:
    try:
        return Verdict(verifier(problem, text))
    except Exception as error:
        _log.warning("verifier failed on problem %r: %s: %s", problem.id, type(error).__name__, error)
        return Verdict.ERROR
