"""Reward functions for TRL's `GRPOTrainer`: the verifier, the PRM behind the verifier's gate, the format, the length.

Each takes rows with a column `problem_id`, counts its own trouble in `counts`, and gives `None` for a response of which
it knows nothing. TRL then adds the other rewards of that response; where every reward is `None`, the response's
advantage is 0 (TRL 1.16). So a response that nobody could read is never rewarded. It is not punished either unless
another reward says something: with `FormatReward` beside it, an answer that cannot be read ranks with the wrong ones.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any

from mpo.multimodal.errors import ConfigError
from rewards.prm.reward_function import PRMReward, Prompt, text_of
from rewards.types import Completion, FinishReason, Verdict
from rewards.verifying.answer_checker import AnswerChecker

VALUES: dict[Verdict | None, float] = {Verdict.CORRECT: 1.0, Verdict.WRONG: 0.0}  # of every other: None
NO_REFERENCE = "no_reference"
BUFFER = 0.2  # of the token limit: 4,096 of 20,480 tokens (DAPO, arXiv 2503.14476, section 4.1)


class OnlineReward(ABC):
    """What the reward functions of this file share: TRL's call, completions, and an account.

    Args:
        ends: ids of the tokens that end a response; one whose ids do not end with such a token was cut. Without them
            no response counts as cut.

    Attributes:
        findings: everything that can be found.
        counts: what was found, and how often.
    """

    name: str
    findings: tuple[str, ...]

    def __init__(self, ends: Collection[int] = ()) -> None:
        self.ends, self.counts = frozenset(ends), Counter[str]()
        self.__name__ = self.name  # TRL logs it as rewards/NAME/mean

    def __call__(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Prompt],
        *,
        problem_id: Sequence[str],
        completion_ids: Sequence[Sequence[int]] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """One reward per completion, in order; `None` where nothing is known.

        Args:
            prompts: not read: `problem_id` names what was asked.
            completions: plain texts, or conversations of one assistant turn.
            problem_id: of the rows, one per completion.
            completion_ids: TRL's, without padding, the end token included.
            log_metric: TRL's; gets the share of each finding of this batch as NAME/FINDING, 0 too: TRL takes the mean
                over the processes that give it a number.
            **columns: TRL's other keywords; not read.

        Raises:
            DataError: a completion that is not one turn.
        """
        ids = completion_ids if completion_ids is not None else [()] * len(completions)
        given = [self._completion(text, own) for text, own in zip(completions, ids, strict=True)]
        rewards, found = self.rewards(problem_id, given)
        self.counts.update(found)
        if log_metric is not None and given:
            for finding in self.findings:
                log_metric(f"{self.name}/{finding}", found[finding] / len(given))
        return rewards

    @abstractmethod
    def rewards(self, ids: Sequence[str], completions: Sequence[Completion]) -> tuple[list[float | None], Counter[str]]:
        """One reward per response, and how often each finding was made."""

    def _completion(self, given: Prompt, ids: Sequence[int]) -> Completion:
        cut = bool(self.ends) and bool(ids) and ids[-1] not in self.ends
        return Completion(text_of(given), FinishReason.LENGTH if cut else FinishReason.STOP, len(ids))


class VerifierReward(OnlineReward):
    """1 for a right answer, 0 for a wrong one, `None` for any other verdict and for a problem without a reference.

    Args:
        checker: of the run's problems.
        ends: as for `OnlineReward`.

    Example:
        >>> from rewards.types import Problem
        >>> with AnswerChecker({"p": Problem("p", "2 + 2?", answer="4")}) as checker:
        ...     reward = VerifierReward(checker)
        ...     reward(["2 + 2?"] * 3, ["Final answer: 4", "Final answer: 5", "Well."], problem_id=["p"] * 3)
        [1.0, 0.0, None]
        >>> sorted(reward.counts.items())
        [('correct', 1), ('unparsable', 1), ('wrong', 1)]
    """

    name = "verifier"
    findings = (*map(str, Verdict), NO_REFERENCE)

    def __init__(self, checker: AnswerChecker, ends: Collection[int] = ()) -> None:
        super().__init__(ends)
        self.checker = checker

    def rewards(self, ids: Sequence[str], completions: Sequence[Completion]) -> tuple[list[float | None], Counter[str]]:
        """The verdicts as numbers."""
        verdicts = self.checker.verdicts(ids, completions)
        return [VALUES.get(verdict) for verdict in verdicts], Counter(
            str(verdict) if verdict else NO_REFERENCE for verdict in verdicts
        )


class ProcessReward(OnlineReward):
    """The PRM's aggregated step scores, in [0, 1]; with a gate they count only where the answer is right.

    With a gate, a wrong answer gets 0 and one that could not be checked gets `None`; a problem without a reference
    answer has no gate. Only responses whose reward counts are scored.

    Args:
        reward: of the PRM, with the run's `problems`.
        gate: checks the answers; `None` for no gate.
        ends: as for `OnlineReward`.

    Raises:
        ConfigError: `reward` was made without `problems`.
    """

    name = "prm"
    findings = ("scored", "unscorable", "gated")

    def __init__(self, reward: PRMReward, *, gate: AnswerChecker | None = None, ends: Collection[int] = ()) -> None:
        super().__init__(ends)
        if reward.problems is None:
            raise ConfigError(
                "expected PRMReward(prm, problems=…): the gate and the PRM must speak of the same problem"
            )
        self.reward, self.problems, self.gate = reward, reward.problems, gate

    def rewards(self, ids: Sequence[str], completions: Sequence[Completion]) -> tuple[list[float | None], Counter[str]]:
        """The PRM's rewards where the gate is open."""
        verdicts = self.gate.verdicts(ids, completions) if self.gate else [None] * len(ids)
        counted = [verdict in (None, Verdict.CORRECT) for verdict in verdicts]
        asked = [(self.problems[id], one.text) for id, one, open in zip(ids, completions, counted, strict=True) if open]
        scored = iter(self.reward.rewards_of([p for p, _ in asked], [text for _, text in asked]) if asked else [])
        found = Counter[str]()
        rewards: list[float | None] = []
        for verdict, open in zip(verdicts, counted, strict=True):
            value = next(scored) if open else VALUES.get(verdict)
            found["gated" if not open else "unscorable" if value is None else "scored"] += 1
            rewards.append(value)
        return rewards, found


