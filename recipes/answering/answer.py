"""`mpo answer`: one question, N responses, and the one that the PRM or a vote chooses. Nothing is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mpo.multimodal.errors import ConfigError
from recipes.config import AnswerConfig, SampleConfig
from recipes.stage.exclusive import a_prm_to_choose, a_prm_with_spreads
from recipes.stage.policies import checked_params, generator_of
from recipes.stage.prms import prm_of
from rewards.choosing.best_of_n import Answer, BestOfN
from rewards.choosing.selection import CHOICES
from rewards.choosing.votes import BY_REWARD, VoteWeight
from rewards.prm.model_prm import has_head
from rewards.sampling.prompts import prompt_of
from rewards.scoring.aggregation import AGGREGATIONS


def answer(config: AnswerConfig, *, console: Console | None = None) -> Answer:
    """Answer a question; print the answer, the responses that it was chosen from, and its cost.

    Raises:
        ConfigError: settings that cannot work; everything is checked before a model is loaded.
    """
    if config.aggregation not in AGGREGATIONS or config.selector not in CHOICES:
        raise ConfigError(
            f"expected aggregation of {', '.join(AGGREGATIONS)} and selector of {', '.join(CHOICES)}, "
            f"got {config.aggregation!r} and {config.selector!r}"
        )
    weight = VoteWeight(config.vote_weight, config.vote_power)
    if weight != BY_REWARD and config.selector != "weighted_vote":
        raise ConfigError(f"vote_weight and vote_power are of selector weighted_vote, not of {config.selector}")
    a_prm_to_choose(config)
    a_prm_with_spreads(config)
    if config.selector == "lower_bound" and config.prm is not None and not has_head(config.prm):
        raise ConfigError(
            f"selector lower_bound needs a PRM that tells the spread of its scores, and {config.prm} has no "
            "concentration head: choose by prm, or train one with `mpo train-prm --loss binomial --concentration_head`"
        )
    prompt = prompt_of(config.prompt, system=config.system)
    sampling = SampleConfig(
        problems=Path(),
        out=Path(),
        policy=config.policy,
        base_url=config.base_url,
        model=config.model,
        num_samples=config.n,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        max_new_tokens=config.max_new_tokens,
    )
    generator = generator_of(sampling, checked_params(sampling), config.wave if config.error is not None else config.n)
    prm = None
    if config.prm is not None:
        prm = prm_of(config.prm, base_url=config.prm_base_url, model=config.prm_model, read=config.prm_read)
    chooser = BestOfN(
        generator,
        prm,
        aggregation=config.aggregation,
        vote_weight=weight,
        pessimism=config.pessimism,
        wave=config.wave,
        prompt=prompt,
    )
    found = chooser.answer(
        config.image, config.question, config.n, selector=config.selector, error=config.error, seed=config.seed
    )
    if config.json:
        print(json.dumps(as_json(found), ensure_ascii=False))
    else:
        _show(found, console or Console())
    return found


def as_json(found: Answer) -> dict[str, Any]:
    """The answer as JSON values."""
    return {
        "text": found.text,
        "final_answer": found.final_answer,
        "index": found.index,
        "candidates": [rollout.completion.text for rollout in found.candidates],
        "rewards": list(found.rewards),
        "step_scores": [list(scores.values) if scores else None for scores in found.step_scores],
        "step_score_spreads": [
            list(scores.spreads) if scores and scores.spreads is not None else None for scores in found.step_scores
        ],
        "tokens": found.tokens,
        "may_change": found.may_change,
    }


def _show(found: Answer, console: Console) -> None:
    table = Table("", "reward", "lowest step", "tokens", "response", box=None)
    for index, (rollout, scores) in enumerate(zip(found.candidates, found.step_scores, strict=True)):
        table.add_row(
            f"{'→' if index == found.index else ' '} {index}",
            "not scored" if rollout.reward is None else f"{rollout.reward:.3f}",
            f"{min(scores.values):.3f}" if scores else "",
            str(rollout.completion.num_tokens or "?"),
            escape(" ".join(rollout.completion.text.split())[:60]),
        )
    console.print(table)
    console.print(escape(found.text))
    cost = f"{len(found.candidates)} responses, {found.tokens if found.tokens is not None else 'unknown'} tokens"
    chance = (
        "" if found.may_change is None else f"; more would change the answer with probability {found.may_change:.3f}"
    )
    console.print(f"final answer: {escape(found.final_answer or 'none')} ({cost}{chance})")
