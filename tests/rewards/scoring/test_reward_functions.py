"""The reward functions of online training: values, gate, account; a check that hangs or fails is never a reward."""

from __future__ import annotations

import time

import pytest

from mpo.multimodal.errors import ConfigError
from rewards.prm.reward_function import PRMReward
from rewards.scoring.reward_functions import FormatReward, LengthReward, ProcessReward, VerifierReward
from rewards.types import Completion, FinishReason, Problem, Verdict
from rewards.verifying.answer_checker import AnswerChecker
from tests.rewards.scripted import RulePRM

PROBLEMS = {
    "sum": Problem("sum", "2 + 2?", answer="4"),
    "half": Problem("half", "A half?", answer=r"\frac{1}{2}"),
    "open": Problem("open", "Why?"),
}
END = 9


def own_check(problem: Problem, text: str) -> Verdict:
    """A user's verifier: hangs on one text, fails on another."""
    if "hang" in text:
        time.sleep(600)
    if "fail" in text:
        raise ValueError("cannot be compared")
    return Verdict.CORRECT if "4" in text else Verdict.WRONG


def test_what_is_not_known_is_no_reward_and_counted() -> None:
    """And the format's reward sees a response that was cut, or that states nothing; all in one worker process."""
    texts = ["Final answer: 4", "Final answer: 5", "Well.", "Final answer: 0.5", "Because."]
    ids = ["sum", "sum", "sum", "half", "open"]
    logged: dict[str, float] = {}
    with AnswerChecker(PROBLEMS, timeout_s=60.0) as checker:
        reward = VerifierReward(checker, {END})
        found = reward([""] * 5, texts, problem_id=ids, log_metric=logged.__setitem__)
        assert found == [1.0, 0.0, None, 1.0, None]
        assert reward.counts == {"correct": 2, "wrong": 1, "unparsable": 1, "no_reference": 1}
        assert logged == {f"verifier/{name}": reward.counts[name] / 5 for name in reward.findings}
        assert set(reward.counts) < set(reward.findings)
        cut = VerifierReward(checker, {END})(
            ["", ""], ["it is 4", "it is 4"], problem_id=["sum", "sum"], completion_ids=[[1, 2], [1, END]]
        )
        assert cut == [None, 1.0]  # the first was cut before it stated an answer
        kept = FormatReward(checker, {END})
        assert kept([""] * 3, ["Final answer: 4"] * 2 + ["Well."], problem_id=["sum"] * 3,
                    completion_ids=[[END], [1], [END]]) == [1.0, 0.0, 0.0]  # fmt: skip
        assert kept.counts == {"kept": 1, "broken": 2}
        assert checker.unreadable() == []


def test_a_check_that_hangs_or_fails() -> None:
    own = f"{__name__}:own_check"
    with AnswerChecker({"open": PROBLEMS["open"]}, verifier=own, timeout_s=5.0) as checker:
        assert checker.verdicts(["open"], [Completion("4")]) == [Verdict.CORRECT]  # the imports are done
        reward, start = VerifierReward(checker), time.monotonic()
        found = reward([""] * 3, ["hang 4", "fail 4", "5"], problem_id=["open"] * 3)
        assert time.monotonic() - start < 300
    assert found == [None, None, 0.0]
    assert reward.counts == {"timeout": 1, "error": 1, "wrong": 1}


class Verdicts(AnswerChecker):
    """Verdicts that are given, without a process."""

    def __init__(self, by_text: dict[str, Verdict]) -> None:
        super().__init__(PROBLEMS)
        self.by_text = by_text

    def verdicts(self, ids: list[str], completions: list[Completion]) -> list[Verdict | None]:  # type: ignore[override]
        pairs = zip(ids, completions, strict=True)
        return [self.by_text.get(one.text) if self.has_reference(id) else None for id, one in pairs]


def test_the_gate() -> None:
    """Right: the PRM's reward. Wrong: 0. Not known: None. No reference: no gate."""
    texts = ["right", "wrong", "unclear", "late", "right"]
    ids = ["sum", "sum", "sum", "sum", "open"]
    gate = Verdicts({"right": Verdict.CORRECT, "wrong": Verdict.WRONG,
                     "unclear": Verdict.UNPARSABLE, "late": Verdict.TIMEOUT})  # fmt: skip
    prm = RulePRM(lambda step: 0.75)
    reward = ProcessReward(PRMReward(prm, problems=PROBLEMS), gate=gate)
    assert reward([""] * 5, texts, problem_id=ids) == [0.75, 0.0, None, None, 0.75]
    assert prm.scored == ["right", "right"]
    assert reward.counts == {"scored": 2, "gated": 3}
    free = ProcessReward(PRMReward(prm, problems=PROBLEMS))
    assert free([""] * 5, texts, problem_id=ids) == [0.75] * 5


def test_refusals() -> None:
    with pytest.raises(ConfigError, match=r"expected PRMReward\(prm, problems=…\)"):
        ProcessReward(PRMReward(RulePRM(lambda step: 1.0)))
    for number, buffer in ((0, 0.2), (10, 0.0), (10, 1.5)):
        with pytest.raises(ConfigError, match="expected max_tokens >= 1 and buffer in"):
            LengthReward(number, buffer=buffer)
    with pytest.raises(ConfigError, match="judge is not supported"):
        AnswerChecker(PROBLEMS, verifier="judge")


def test_length_by_hand() -> None:
    """L_max 100, buffer 20: free up to 80, −0.5 at 90, −1 at 100 and beyond."""
    reward = LengthReward(100)
    ids = [[1] * number for number in (1, 80, 90, 100, 120)]
    assert reward([""] * 5, ["a"] * 5, problem_id=["sum"] * 5, completion_ids=ids) == [0.0, 0.0, -0.5, -1.0, -1.0]
    assert reward.counts == {"short": 2, "long": 3}
    assert Completion("a").finish_reason is FinishReason.STOP
