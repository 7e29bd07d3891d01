"""Small but real run folders for the tests of best-of-N, summary and report: random images, groups, pairs, logs."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from recipes.answering.best_of_n import best_of_n
from recipes.config import BestOfNConfig
from recipes.stage.folder import open_stage
from recipes.stage.groups import read_problems, write_groups, write_problems
from rewards.interchange.trl_rows import write_trl_parquet
from rewards.pairing.limits import Limits
from rewards.pairing.rules import build_pairs
from rewards.pairing.spans import RejectedSpan
from rewards.types import (
    Completion,
    FinishReason,
    MonteCarloCount,
    Problem,
    Rollout,
    RolloutGroup,
    StepScores,
    Unseen,
    Verdict,
)

C, W, U = Verdict.CORRECT, Verdict.WRONG, Verdict.UNPARSABLE
RIGHT, WRONG = 0.8, 0.45  # where made-up PRM scores lie


@dataclass
class Made:
    """Settings of a stage that a test made by hand."""

    out: Path
    seed: int = 0


def write_stage(
    folder: Path, groups: list[RolloutGroup], problems: Path, *, name: str = "made", **extra: object
) -> Path:
    stage = open_stage(name, Made(folder), inputs=[])
    write_groups(stage.out, groups)
    total = sum(len(group.rollouts) for group in groups)
    return stage.finish({"in": total, "out": total, "rejected": {}, "problems": str(problems), **extra})


def make_problems(
    folder: Path,
    name: str,
    count: int,
    rng: random.Random,
    *,
    question: str = "What is the sum?",
    corpus: Sequence[str] = (),
    size: tuple[int, int] = (64, 32),
) -> Path:
    """Problems with random images; with a corpus, each of its texts in turn is question, answer and part of an id."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    problems = []
    for index in range(count):
        pixels = np.random.default_rng(rng.randrange(2**32)).integers(0, 255, (8, 16, 3), dtype=np.uint8)
        path = folder / "images" / f"{name}-{index}.png"
        Image.fromarray(pixels).resize(size).save(path)
        text = corpus[index % len(corpus)] if corpus else ""
        problems.append(Problem(f"{name}-{index:03d}{text}", text or question, (path,), text or str(10 + index % 7)))
    write_problems(folder / f"{name}.jsonl", problems)
    return folder / f"{name}.jsonl"


def rollout(
    problem: Problem, right: bool, rng: random.Random, *, wording: str = "", truncated: bool = False
) -> Rollout:
    reference = problem.answer or ""
    answer = (int(reference) if re.fullmatch("[0-9]+", reference) else 12) + (0 if right else rng.choice((-1, 1, 2)))
    a = rng.randrange(answer)
    steps = [f"First is {a}{wording}", f"Second is {answer - a}", f"{a} + {answer - a} = {answer}"]
    if truncated:
        return Rollout(Completion("\n\n".join(steps), FinishReason.LENGTH, 64), U)
    return Rollout(Completion("\n\n".join([*steps, f"Final answer: {answer}"]), num_tokens=20), C if right else W)


def scored(rollout: Rollout, rng: random.Random) -> Rollout:
    centre = RIGHT if rollout.verdict is C else WRONG
    count = len([step for step in rollout.completion.text.split("\n\n") if step.strip()])
    if not count:
        return rollout
    values = tuple(round(min(1.0, max(0.0, rng.gauss(centre, 0.2))), 4) for _ in range(count))
    return rollout.with_(step_scores=StepScores(values), reward=sum(values) / count)


def make_groups(problems: Path, samples: int, accuracy: float, rng: random.Random) -> list[RolloutGroup]:
    return [
        RolloutGroup(
            problem,
            tuple(
                rollout(problem, rng.random() < accuracy, rng, truncated=rng.random() < 0.03) for _ in range(samples)
            ),
        )
        for problem in read_problems(problems).values()
    ]


def stating(groups: list[RolloutGroup]) -> list[RolloutGroup]:
    """The same responses with an answer stated early on, so that a continuation that is cut soon can be checked too."""

    def stated(rollout: Rollout) -> Rollout:
        first, blank, rest = rollout.completion.text.partition("\n\n")
        return rollout.with_(completion=replace(rollout.completion, text=f"{first}\nAnswer: 0{blank}{rest}"))

    return [replace(group, rollouts=tuple(map(stated, group.rollouts))) for group in groups]


def score_all(groups: list[RolloutGroup], rng: random.Random) -> list[RolloutGroup]:
    return [replace(group, rollouts=tuple(scored(rollout, rng) for rollout in group.rollouts)) for group in groups]


def without_picture(group: RolloutGroup, fall: float) -> RolloutGroup:
    """The group, scored with a blank and with another image too: every score is lower by `fall` there."""

    def fallen(rollout: Rollout) -> Rollout:
        if rollout.step_scores is None or rollout.reward is None:
            return rollout
        scores = StepScores(tuple(max(0.0, value - fall) for value in rollout.step_scores.values))
        other = Unseen(scores, rollout.reward - fall)
        return rollout.with_(blank=other, swapped=other)

    return replace(group, rollouts=tuple(map(fallen, group.rollouts)))


