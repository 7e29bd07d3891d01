"""Step-level beam search guided by a process reward model, for prompts with images, on any generator.

A beam is a prefix of whole steps. Each round extends every beam by m sampled steps: a continuation is cut at its first
blank line, scored with the PRM on the whole prefix, and the best W unfinished prefixes are kept (the search of
arXiv 2408.03314, §5). A prefix that ended its turn is finished and kept; the answer is the finished one of the highest
reward. What was cut off was generated all the same and counts as tokens: bound it with the generator's
`max_new_tokens`, which here limits one extension. A longer step continues in the next round.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mpo.multimodal.errors import ConfigError
from rewards.choosing.best_of_n import score_new
from rewards.sampling.generator import Generator
from rewards.scoring.process_reward_model import ProcessRewardModel
from rewards.steps import split_on_blank_lines
from rewards.types import Aggregator, Completion, FinishReason, Problem, Rollout, RolloutGroup


@dataclass
class Search:
    """What the search of one problem has found so far, and what it cost.

    Attributes:
        beams: unfinished prefixes with their scores, best first.
        finished: whole responses, best first; a search that ends without one keeps its beams as truncated responses.
        tokens: generated, what was cut off included; too low where a server did not count them.
        extensions: continuations drawn.
        rounds: in which the problem took part.
        dropped: extensions that added no text, that another one repeats, or that the PRM cannot read.
        refused: why the generator gave nothing, if so.
    """

    problem: Problem
    beams: list[Rollout] = field(default_factory=list)
    finished: list[Rollout] = field(default_factory=list)
    tokens: int = 0
    extensions: int = 0
    rounds: int = 0
    dropped: int = 0
    refused: str = ""

    @property
    def best(self) -> Rollout | None:
        """The answer: the best finished response, else the best truncated one; `None` if nothing could be read."""
        return next(iter([*self.finished, *self.beams]), None)


class BeamSearch:
    """Searches responses to many problems at a time, round by round.

    Args:
        generator: draws continuations of prefixes; its `max_new_tokens` limits one extension.
        prm: scores prefixes.
        width: W, beams kept per problem, and finished responses after which its search ends.
        expand: m, continuations of each beam; the first round draws W·m from the prompt.
        max_rounds: steps of an answer at most.
        aggregation: step scores of a prefix → its value, the mean by default.

    Raises:
        ConfigError: a number below 1.
    """

    def __init__(
        self,
        generator: Generator,
        prm: ProcessRewardModel,
        *,
        width: int = 4,
        expand: int = 4,
        max_rounds: int = 12,
        aggregation: str | Aggregator = "mean",
    ) -> None:
        if min(width, expand, max_rounds) < 1:
            raise ConfigError(f"expected width, expand and max_rounds >= 1, got {width}, {expand}, {max_rounds}")
        self.generator, self.prm, self.aggregation = generator, prm, aggregation
        self.width, self.expand, self.max_rounds = width, expand, max_rounds

    def search(
        self, problems: Sequence[Problem], *, seed: int, on_round: Callable[[int], object] | None = None
    ) -> list[Search]:
        """One search per problem, in order; `on_round` is told how many problems continue.

        Beams of a problem never share a prefix, so no two draw the same random numbers.
        """
        searches = [Search(problem) for problem in problems]
        for number in range(self.max_rounds):
            going_on = [
                s for s in searches if not s.refused and len(s.finished) < self.width and (s.beams or not number)
            ]
            if not going_on:
                break
            if on_round:
                on_round(len(going_on))
            for search, extended in zip(going_on, self._extended(going_on, seed), strict=True):
                self._keep_best(search, extended)
        return searches

    def _extended(self, searches: Sequence[Search], seed: int) -> list[list[Completion]]:
        """The extended prefixes of each search, one generator call for all."""
        asked = [
            (place, beam)
            for place, search in enumerate(searches)
            for beam in ([rollout.completion.text for rollout in search.beams] or [""])
        ]
        n = self.expand if searches[0].rounds else self.expand * self.width
        found: defaultdict[int, dict[tuple[int, int], Completion]] = defaultdict(dict)
        drawn = self.generator.draw(
            [searches[place].problem for place, _ in asked], n, prefixes=[prefix for _, prefix in asked], seed=seed
        )
        for samples in drawn:
            for sample in samples:
                place, prefix = asked[sample.problem]
                if sample.completion is None:
                    searches[place].refused = sample.reason
                else:
                    searches[place].tokens += sample.completion.num_tokens
                    searches[place].extensions += 1
                    found[place][sample.problem, sample.index] = cut_to_one_step(prefix, sample.completion)
        for search in searches:
            search.rounds += 1
        return [[found[place][key] for key in sorted(found[place])] for place in range(len(searches))]

    def _keep_best(self, search: Search, extended: Sequence[Completion]) -> None:
        before = {rollout.completion.text for rollout in search.beams}
        new = {
            completion.text: completion
            for completion in reversed(extended)  # of two with one text the first stays
            if completion.text.strip()
            and (completion.finish_reason is FinishReason.STOP or completion.text not in before)
        }
        rollouts = [Rollout(completion) for completion in reversed(new.values())]
        scored = [r for r in score_new(search.problem, rollouts, self.prm, self.aggregation) if r.reward is not None]
        search.dropped += len(extended) - len(scored)
        is_finished = [rollout.completion.finish_reason is FinishReason.STOP for rollout in scored]
        search.finished = _best_first(
            [*search.finished, *(r for r, done in zip(scored, is_finished, strict=True) if done)]
        )
        going_on = _best_first([r for r, done in zip(scored, is_finished, strict=True) if not done])
        search.beams = going_on[: self.width]


def cut_to_one_step(prefix: str, continuation: Completion) -> Completion:
    r"""The prefix with the continuation's first step: finished if the continuation ended there by itself.

    Example:
        >>> cut_to_one_step("a\n\n", Completion("b\n\nc")).text
        'a\n\nb\n\n'
        >>> cut_to_one_step("a\n\n", Completion("b")).finish_reason.value
        'stop'
    """
    text = continuation.text
    if text.strip():
        first, *rest = split_on_blank_lines(text)
        if rest:
            return Completion(prefix + text[: first.end], FinishReason.LENGTH)
    return Completion(prefix + text, continuation.finish_reason)


def group_of(search: Search) -> RolloutGroup:
    """The answer of a search as a group of one rollout, ready to be verified.

    Example:
        >>> group_of(Search(Problem("p", "?"), finished=[Rollout(Completion("4"))])).rollouts[0].completion.text
        '4'
    """
    assert search.best is not None, search
    return RolloutGroup(search.problem, (search.best,))


def _best_first(rollouts: Sequence[Rollout]) -> list[Rollout]:
    return sorted(rollouts, key=lambda rollout: -(rollout.reward or 0.0))  # stable: ties stay in order
