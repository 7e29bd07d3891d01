"""A benchmark's responses and any process reward model → one score for each given step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from mpo.multimodal.errors import DataError
from rewards.prm.evaluating.benchmark import BenchmarkResponse, ScoredResponse
from rewards.scoring.process_reward_model import ProcessRewardModel


def score_given_steps(
    responses: Sequence[BenchmarkResponse], prm: ProcessRewardModel, *, describe: str = ""
) -> tuple[list[ScoredResponse], Counter[str]]:
    """Score the steps of a benchmark's responses, as `ProcessRewardModel.score_steps` does.

    Args:
        responses: with their problems as they are to be seen, e.g. with blank images.
        prm: any PRM.
        describe: names a progress bar, where the PRM has one.

    Returns:
        Scored responses, in order; and reason → number of those that cannot be scored.
    """
    found = prm.score_steps([(response.problem, response.steps) for response in responses], describe=describe)
    rejected = Counter(outcome.reason for outcome in found if isinstance(outcome, DataError))
    scored = [
        ScoredResponse(response, outcome.values)
        for response, outcome in zip(responses, found, strict=True)
        if not isinstance(outcome, DataError)
    ]
    return scored, rejected
