"""The PRM as TRL's reward function: the values are the PRM's own, in a real GRPO run with images."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image
from trl import GRPOConfig, GRPOTrainer

from mpo.multimodal.errors import ConfigError, DataError
from mpo.multimodal.loading import load_model, load_processor
from recipes.worlds.digits.world import scenes, to_problem
from rewards.prm.formats import STEP_END, VISUALPRM
from rewards.prm.model_prm import ModelPRM
from rewards.prm.reward_function import PRMReward, problem_of, text_of
from rewards.scoring.aggregation import aggregate
from rewards.types import Problem
from tests.rewards.scripted import RulePRM

PROBLEMS = [to_problem(scene, f"p{i}") for i, scene in enumerate(scenes("test", 4, 5))]
TEXTS = ["Red is 3\n\nBlue is 9\n\nFinal answer: 12", "Final answer: 3"]


def conversation(problem: Problem, *, filled: bool) -> list[dict[str, Any]]:
    """A prompt as TRL hands it over (images in their blocks), or as the data set holds it (empty blocks)."""
    blocks = [{"type": "image", "image": image} if filled else {"type": "image"} for image in problem.images]
    return [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [*blocks, {"type": "text", "text": problem.question}]},
    ]


def answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


@pytest.mark.parametrize("how", ["mean", "min"])
def test_rewards_are_the_prms_own_scores(policy: Any, processor: Any, how: str) -> None:
    prm = ModelPRM(policy, processor, VISUALPRM, batch_rows=3)
    items = [(problem, text) for problem in PROBLEMS for text in TEXTS]
    expected = [aggregate(prm.score(problem, [text])[0], how=how) for problem, text in items]
    assert len({round(value, 6) for value in expected}) == len(expected)
    reward = PRMReward(prm, how=how)
    completions = [answer(text) for _, text in items]
    filled = [conversation(problem, filled=True) for problem, _ in items]
    empty = [conversation(problem, filled=False) for problem, _ in items]
    images = [list(problem.images) for problem, _ in items]
    assert reward(filled, completions, images=images, answer=["7"] * 8) == pytest.approx(expected, abs=1e-5)
    assert reward(filled, completions) == pytest.approx(expected, abs=1e-5)
    assert reward(empty, completions, images=images) == pytest.approx(expected, abs=1e-5)
    one_each = [row[0] for row in images]
    assert reward(empty, completions, image=one_each) == pytest.approx(expected, abs=1e-5)


def test_plain_text_rows(policy: Any, processor: Any) -> None:
    prm = ModelPRM(policy, processor, STEP_END)
    problem = Problem("", "What is 5 + 7?")
    expected = [aggregate(scores) for scores in prm.score(problem, TEXTS)]
    assert PRMReward(prm)([problem.question] * 2, TEXTS) == pytest.approx(expected, abs=1e-5)
    as_turns = [[{"role": "user", "content": problem.question}]] * 2
    assert PRMReward(prm)(as_turns, [answer(text) for text in TEXTS]) == pytest.approx(expected, abs=1e-5)


def test_what_cannot_be_scored_says_nothing(policy: Any, processor: Any) -> None:
    texts = ["", TEXTS[0], " \n", "Red<|im_end|>"]
    found = PRMReward(ModelPRM(policy, processor, VISUALPRM))(["What is 5 + 7?"] * 4, texts)
    assert [value is None for value in found] == [True, False, True, True]


def test_any_prm_will_do() -> None:
    """One that has `score` and nothing else, here 1 for a step with an 8."""
    prm = RulePRM(lambda step: float("8" in step))
    assert PRMReward(prm)(["?", "?", "!"], ["8\n\n9", "9", "8"]) == [0.5, 0.0, 1.0]
    assert prm.scored == ["8\n\n9", "9", "8"]


def test_refusals(policy: Any, processor: Any) -> None:
    with pytest.raises(ConfigError, match="unknown aggregation 'avg'"):
        PRMReward(ModelPRM(policy, processor, VISUALPRM), how="avg")
    picture = Image.new("RGB", (8, 8))
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}
    with pytest.raises(DataError, match=r"got \['user', 'assistant', 'user'\]"):
        problem_of([turn, *answer("4"), turn], [picture])
    with pytest.raises(DataError, match="1 image blocks but 0 images"):
        problem_of([turn])
    with pytest.raises(DataError, match="1 image blocks but 2 images"):
        problem_of([turn], [picture, picture])
    with pytest.raises(DataError, match=r"is the path '/etc/passwd'.*nothing is opened"):
        problem_of([turn], ["/etc/passwd"])
    with pytest.raises(DataError, match="one turn, got 2"):
        text_of([*answer("a"), *answer("b")])
    with pytest.raises(ValueError, match="zip"):
        PRMReward(ModelPRM(policy, processor, VISUALPRM))(["?"], ["a", "b"])


class Recorded(PRMReward):
    """Keeps what TRL gave and got."""

    def __call__(self, prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
        rewards = super().__call__(prompts, completions, **columns)
        self.calls = [*getattr(self, "calls", []), (prompts, completions, rewards)]
        return rewards


def test_two_steps_of_grpo_with_pictures(tmp_path: Path, policy_folder: Path) -> None:
    columns = {
        "prompt": [[{"role": "user", "content": problem.question}] for problem in PROBLEMS],
        "images": [list(problem.images) for problem in PROBLEMS],
    }
    features = datasets.Features(
        {
            "prompt": datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")}),
            "images": datasets.List(datasets.Image()),
        }
    )
    prm = ModelPRM(load_model(policy_folder).eval(), load_processor(policy_folder), VISUALPRM)
    reward = Recorded(prm)
    arguments = GRPOConfig(
        str(tmp_path), per_device_train_batch_size=4, num_generations=2, max_completion_length=8, max_steps=2,
        learning_rate=1e-3, logging_steps=1, save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    trainer = GRPOTrainer(
        load_model(policy_folder),
        reward_funcs=reward,
        args=arguments,
        train_dataset=datasets.Dataset.from_dict(columns, features=features),
        processing_class=load_processor(policy_folder),
    )
    trainer.train()

    logs = [row for row in trainer.state.log_history if "reward" in row]
    assert len(logs) == len(reward.calls) == 2
    by_pixels = {image.tobytes(): problem for problem in PROBLEMS for image in problem.images}
    for row, (prompts, completions, rewards) in zip(logs, reward.calls, strict=True):
        assert row["rewards/Recorded/mean"] == pytest.approx(math.fsum(rewards) / 4, abs=1e-5)
        for prompt, completion, value in zip(prompts, completions, rewards, strict=True):
            problem = by_pixels[prompt[0]["content"][0]["image"].convert("RGB").tobytes()]
            (scores,) = prm.score(problem, [completion[0]["content"]])
            assert value == pytest.approx(aggregate(scores), abs=1e-5)
