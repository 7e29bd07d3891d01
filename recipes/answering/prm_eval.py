"""`mpo prm-eval`: a process reward model against step labels that it was not trained on.

Three kinds of labels: VisualProcessBench and ProcessBench from local files, and groups whose steps are labelled
(`mpo label-exact`, `mpo label-steps`). Every number is given at a threshold chosen on development problems and at a
fixed one, on the other problems. `results.json` holds them, `scores.jsonl` every score behind them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from mpo.multimodal.errors import ConfigError, DataError
from mpo.multimodal.files import write_atomic
from recipes.config import PRMEvalConfig
from recipes.stage.folder import open_stage
from recipes.stage.groups import read_groups
from recipes.stage.kept_images import KeptImages
from recipes.stage.numbers import Header, Rows, interval, rich_table, signed
from recipes.stage.prms import prm_of
from rewards.interchange.processbench import read_processbench
from rewards.interchange.visualprocessbench import read_visualprocessbench
from rewards.prm.evaluating.benchmark import BenchmarkResponse, ScoredResponse, choose_threshold, in_development
from rewards.prm.evaluating.benchmark_metrics import evaluate, image_drop
from rewards.prm.evaluating.given_steps import score_given_steps
from rewards.prm.formats import format_files
from rewards.scoring.other_images import blanked, partners, showing
from rewards.scoring.process_reward_model import ProcessRewardModel
from rewards.steps import split_into
from rewards.types import Problem

Read = tuple[list[BenchmarkResponse], Counter[str]]
RESULTS, SCORES = "results.json", "scores.jsonl"
UNKNOWN_SOURCE = "groups"


def prm_eval(config: PRMEvalConfig) -> Path:
    """Score the benchmark, choose the threshold on the development split, write and print the numbers.

    Raises:
        ConfigError: an unknown kind, or a share or threshold outside its range.
        DataError: a split is empty, or the development split does not hold right and wrong steps.
    """
    more = [*([config.development] if config.development else []), *format_files(config.prm_format)]
    stage = open_stage("prm-eval", config, inputs=[config.benchmark, config.prm, *more])
    if stage.complete:
        return stage.out
    _check(config)
    responses, rejected = read(config, config.benchmark)
    others, leaked = _development_file(config, responses)
    prm = prm_of(
        config.prm,
        prm_format=config.prm_format,
        batch_rows=config.batch_rows,
        base_url=config.base_url,
        model=config.model,
        read=config.read,
        concurrency=config.concurrency,
    )
    scored, unscored = score_given_steps([*responses, *others], prm, describe="score")
    chosen_on, test = _split(config, scored, {response.problem.id for response in others})
    results = {
        "kind": config.kind,
        **measure(chosen_on, test, objective=OBJECTIVES[config.kind], fixed=config.fixed_threshold),
        "merged": sum(len(one.scores) > prm.format.max_steps for one in scored),
    }
    for name, other in canaries(config, [one.response.problem for one in test]).items():
        results[name] = without_picture(test, prm, other, results["threshold"]["chosen"], config.batch_rows)
    write_atomic(stage.out / RESULTS, json.dumps(results, indent=1, allow_nan=False) + "\n")
    development_ids = {one.response.problem.id for one in chosen_on}
    lines = [json.dumps(_row(one, one.response.problem.id in development_ids)) + "\n" for one in scored]
    write_atomic(stage.out / SCORES, "".join(lines))
    Console().print(rich_table(f"{config.kind}, {len(test)} test responses", *table(results)))
    reasons = rejected + leaked + unscored
    counts = {"in": len(scored) + reasons.total(), "out": len(scored), "rejected": dict(reasons)}
    auc = results["test"]["auc"]
    note = f"AUC {interval(auc)} on {len(test)} test responses" if auc else f"{len(test)} test responses"
    sizes = {"development": len(chosen_on), "test": len(test), "merged": results["merged"]}
    return stage.finish({**counts, **sizes}, note=note)


def read(config: PRMEvalConfig, path: Path) -> Read:
    """The responses of a file or folder of the config's kind, and reason → number of rows that are none."""
    responses, rejected = READERS[config.kind](config, path)
    if config.until_first_error:
        responses = [replace(response, labels=response.until_first_error()) for response in responses]
    return responses, rejected