class FormatReward(OnlineReward):
    """1 for a response that ended by itself and states a final answer, else 0; `None` if that could not be read.

    Args:
        checker: whose workers read the responses.
        ends: as for `OnlineReward`.
    """

    name = "format"
    findings = ("kept", "broken", "unreadable")

    def __init__(self, checker: AnswerChecker, ends: Collection[int] = ()) -> None:
        super().__init__(ends)
        self.checker = checker

    def rewards(self, ids: Sequence[str], completions: Sequence[Completion]) -> tuple[list[float | None], Counter[str]]:
        """Whether each response has the form that was asked for."""
        stated = self.checker.states_answers(completions)
        names = {True: "kept", False: "broken", None: "unreadable"}
        return [None if one is None else float(one) for one in stated], Counter(names[one] for one in stated)


class LengthReward(OnlineReward):
    """0 up to a length, then falling evenly to −1 at the token limit: DAPO's soft overlong punishment.

        R(y) = 0                            for |y| ≤ L_max − L_buffer
        R(y) = (L_max − L_buffer − |y|) / L_buffer    up to L_max, and −1 beyond

    arXiv 2503.14476, equation 13 (https://arxiv.org/abs/2503.14476), where L_buffer is 20 % of L_max.

    Args:
        max_tokens: L_max in tokens, at least 1.
        buffer: L_buffer as a share of it, in (0, 1].
        ends: as for `OnlineReward`.

    Raises:
        ConfigError: a number outside its range.

    Example:
        >>> reward = LengthReward(10)
        >>> reward([""] * 3, ["a", "b", "c"], problem_id=["p"] * 3, completion_ids=[[1] * 8, [1] * 9, [1] * 10])
        [0.0, -0.5, -1.0]
    """

    name = "length"
    findings = ("short", "long")

    def __init__(self, max_tokens: int, *, buffer: float = BUFFER, ends: Collection[int] = ()) -> None:
        super().__init__(ends)
        if max_tokens < 1 or not 0 < buffer <= 1:
            raise ConfigError(f"expected max_tokens >= 1 and buffer in (0, 1], got {max_tokens} and {buffer}")
        self.max_tokens, self.buffer = max_tokens, buffer * max_tokens

    def rewards(self, ids: Sequence[str], completions: Sequence[Completion]) -> tuple[list[float | None], Counter[str]]:
        """From the numbers of tokens alone."""
        over = [max(0.0, one.num_tokens - (self.max_tokens - self.buffer)) / self.buffer for one in completions]
        found = Counter("long" if share else "short" for share in over)
        return [-min(1.0, share) if share else 0.0 for share in over], found
