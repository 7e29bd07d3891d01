"""Scalar-head reward models: the value of a plain transformers forward pass, whatever the batch; damaged heads."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from mpo.multimodal.errors import ConfigError, DataError
from recipes.cli import main
from recipes.stage.folder import manifest_of
from recipes.stage.groups import read_groups
from rewards.prm.reward_model import BIAS, HEAD, WEIGHT, RewardModel
from rewards.types import Completion, Problem, Rollout, RolloutGroup
from tests.recipes.run_folders import make_groups, make_problems, write_stage
from tests.recipes.tiny_checkpoints import BUILDERS

RESPONSES = ["Red is 3\n\nFinal answer: 3", "It is four.", "Final answer: 12, since the bars add up to twelve."]


@pytest.fixture(scope="module", params=["qwen2_5_vl", "internvl"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint with a random scalar head, in the layout of Skywork-VL-Reward."""
    path = BUILDERS[request.param](tmp_path_factory.mktemp("reward") / request.param)
    width = AutoModelForImageTextToText.from_pretrained(path).get_output_embeddings().weight.shape[1]
    generator = torch.Generator().manual_seed(0)
    head = {WEIGHT: torch.randn(1, width, generator=generator), BIAS: torch.tensor([0.3])}
    save_file(head, path / HEAD)
    return path


def by_hand(folder: Path, problem: Problem, response: str) -> float:
    """The published way: chat template, one forward pass, the last hidden state of the last token, the head."""
    processor, model = AutoProcessor.from_pretrained(folder), AutoModelForImageTextToText.from_pretrained(folder).eval()
    user = [*({"type": "image"} for _ in problem.images), {"type": "text", "text": problem.question}]
    messages = [
        {"role": "user", "content": user},
        {"role": "assistant", "content": [{"type": "text", "text": response}]},
    ]
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)
    inputs = processor(text=[text], images=list(problem.images) or None, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**inputs, output_hidden_states=True).hidden_states[-1][0, -1]
    from safetensors.torch import load_file

    head = load_file(folder / HEAD)
    return float(torch.sigmoid(head[WEIGHT][0] @ hidden + head[BIAS][0]))


def test_rewards_are_those_of_the_published_way(folder: Path) -> None:
    """Three responses of other lengths in one padded batch, and one problem without an image."""
    seen = Problem("seen", "How many digits?", (Image.new("RGB", (64, 64), (200, 30, 30)),))
    blind = Problem("blind", "How many days has a week?")
    items = [(seen, text) for text in RESPONSES]
    model = RewardModel.load(folder, batch_rows=3)
    expected = [by_hand(folder, *item) for item in items]
    assert model.rewards(items) == pytest.approx(expected, abs=1e-5)
    assert model.rewards([(blind, "Seven.")]) == pytest.approx([by_hand(folder, blind, "Seven.")], abs=1e-5)
    assert len({round(value, 4) for value in expected}) == 3


def test_what_cannot_be_read_is_told(folder: Path) -> None:
    problem = Problem("p", "How many digits?")
    model = RewardModel.load(folder)
    empty, control, read = model.rewards([(problem, " "), (problem, "a<|im_end|>b<eos>"), (problem, "Four.")])
    assert isinstance(empty, DataError)
    assert empty.reason == "empty"
    assert isinstance(control, DataError) or 0 < control < 1  # the families differ in their control tokens
    assert isinstance(read, float)


def test_rate_keeps_the_rewards_and_counts_the_rest(folder: Path, tmp_path: Path) -> None:
    rng = random.Random(0)
    problems = make_problems(tmp_path / "given", "test", 2, rng)
    groups = [
        RolloutGroup(group.problem, (*group.rollouts, Rollout(Completion(" "))))
        for group in make_groups(problems, 2, 0.5, rng)
    ]
    write_stage(tmp_path / "groups", groups, problems)
    command = ["rate", "--groups", str(tmp_path / "groups"), "--by", "reward_model", "--reward_model", str(folder)]
    assert main([*command, "--out", str(tmp_path / "rated")]) == 0
    assert manifest_of(tmp_path / "rated")["counts"]["unscored"] == {"empty": 2}
    model = RewardModel.load(folder)
    for group in read_groups(tmp_path / "rated"):
        texts = [rollout.completion.text for rollout in group.rollouts[:2]]
        expected = model.rewards([(group.problem, text) for text in texts])
        assert [rollout.reward for rollout in group.rollouts] == [*map(pytest.approx, expected), None]


@pytest.mark.parametrize(
    "head",
    [
        None,
        {},
        {WEIGHT: torch.ones(1, 3), BIAS: torch.ones(1)},
        {WEIGHT: torch.ones(2, 32), BIAS: torch.ones(2)},
        {WEIGHT: torch.full((1, 32), torch.nan), BIAS: torch.ones(1)},
    ],
    ids=["none", "empty", "other width", "two rows", "not finite"],
)
def test_another_head_is_refused_by_name(folder: Path, tmp_path: Path, head: dict[str, torch.Tensor] | None) -> None:
    import shutil

    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model" / HEAD).unlink()
    if head is not None:
        save_file(head, tmp_path / "model" / HEAD)
    with pytest.raises(ConfigError, match=HEAD):
        RewardModel.load(tmp_path / "model")


@pytest.mark.parametrize(
    "flags",
    [
        "--by reward_model",
        "--by scores",
        "--by self_certainty --reward_model m",
        "--by scores --scores s --batch_rows 0",
    ],
)
def test_a_critic_and_its_file_belong_together(flags: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(0)
    problems = make_problems(tmp_path / "data", "q", 2, rng)
    groups = write_stage(tmp_path / "groups", make_groups(problems, 2, 0.5, rng), problems)
    assert main(["rate", "--groups", str(groups), *flags.split(), "--out", str(tmp_path / "out")]) == 2
    assert "belong together" in (said := capsys.readouterr().err) or "--batch_rows: expected" in said