def measure(
    development: Sequence[ScoredResponse], test: Sequence[ScoredResponse], *, objective: str, fixed: float
) -> dict[str, Any]:
    """The chosen threshold, and the test problems' numbers at it and at the fixed one."""
    chosen, value = choose_threshold(development, objective=objective)
    return {
        "threshold": {"chosen": chosen, "objective": objective, "development_value": value, "fixed": fixed},
        "development_responses": len(development),
        "test": evaluate(test, threshold=chosen),
        "test_at_fixed": evaluate(test, threshold=fixed),
    }


def canaries(config: PRMEvalConfig, problems: Sequence[Problem]) -> dict[str, Callable[[Problem], Problem]]:
    """Name → problem with images that do not belong to it."""
    distinct = list({problem.id: problem for problem in problems}.values())
    asked: dict[str, Callable[[Problem], Problem]] = {}
    if config.blank_images:
        asked["blank"] = blanked
    if config.swap_images:
        partner = dict(zip((problem.id for problem in distinct), partners(distinct), strict=True))

        def shown(problem: Problem) -> Problem:
            other = partner[problem.id]
            return problem if other is None else showing(problem, distinct[other])

        asked["swapped"] = shown
    return asked


def without_picture(
    test: Sequence[ScoredResponse],
    prm: ProcessRewardModel,
    other: Callable[[Problem], Problem],
    threshold: float,
    batch: int,
) -> dict[str, Any] | None:
    """The drop on the responses whose images `other` changes; `None` if there are none.

    One batch at a time, so that blank images of a whole benchmark need not fit in memory.
    """
    seen: list[ScoredResponse] = []
    unseen: list[ScoredResponse] = []
    for start in range(0, len(test), batch):
        part = test[start : start + batch]
        problems = {one.response.problem.id: other(one.response.problem) for one in part}
        part = [one for one in part if problems[one.response.problem.id].images != one.response.problem.images]
        asked = [replace(one.response, problem=problems[one.response.problem.id]) for one in part]
        found, rejected = score_given_steps(asked, prm)
        assert not rejected, rejected  # their steps have been scored before
        seen += part
        unseen += [ScoredResponse(one.response, b.scores) for one, b in zip(part, found, strict=True)]
    return image_drop(seen, unseen, threshold=threshold) if seen else None


def table(results: dict[str, Any]) -> tuple[Header, Rows]:
    """One row per number, in per cent: at the chosen threshold and at the fixed one."""
    sides = [results["test"], results["test_at_fixed"]]
    header = ["", *(f"threshold {side['threshold']:.3f}" for side in sides)]
    rows = [
        [f"macro-F1, {how.replace('_', ' ')}", *(interval(side["macro_f1"][how]) for side in sides)]
        for how in sides[0]["macro_f1"]
    ]
    for source in sides[0]["per_source"]:
        rows.append([f"  {source}", *(interval(side["per_source"][source]["macro_f1"]) for side in sides)])
    for label, key in (("F1 of right steps", "f1_right"), ("F1 of wrong steps", "f1_wrong")):
        rows.append([label, *(interval(side[key]) for side in sides)])
    rows.append(["first-error F1, pooled", *(interval(side["first_error"]["f1"]["pooled"]) for side in sides)])
    rows.append(["first-error accuracy", *(interval(side["first_error"]["accuracy"]) for side in sides)])
    for label, key in (("AUC", "auc"), ("AUC within a problem", "within_problem_auc")):
        rows.append([label, interval(sides[0][key]), "the same"])
    rows.append(["calibration error", f"{100 * sides[0]['calibration']['ece']:.1f}", "the same"])
    for name in ("blank", "swapped"):
        if found := results.get(name):
            rows.append([f"macro-F1 lost, {name} image", signed(found["macro_f1"]) if found["macro_f1"] else "–", ""])
            rows.append([f"score of right steps lost, {name}", signed(found["score"]) if found["score"] else "–", ""])
            lost = found["within_problem_auc"]
            rows.append([f"AUC within a problem lost, {name}", signed(lost) if lost else "–", ""])
    return header, rows


