"""A benchmark's responses and any process reward model → one score for each given step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rewards.prm.evaluating.benchmark import BenchmarkResponse, ScoredResponse
from rewards.steps import BLANK_LINE, split_on_blank_lines
from rewards.types import ProcessRewardModel


def score_given_steps(
    responses: Sequence[BenchmarkResponse], prm: ProcessRewardModel, *, describe: str = ""
) -> tuple[list[ScoredResponse], Counter[str]]:
    """Score the steps of a benchmark's responses.

    A PRM that has `score_steps` (`ModelPRM`) gets the steps as they are. Any other gets them joined by blank lines,
    with blank lines inside a step closed up, and must give one score per step.

    Args:
        responses: with their problems as they are to be seen, e.g. with blank images.
        prm: any PRM.
        describe: names a progress bar, where the PRM has one.

    Returns:
        Scored responses, in order; and reason → number of those that cannot be scored.
    """
    unscorable = getattr(prm, "unscorable", lambda text: None)
    reasons = [next(filter(None, map(unscorable, response.steps)), None) for response in responses]
    rejected = Counter(reason for reason in reasons if reason)
    kept = [response for response, reason in zip(responses, reasons, strict=True) if reason is None]
    if hasattr(prm, "score_steps"):
        found = prm.score_steps([(response.problem, response.steps) for response in kept], describe=describe)
        return [ScoredResponse(r, scores.values) for r, scores in zip(kept, found, strict=True)], rejected
    scored = []
    for response in kept:
        (scores,) = prm.score(response.problem, [BLANK_LINE.join(map(_closed_up, response.steps))])
        if len(scores.values) == len(response.steps):
            scored.append(ScoredResponse(response, scores.values))
        else:
            rejected["the PRM gave another number of scores"] += 1
    return scored, rejected


def _closed_up(step: str) -> str:
    return "\n".join(part.text for part in split_on_blank_lines(step))
