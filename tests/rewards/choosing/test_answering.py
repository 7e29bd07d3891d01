"""One question → one answer: by hand with scripted parts, and with tiny real models, in process and behind a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mpo.multimodal.errors import ConfigError, DataError, ImageError
from mpo.multimodal.loading import load_model, load_processor
from recipes.worlds.digits.world import scenes, to_problem
from rewards.choosing.best_of_n import BestOfN
from rewards.choosing.votes import VoteWeight
from rewards.prm.formats import STEP_END
from rewards.prm.model_prm import ModelPRM, save_format
from rewards.sampling.generator import SamplingParams
from rewards.sampling.openai_generator import OpenAIGenerator
from rewards.sampling.transformers_generator import TransformersGenerator
from tests.model_server import ModelServer
from tests.rewards.scripted import ListGenerator, RulePRM

TEXTS = ["a\n\nFinal answer: 7", "b\n\nFinal answer: 8", "c\n\nFinal answer: 7", "no idea"]
SCORES = {"a": 0.25, "b": 1.0, "c": 0.25, "no idea": 0.125}
PRM = RulePRM(lambda step: SCORES.get(step, 0.5))


@pytest.fixture
def picture() -> Image.Image:
    return to_problem(scenes("test", 1, 3)[0], "p").images[0]


def test_golden_choice() -> None:
    """Means: .375, .75, .375, .125. Best: 1. Votes 7: 2, 8: 1. Weighted: .75 against .75, the tie goes to the first."""
    chooser = BestOfN(ListGenerator(TEXTS), PRM)
    found = chooser.answer(None, "?", 4)
    assert (found.index, found.text, found.final_answer) == (1, TEXTS[1], "8")
    assert found.rewards == (0.375, 0.75, 0.375, 0.125)
    assert found.step_scores[1] is not None
    assert found.step_scores[1].values == (1.0, 0.5)
    assert found.tokens == sum(map(len, TEXTS))
    assert found.may_change is None
    assert chooser.answer(None, "?", 4, selector="majority").index == 0
    assert chooser.answer(None, "?", 4, selector="weighted_vote").index == 0
    by_product = BestOfN(ListGenerator(TEXTS), PRM, vote_weight=VoteWeight("prod"))
    assert by_product.answer(None, "?", 4, selector="weighted_vote").index == 1
    assert chooser.answer(None, "?", 4, selector="vote_prod").index == 1
    assert BestOfN(ListGenerator(TEXTS), PRM, aggregation="min").answer(None, "?", 4).index == 1
    assert BestOfN(ListGenerator(TEXTS), PRM, aggregation="last").answer(None, "?", 4).index == 0
    assert BestOfN(ListGenerator(TEXTS), None).answer(None, "?", 4, selector="majority").rewards == (None,) * 4


def test_adaptive_n_draws_in_waves_and_stops() -> None:
    """Eight equal answers of at most 16 stop a vote at error 0.05; a divided vote draws all."""
    same = ListGenerator(["Final answer: 7"] * 16)
    found = BestOfN(same, PRM).answer(None, "?", 16, selector="majority", error=0.05)
    assert (same.asked, len(found.candidates)) == ([4, 4], 8)
    assert found.may_change is not None
    assert found.may_change <= 0.05
    divided = ListGenerator(["Final answer: 7", "Final answer: 8"] * 8)
    found = BestOfN(divided, PRM).answer(None, "?", 15, selector="majority", error=0.05)
    assert (divided.asked, len(found.candidates), found.may_change) == ([4, 4, 4, 3], 15, 0.0)


def test_each_candidate_is_scored_once() -> None:
    prm = RulePRM(lambda step: 0.5)
    BestOfN(ListGenerator([f"{i}" for i in range(8)]), prm, wave=2).answer(None, "?", 8, error=0.001)
    assert sorted(prm.scored) == [f"{i}" for i in range(8)]


def test_what_the_prm_cannot_read_is_never_its_choice() -> None:
    class Picky(RulePRM):
        def outcomes(self, items: Any, *, describe: str = "") -> Any:
            found = super().outcomes(items)
            return [scores if text else DataError("no text") for scores, (_, text) in zip(found, items, strict=True)]

    found = BestOfN(ListGenerator(["", "Final answer: 7"]), Picky(lambda step: 0.0)).answer(None, "?", 2)
    assert (found.index, found.rewards) == (1, (None, 0.0))
    assert found.tokens is None  # the empty one's were not counted
    with pytest.raises(DataError, match="can read none of the 2 responses"):
        BestOfN(ListGenerator(["", ""]), Picky(lambda step: 0.0)).answer(None, "?", 2)


def test_refusals(tmp_path: Path) -> None:
    generator = ListGenerator(TEXTS)
    with pytest.raises(ConfigError, match="without a PRM"):
        BestOfN(generator, None).answer(None, "?", 4)
    with pytest.raises(ConfigError, match="'oracle'"):
        BestOfN(generator, PRM).answer(None, "?", 4, selector="oracle")
    with pytest.raises(ConfigError, match=r"error in \(0, 1\)"):
        BestOfN(generator, PRM).answer(None, "?", 4, error=1.0)
    with pytest.raises(ConfigError, match="at least one sample"):
        BestOfN(generator, PRM).answer(None, "?", 0)
    with pytest.raises(ConfigError, match="set them in the generator"):
        BestOfN(generator, PRM, params=SamplingParams())
    with pytest.raises(ImageError):
        BestOfN(generator, PRM).answer(tmp_path / "none.png", "?", 4)
    assert generator.asked == []
    with pytest.raises(DataError, match="finite"):
        BestOfN(generator, PRM, aggregation=lambda scores: float("nan")).answer(None, "?", 4)


@pytest.fixture(scope="module")
def prm_folder(policy_folder: Path, policy: Any, processor: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prm")
    policy.save_pretrained(folder)
    processor.save_pretrained(folder)
    save_format(folder, STEP_END)
    return folder


def test_folders_of_real_models(policy_folder: Path, prm_folder: Path, picture: Image.Image) -> None:
    """From folders, from objects, at once or in waves: the same candidates with the same scores."""
    params = SamplingParams(max_new_tokens=12)
    chooser = BestOfN(policy_folder, prm_folder, params=params, wave=2)
    found = chooser.answer(picture, "What is the sum?", 6, seed=3)
    assert len(found.candidates) == 6
    rewards = [-1.0 if reward is None else reward for reward in found.rewards]  # random weights write control tokens
    assert found.index == rewards.index(max(rewards))
    assert max(rewards) > 0
    assert found.tokens == sum(rollout.completion.num_tokens for rollout in found.candidates) > 6
    waves = chooser.answer([picture], "What is the sum?", 6, seed=3, error=1e-9)
    assert [r.completion for r in waves.candidates] == [r.completion for r in found.candidates]
    assert waves.rewards == pytest.approx(found.rewards, abs=1e-5)
    assert chooser.answer(picture, "What is the sum?", 6, seed=4).text != found.text
    blank = Image.new("RGB", picture.size, "white")
    assert chooser.answer(blank, "What is the sum?", 6, seed=3).rewards != found.rewards


def test_any_generator_and_prm_of_the_contract(policy: Any, processor: Any, policy_folder: Path) -> None:
    prm = ModelPRM(load_model(policy_folder).eval(), processor, STEP_END)  # prepared in place: not the policy itself
    generator = TransformersGenerator(policy, load_processor(policy_folder), SamplingParams(max_new_tokens=8))
    with ModelServer() as server:
        remote = OpenAIGenerator(server.base_url, "tiny", SamplingParams(max_new_tokens=8))
        for drawn_by in (generator, remote):
            found = BestOfN(drawn_by, prm).answer(None, "What is 5 + 7?", 3)
            assert len(found.candidates) == 3
            assert all(reward is not None for reward in found.rewards)
        assert "choice" in found.text
        assert found.tokens is None  # this server counts no tokens of one choice among several
