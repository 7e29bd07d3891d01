"""What `mpo verify` found, added up: one closing line, the misses by reason with examples, two verifiers compared."""

from __future__ import annotations

from collections import Counter
from typing import Any

from mpo.multimodal.text import one_line
from rewards.statistics import wilson_interval
from rewards.types import FinishReason, Problem, Rollout, RolloutGroup, Verdict, verdict_of
from rewards.verifying.reading import Missing, find_answer

MANY_UNPARSABLE = 0.05  # of the checked responses: above it something is wrong with prompt, limit or verifier
EXAMPLES = 10
MAX_EXAMPLE = 160  # characters
ORDER = {"correct": "right", "wrong": "wrong", "unparsable": "unparsable", "timeout": "timeout", "error": "error"}


class VerdictAccount:
    """Counts responses as they pass.

    Args:
        second: name of a second verifier; empty for none.

    Example:
        >>> from rewards.types import Completion
        >>> account = VerdictAccount()
        >>> rollouts = (Rollout(Completion("4"), Verdict.CORRECT), Rollout(Completion("5"), Verdict.WRONG))
        >>> account.add(RolloutGroup(Problem("p", "2 + 2?"), rollouts), "number")
        >>> account.line().split("; ")[1:]
        ['accuracy 50.0 % [5.5, 94.5]', 'checked by number 100 %']
    """

    def __init__(self, *, second: str = "") -> None:
        self.second = second
        self.problems = self.checked_problems = self.compared = self.disputed = 0
        self.verdicts, self.second_verdicts = Counter[str](), Counter[str]()
        self.verifiers, self.reasons = Counter[str](), Counter[str]()
        self.examples: list[str] = []

    def add(self, group: RolloutGroup, verifier: str) -> None:
        """One problem's responses, and the verifier that checked them."""
        self.problems += 1
        checked = [rollout for rollout in group.rollouts if rollout.verdict is not None]
        self.checked_problems += bool(checked)
        self.verifiers[verifier] += bool(checked)
        for rollout in group.rollouts:
            self.verdicts[verdict_of(rollout)] += 1
            if rollout.verdict is Verdict.UNPARSABLE:
                self._add_miss(group.problem, rollout)
            if rollout.second_verdict is not None:
                self.second_verdicts[rollout.second_verdict.value] += 1
                both = bool(rollout.verdict and rollout.verdict.is_decided and rollout.second_verdict.is_decided)
                self.compared += both
                self.disputed += rollout.is_disputed

    def _add_miss(self, problem: Problem, rollout: Rollout) -> None:
        text = rollout.completion.text
        found = find_answer(text)
        if rollout.completion.finish_reason is FinishReason.LENGTH:
            reason = "cut at the token limit"
        else:
            reason = found.value if isinstance(found, Missing) else "stated, but not as its verifier reads"
        self.reasons[reason] += 1
        if len(self.examples) < EXAMPLES:
            shown = f"…{text[-MAX_EXAMPLE:]}" if isinstance(found, Missing) else found.value
            self.examples.append(f"{one_line(problem.id, 40)} ({reason}): {one_line(shown, MAX_EXAMPLE)}")

    @property
    def checked(self) -> int:
        """Responses with a verdict."""
        return self.verdicts.total() - self.verdicts["none"]

    def accuracy(self) -> tuple[float, float, float]:
        """Right ones among the checked, misses included; its 95 % interval, with the problems as independent draws."""
        share = self.verdicts["correct"] / self.checked if self.checked else 0.0
        return share, *wilson_interval(share, self.checked_problems)

    def line(self) -> str:
        """The closing line."""
        total = self.verdicts.total()
        counted = ", ".join(f"{self.verdicts[name]:,} {word}" for name, word in ORDER.items())
        without = f", {self.verdicts['none']:,} not checked" if self.verdicts["none"] else ""
        share, low, high = (100 * value for value in self.accuracy())
        used = [(name, n / self.checked_problems) for name, n in self.verifiers.most_common() if n]
        by = ", ".join(f"{name} {100 * part:.0f} %" for name, part in used)
        accuracy = f"; accuracy {share:.1f} % [{low:.1f}, {high:.1f}]; checked by {by}" if self.checked else ""
        plural = "" if self.problems == 1 else "s"
        return f"{total:,} responses of {self.problems:,} problem{plural}: {counted}{without}{accuracy}"

    def agreement(self) -> str:
        """What two verifiers say of the answers that both read; empty without a second one."""
        if not self.second:
            return ""
        if not self.compared:
            return f"second verifier {self.second}: there is no answer that both verifiers read"
        share = 1 - self.disputed / self.compared
        low, high = wilson_interval(share, min(self.compared, self.checked_problems))
        return (
            f"second verifier {self.second}: of {self.compared:,} answers that both read they agree on "
            f"{100 * share:.1f} % [{100 * low:.1f}, {100 * high:.1f}]; {self.disputed:,} are disputed and stay out of "
            f"pairs and labels"
        )

    def warning(self) -> str:
        """About responses that could not be read, where they are many: why, how to ask instead, examples."""
        missed = self.verdicts["unparsable"]
        if missed <= MANY_UNPARSABLE * self.checked:
            return ""
        why = ", ".join(f"{n:,} {reason}" for reason, n in self.reasons.most_common())
        return "\n  ".join(
            [
                f"{100 * missed / self.checked:.1f} % of the responses are unparsable ({why}); they count as neither "
                "right nor wrong and stay out of pairs and labels. `mpo sample --prompt cot` asks for a last line "
                '"Final answer: ...", `--prompt cot_boxed` for a box; a response that was cut needs a larger '
                "--max_new_tokens; another --verifier may read these answers:",
                *self.examples,
            ]
        )

    def counts(self) -> dict[str, Any]:
        """For the stage's manifest."""
        share, low, high = self.accuracy()
        found: dict[str, Any] = {
            "verdicts": dict(sorted(self.verdicts.items())),
            "accuracy": {"mean": share, "low": low, "high": high, "n": self.checked_problems},
            "unparsable": dict(sorted(self.reasons.items())),
            "verifiers": {name: n for name, n in sorted(self.verifiers.items()) if n},
        }
        if self.second:
            verdicts = dict(sorted(self.second_verdicts.items()))
            found["second"] = {"verdicts": verdicts, "compared": self.compared, "disputed": self.disputed}
        return found