def unscored_without_picture(group: RolloutGroup) -> RolloutGroup:
    return replace(group, rollouts=tuple(r.with_(blank=None, swapped=None) for r in group.rollouts))


def with_others(groups: list[RolloutGroup], rng: random.Random) -> list[RolloutGroup]:
    """Scored with other images too, as a PRM that looks would: every answer as a wrong one."""

    def both(rollout: Rollout) -> Rollout:
        found = [scored(rollout.with_(verdict=W), rng) for _ in range(2)]
        blank, swapped = (Unseen(r.step_scores, r.reward) if r.step_scores else None for r in found)
        return rollout.with_(blank=blank, swapped=swapped)

    return [replace(group, rollouts=tuple(map(both, group.rollouts))) for group in groups]


def with_counts(groups: list[RolloutGroup], rng: random.Random) -> list[RolloutGroup]:
    def counted(rollout: Rollout) -> Rollout:
        steps = len(rollout.completion.text.split("\n\n"))
        return rollout.with_(mc=tuple(MonteCarloCount(rng.randint(0, 4), 4) for _ in range(steps)))

    return [replace(group, rollouts=tuple(counted(rollout) for rollout in group.rollouts)) for group in groups]


def make_run(
    run: Path,
    *,
    seed: int = 0,
    problems: int = 12,
    samples: int = 4,
    ks: tuple[int, ...] = (1, 2, 4),
    question: str = "What is the sum?",
    hostile: str | None = None,
    corpus: Sequence[str] = (),
    size: tuple[int, int] = (64, 32),
    preference_problems: int = 6,
    optional: bool = True,
) -> Path:
    """A whole run: test arms, pairs, labelled steps, logs.

    `hostile` is a text that models, too, have written; of a `corpus` every text is question, answer, id and response.
    """
    rng = random.Random(seed)
    test = make_problems(run / "world", "test", problems, random.Random(0), question=question, corpus=corpus, size=size)
    preference = make_problems(
        run / "world", "preference", preference_problems, rng, question=question, corpus=corpus, size=size
    )
    for arm, accuracy in [("policy", 0.45), ("mpo", 0.7)] + ([("dpo", 0.6)] if optional else []):
        folder = run / "test" / arm
        write_stage(folder / "greedy", make_groups(test, 1, accuracy, rng), test, name="verify")
        write_stage(folder / "swapped", make_groups(test, 1, 0.1, rng), test, name="verify")
        groups = [_invaded(g, hostile, corpus) for g in make_groups(test, samples, accuracy, rng)]
        if arm == "dpo":
            write_stage(folder / "verified", groups, test, name="verify")
            continue
        write_stage(folder / "scored", with_others(score_all(groups, rng), rng), test, name="score")
        best_of_n(BestOfNConfig(folder / "scored", folder / "best_of_n", list(ks)))
    made = score_all([_invaded(g, None, corpus) for g in make_groups(preference, samples, 0.5, rng)], rng)
    write_stage(run / "preference" / "scored", made, preference, name="score")
    limits = Limits(max_pairs=2, rejected_span=RejectedSpan("first_bad_step"))
    pairs, report = build_pairs(made, limits=limits)
    folder = open_stage("pairs", Made(run / "pairs"), inputs=[]).out
    write_trl_parquet(pairs, folder / "pairs.parquet")
    (folder / "report.json").write_text(json.dumps(asdict(report)))
    open_stage("pairs", Made(folder), inputs=[]).finish({"pairs": report.pairs})
    write_stage(run / "prm_labelled", with_counts(make_groups(preference, 2, 0.5, rng), rng), preference, name="label")
    _log(run / "mpo", rng)
    return run


def _invaded(group: RolloutGroup, hostile: str | None, corpus: Sequence[str]) -> RolloutGroup:
    """The group with its first response replaced by hostile text, if there is any."""
    text = (group.problem.answer or "") if corpus else hostile
    if text is None:
        return group
    first = Rollout(Completion(f"{text}\n\nFinal answer: {text} {group.problem.id}"), W)
    return replace(group, rollouts=(first, *group.rollouts[1:]))


def _log(folder: Path, rng: random.Random) -> None:
    folder.mkdir(parents=True)
    parts = ("loss/preference", "loss/quality", "loss/generation", "rewards/chosen", "rewards/rejected")
    rows: list[dict[str, float]] = []
    for step in range(10, 210, 10):
        values = {name: rng.gauss(0.5, 0.03) * 50 / (50 + step) for name in parts}
        margins = {"rewards/margins": step / 100, "rewards/accuracies": 0.5 + step / 500, "bco/delta": step / 400}
        rows.append({"step": step, "loss": sum(values.values()), **values, **margins})
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": [*rows, {"step": 200, "train_loss": 0.5}]}))
