"""One question → one answer: draw responses from any generator, score them with any PRM, choose, and count the cost.

BestOfN("runs/policy", "runs/prm").answer("scan.png", "What is the sum?", 8).text
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mpo.multimodal.errors import ConfigError, DataError
from mpo.multimodal.images import load_image
from rewards.choosing.adaptive import MAY_CHANGE, best_may_change, check_stopping, looks, weighted_vote_may_change
from rewards.choosing.lower_bound import LowerBound, Z, has_spread
from rewards.choosing.selection import CHOICES, best_bound, vote_of_scored
from rewards.choosing.votes import BY_REWARD, VoteWeight
from rewards.sampling.generator import Generator, SamplingParams
from rewards.scoring.aggregation import aggregate
from rewards.scoring.process_reward_model import ProcessRewardModel
from rewards.types import Aggregator, Completion, Problem, Prompt, Rollout, RolloutGroup, StepScores
from rewards.verifying.answers import canonical_answer
from rewards.verifying.equality_classes import EqualityClasses, numbered

if TYPE_CHECKING:
    from rewards.types import ImageLike


@dataclass(frozen=True)
class Answer:
    """The chosen response, and all that it was chosen from.

    Attributes:
        text: the chosen response.
        final_answer: its canonical final answer; `None` if it states none.
        index: its place among all of them.
        candidates: every sample in the order of drawing, scored; `None` as reward means that the PRM cannot read it.
        tokens: generated over all responses; `None` where a server did not count them.
        may_change: with adaptive N, the probability at which drawing stopped that more samples give another answer.
    """

    text: str
    final_answer: str | None
    index: int
    candidates: tuple[Rollout, ...]
    tokens: int | None
    may_change: float | None = None

    @property
    def rewards(self) -> tuple[float | None, ...]:
        """One reward per response."""
        return tuple(rollout.reward for rollout in self.candidates)

    @property
    def step_scores(self) -> tuple[StepScores | None, ...]:
        """The step scores of each response."""
        return tuple(rollout.step_scores for rollout in self.candidates)


class BestOfN:
    """Answers questions with the best of N samples.

    Args:
        policy: draws the responses: any `Generator` (a server's too), or the folder of a model.
        prm: scores them: any `ProcessRewardModel`, or the folder of one; `None` for the majority alone. A `ModelPRM`
            prepares its model in place, which changes no other call: it may be the generator's own.
        params: sampling settings of a policy that is loaded from a folder; a generator has its own.
        aggregation: a name of `rewards.scoring.aggregation.AGGREGATIONS`, or a callable of its shape.
        vote_weight: of the selector `weighted_vote`; by the reward, as aggregated, unless you say otherwise.
        pessimism: z of the selector `lower_bound` (`rewards.choosing.lower_bound`), at least 0.
        prompt: how the policy is asked (`rewards.sampling.prompts.PROMPTS`); the PRM sees the bare question.
        wave: with adaptive N, samples drawn between two looks. A `TransformersGenerator` of your own needs
            `rows_a_problem=wave`, else every wave draws the earlier ones again.

    Votes count what answers mean; formulas are compared in a worker process, so a script needs
    `if __name__ == "__main__":`.

    Raises:
        ConfigError: `params` beside a generator.
    """

    def __init__(
        self,
        policy: Generator | str | Path,
        prm: ProcessRewardModel | str | Path | None,
        *,
        params: SamplingParams | None = None,
        aggregation: str | Aggregator = "mean",
        vote_weight: VoteWeight = BY_REWARD,
        pessimism: float = Z,
        prompt: Prompt = Prompt(),  # noqa: B008
        wave: int = 4,
    ) -> None:
        if not isinstance(policy, str | Path) and params is not None:
            raise ConfigError("params apply only to a policy that is loaded from a folder; set them in the generator")
        self.generator = _loaded_policy(policy, params, wave) if isinstance(policy, str | Path) else policy
        self.prm = _loaded_prm(prm) if isinstance(prm, str | Path) else prm
        self.aggregation, self.prompt, self.wave = aggregation, prompt, wave
        self._choices = CHOICES | {"weighted_vote": partial(vote_of_scored, weight=vote_weight)}
        self._may_change = MAY_CHANGE | {"weighted_vote": partial(weighted_vote_may_change, weight=vote_weight)}
        if isinstance(aggregation, str):
            bound = LowerBound(aggregation, pessimism)
            self._choices["lower_bound"] = partial(best_bound, bound=bound)
            self._may_change["lower_bound"] = partial(best_may_change, value_of=bound.of)

    def answer(
        self,
        image: ImageLike | Sequence[ImageLike] | None,
        question: str,
        n: int = 8,
        *,
        selector: str = "prm",
        error: float | None = None,
        seed: int = 0,
    ) -> Answer:
        """Draw n responses and choose one; ties go to the response, or the answer, that came first.

        Args:
            image: a path or PIL image, several, or `None`.
            question: what to ask.
            n: responses; with `error`, at most this many.
            selector: a row of `rewards.choosing.selection.CHOICES`: prm, majority, a weighted vote, or lower_bound,
                which needs a PRM that tells spreads.
            error: adaptive N (`rewards.choosing.adaptive`): stop when more samples would give another final answer
                with at most this probability; the responses are the first of those that a fixed n draws, from a
                policy in this process.
            seed: the same seed draws the same responses.

        Raises:
            ConfigError: an unknown selector, one that needs a PRM without one, or `error` outside (0, 1).
            DataError: the generator refused the question, or the PRM can read no response, or tells no spreads.
            ImageError: an image that cannot be read.
        """
        if selector not in CHOICES or (self.prm is None and selector != "majority"):
            raise ConfigError(
                f"cannot choose by {selector!r}{'' if self.prm else ' without a PRM'}: expected one of "
                f"{', '.join(CHOICES)}, of which majority alone needs no PRM"
            )
        if selector == "lower_bound" and not isinstance(self.aggregation, str):
            raise ConfigError("selector lower_bound needs the name of an aggregation, got a callable")
        if error is not None:
            check_stopping(selector, error)
        problem = Problem("question", question, _images(image), prompt=self.prompt)
        group, chance, classes = RolloutGroup(problem, ()), None, EqualityClasses(problem)
        for count in looks(n, self.wave if error is not None else n):
            group = numbered(self._extended(group, count, seed), classes)
            if error is not None:
                chance = self._may_change[selector](group, n - count)
                if chance <= error:
                    break
        if selector != "majority" and all(rollout.reward is None for rollout in group.rollouts):
            raise DataError(f"the PRM can read none of the {len(group.rollouts)} responses; choose by majority instead")
        if selector == "lower_bound" and not has_spread([group]):
            raise DataError(
                "the PRM tells no spread of its scores, which the selector lower_bound needs: choose by prm, or train "
                "one with `mpo train-prm --loss binomial --concentration_head`"
            )
        index = self._choices[selector](group)
        text, counted = group.rollouts[index].completion.text, [r.completion.num_tokens for r in group.rollouts]
        tokens = sum(counted) if all(counted) else None
        return Answer(text, canonical_answer(text), index, group.rollouts, tokens, chance)

    def _extended(self, group: RolloutGroup, n: int, seed: int) -> RolloutGroup:
        """The group with samples up to n, the new ones scored."""
        before = len(group.rollouts)
        done = {(0, index) for index in range(before)}
        found: dict[int, Completion] = {}
        for samples in self.generator.draw([group.problem], n, seed=seed, done=done):
            for sample in samples:
                if sample.completion is None:
                    raise DataError(f"no answer to {group.problem.question[:60]!r}: {sample.reason}")
                found[sample.index] = sample.completion
        new = [Rollout(found[index]) for index in range(before, n)]
        return replace(group, rollouts=(*group.rollouts, *score_new(group.problem, new, self.prm, self.aggregation)))


def score_new(
    problem: Problem, rollouts: Sequence[Rollout], prm: ProcessRewardModel | None, how: str | Aggregator
) -> list[Rollout]:
    """The rollouts with step scores and reward; without a PRM, and where it cannot read one, as they are.

    Raises:
        DataError: an aggregation that gives no finite number.
    """
    if prm is None:
        return list(rollouts)
    scored = list(rollouts)
    for index, found in enumerate(prm.outcomes([(problem, rollout.completion.text) for rollout in rollouts])):
        if isinstance(found, DataError):
            continue
        reward = aggregate(found, how=how)
        if not math.isfinite(reward):
            raise DataError(f"aggregation {how!r} gave the reward {reward}: expected a finite number")
        scored[index] = rollouts[index].with_(step_scores=found, reward=reward)
    return scored


def _images(image: ImageLike | Sequence[ImageLike] | None) -> tuple[ImageLike, ...]:
    """Decoded once, here: a bad image is refused before anything is generated."""
    given = () if image is None else image if isinstance(image, list | tuple) else (image,)
    return tuple(load_image(one) for one in given)


def _loaded_policy(path: str | Path, params: SamplingParams | None, wave: int) -> Generator:
    from mpo.multimodal.loading import load_for_inference, load_processor
    from rewards.sampling.transformers_generator import TransformersGenerator

    settings = params or SamplingParams()
    return TransformersGenerator(load_for_inference(path), load_processor(path), settings, rows_a_problem=wave)


def _loaded_prm(path: str | Path) -> ProcessRewardModel:
    from rewards.prm.model_prm import ModelPRM

    return ModelPRM.load(path)