def _check(config: PRMEvalConfig) -> None:
    if config.kind not in READERS:
        raise ConfigError(f"unknown kind {config.kind!r}: expected one of {', '.join(READERS)}")
    for name in ("development_share", "fixed_threshold"):
        if not 0.0 < getattr(config, name) < 1.0:
            raise ConfigError(f"{name} must be in (0, 1), got {getattr(config, name)}")
    if config.batch_rows < 1:
        raise ConfigError(f"batch_rows must be at least 1, got {config.batch_rows}")


def _development_file(config: PRMEvalConfig, responses: Sequence[BenchmarkResponse]) -> Read:
    """The development file's responses, without problems that the benchmark holds too, and what was rejected."""
    if config.development is None:
        return [], Counter()
    found, rejected = read(config, config.development)
    tested = {response.problem.id for response in responses}
    kept = [response for response in found if response.problem.id not in tested]
    rejected["development problem that is in the benchmark too"] = len(found) - len(kept)
    return kept, +rejected


def _split(
    config: PRMEvalConfig, scored: Sequence[ScoredResponse], from_file: set[str]
) -> tuple[list[ScoredResponse], list[ScoredResponse]]:
    """Development and test responses; no problem is on both sides."""

    def develops(one: ScoredResponse) -> bool:
        if config.development is not None:
            return one.response.problem.id in from_file
        return in_development(one.response.problem.id, share=config.development_share, seed=config.seed)

    development, test = [one for one in scored if develops(one)], [one for one in scored if not develops(one)]
    if not development or not test:
        raise DataError(
            f"{len(development)} development and {len(test)} test responses: expected some of both; "
            "change development_share or seed, or give another development file"
        )
    return development, test


def _labelled_groups(config: PRMEvalConfig, path: Path) -> Read:
    """A step is right if mc > 0, as in PRM training; rollouts without counts are rejected."""
    responses: list[BenchmarkResponse] = []
    rejected: Counter[str] = Counter()
    for group in read_groups(path):
        source = str(group.problem.meta.get(config.source_key, UNKNOWN_SOURCE))
        for index, rollout in enumerate(group.rollouts):
            if rollout.mc is None:
                rejected["no step labels"] += 1
                continue
            steps = tuple(step.text for step in split_into(rollout.completion.text, len(rollout.mc)))
            labels = tuple(None if count is None else count.correct > 0 for count in rollout.mc)
            responses.append(BenchmarkResponse(f"{group.problem.id}/{index}", group.problem, steps, labels, source))
    if not responses:
        raise DataError(
            f"no rollout in {path} has step labels ({dict(rejected)}); run `mpo label-exact` or label-steps"
        )
    return responses, rejected


def _row(one: ScoredResponse, development: bool) -> dict[str, Any]:
    response = one.response
    return {
        "id": response.id,
        "problem_id": response.problem.id,
        "source": response.source,
        "generator": response.generator,
        "split": "development" if development else "test",
        "labels": response.labels,
        "scores": one.scores,
    }


READERS: dict[str, Callable[[PRMEvalConfig, Path], Read]] = {
    "visualprocessbench": lambda config, path: read_visualprocessbench(
        path, image_root=config.image_root, keep=KeptImages(config.out / "images").kept
    ),
    "processbench": lambda config, path: read_processbench(path),
    "groups": _labelled_groups,
}
OBJECTIVES = {"visualprocessbench": "macro_f1", "processbench": "first_error_f1", "groups": "macro_f1"}
