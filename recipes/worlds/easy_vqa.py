"""`mpo easy-vqa`: the problems of the package easy-vqa (V. Zhou, MIT), split by image, and an untrained tiny policy.

A real set that nobody here drew: 4,000 images with 38,575 questions to train on, 1,000 images with 9,673 questions
to test on (https://github.com/vzhou842/easy-VQA). An image shows one shape in one color; the 13 answers are shapes,
colors, yes and no. Answers are checked by the verifier `exact`.

The set has no worked answers. A demonstration names shape and color before it answers, each as a step, where the
set's own answers about that image give both; its other images are not demonstrated. The train images are cut in
four before anything else, so an image seen in one stage never occurs in another; the test split is the package's.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from mpo.multimodal.errors import ConfigError, DataError
from recipes.config import EasyVQAConfig
from recipes.stage.folder import open_stage
from recipes.stage.groups import write_groups, write_problems
from recipes.worlds.digits.policy import build_policy
from recipes.worlds.files import FIXED_SEED, on_disk, said_counts
from rewards.types import Completion, Problem, Rollout, RolloutGroup, Verdict

SHARES = {"warm_start": 0.4, "prm": 0.25, "preference": 0.25, "development": 0.1}  # of the train images
SHAPES = ("circle", "rectangle", "triangle")
COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
WORDINGS = {"shape": ("The shape is a {}.", "I see a {}."), "color": ("Its color is {}.", "It is {}.")}


@dataclass(frozen=True)
class Question:
    """One row of the package: `split` ("train" or "test") and `image` name the image."""

    text: str
    answer: str
    split: str
    image: int


def compose(config: EasyVQAConfig) -> Path:
    """Write `<split>.jsonl` with images, demonstrated answers for the warm start, and `policy/`."""
    stage = open_stage("easy-vqa", config, inputs=[])
    if stage.complete:
        return stage.out
    questions, pictures = load_package()
    (stage.out / "images").mkdir(exist_ok=True)
    counts = {}
    for split, pool in split_by_picture(questions).items():
        if split == "warm_start":
            pool = [q for q in pool if facts_of(questions[q.split, q.image]).keys() == WORDINGS.keys()]
        rng = random.Random(f"easy-vqa:{split}:{FIXED_SEED.get(split, config.seed)}")
        chosen = rng.sample(pool, min(getattr(config, f"num_{split}"), len(pool)))
        problems = [
            on_disk(_problem(question, f"{split}-{i:05d}", pictures[question.split][question.image]), stage.out)
            for i, question in enumerate(chosen)
        ]
        write_problems(stage.out / f"{split}.jsonl", problems)
        counts[split] = len(problems)
        if split == "warm_start":
            facts = [facts_of(questions[q.split, q.image]) for q in chosen]
            write_groups(stage.out, _demonstrations(problems, facts, config))
    build_policy(stage.out / "policy", seed=config.seed, corpus=corpus(questions))
    return stage.finish({**counts, "problems": str(stage.out / "warm_start.jsonl")}, note=said_counts(counts))


def load_package() -> tuple[dict[tuple[str, int], list[Question]], dict[str, dict[int, str]]]:
    """The questions of each image, (split, image) → questions; and the images, split → image → path.

    Raises:
        ConfigError: the package is not installed.
    """
    try:
        import easy_vqa
    except ImportError as error:
        raise ConfigError(f"easy-vqa needs the extra: pip install -e '.[easy-vqa]' ({error})") from error

    rows = {"train": easy_vqa.get_train_questions(), "test": easy_vqa.get_test_questions()}
    questions = defaultdict(list)
    for split, columns in rows.items():
        for text, answer, image in zip(*columns, strict=True):
            questions[split, image].append(Question(text, answer, split, image))
    return dict(questions), {"train": easy_vqa.get_train_image_paths(), "test": easy_vqa.get_test_image_paths()}


def split_by_picture(questions: dict[tuple[str, int], list[Question]]) -> dict[str, list[Question]]:
    """Split → its questions: the train images in a fixed order, cut in four, and the package's test split."""
    train, test = (sorted(key for key in questions if key[0] == split) for split in ("train", "test"))
    random.Random("easy-vqa").shuffle(train)
    pools, start = {}, 0
    for split, share in SHARES.items():
        end = start + round(share * len(train))
        pools[split] = train[start:end]
        start = end
    return {split: [q for key in keys for q in questions[key]] for split, keys in {**pools, "test": test}.items()}


def facts_of(questions: list[Question]) -> dict[str, str]:
    """What the questions and answers about one image tell about it: "shape" and "color", where they do.

    An answer that is a shape or a color tells it; so does a question that takes one for granted ("what color is the
    circle?"), and one that asks for one and is affirmed.

    Raises:
        DataError: two of them contradict each other.

    Example:
        >>> rows = [("what color is the circle?", "teal"), ("is there not a red shape?", "yes")]
        >>> facts_of([Question(text, answer, "train", 0) for text, answer in rows])
        {'shape': 'circle', 'color': 'teal'}
    """
    said: dict[str, set[str]] = {"shape": set(), "color": set()}
    for question in questions:
        words = question.text.rstrip("?").split()
        negated = "not" in words or "no" in words
        holds = {"yes": not negated, "no": negated}.get(question.answer, True)
        for word in [question.answer, *(words if holds else ())]:
            said["shape"].update({word} & set(SHAPES))
            said["color"].update({word} & set(COLORS))
    if any(len(found) > 1 for found in said.values()):
        raise DataError(f"easy-vqa, image {questions[0].split} {questions[0].image}: {said} contradict each other")
    return {name: found.pop() for name, found in said.items() if found}


def solution(facts: dict[str, str], answer: str, rng: random.Random) -> str:
    """Shape and color in either order and wording, then the answer: with blank lines between the steps."""
    steps = [rng.choice(WORDINGS[name]).format(fact) for name, fact in facts.items()]
    rng.shuffle(steps)
    return "\n\n".join([*steps, f"Final answer: {answer}"])


def corpus(questions: dict[tuple[str, int], list[Question]]) -> list[str]:
    """Text from which the tokenizer learns its words: the train questions and demonstrations of every fact."""
    rng = random.Random(0)
    texts = sorted({q.text for rows in questions.values() for q in rows if q.split == "train"})
    answers = ("yes", "no", *SHAPES, *COLORS)
    facts = [{"shape": shape, "color": color} for shape in SHAPES for color in COLORS]
    return [*texts, *(solution(fact, answer, rng) for fact in facts for answer in answers)]


def _problem(question: Question, identifier: str, picture: str) -> Problem:
    meta = {"verifier": "exact", "image": f"{question.split}/{question.image}"}
    return Problem(identifier, question.text, (picture,), question.answer, meta)


def _demonstrations(problems: list[Problem], facts: list[dict[str, str]], config: EasyVQAConfig) -> list[RolloutGroup]:
    rng = random.Random(f"demonstrations:{config.seed}")
    groups = []
    for problem, fact in zip(problems, facts, strict=True):
        assert problem.answer is not None
        texts = {solution(fact, problem.answer, rng): None for _ in range(config.solutions)}
        rollouts = tuple(Rollout(Completion(text), verdict=Verdict.CORRECT) for text in texts)
        groups.append(RolloutGroup(problem, rollouts))
    return groups
