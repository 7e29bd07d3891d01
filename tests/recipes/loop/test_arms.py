"""Arms and their candidates: what is refused before anything runs, and that every arm can be made and named."""

from pathlib import Path

import pytest

from mpo.multimodal.errors import ConfigError
from recipes.loop.arms import ARMS, PAIRS, _linked, check_arms
from recipes.loop.pipeline import answer
from recipes.loop.reinforced import REINFORCED, reinforce
from recipes.loop.settings import Settings
from recipes.loop.stages import Plan
from recipes.loop.start import Start
from recipes.report.summary import AFTER_TRAINED, ARM_LABELS, COMPARED

CONFIGS = Path(__file__).parents[3] / "recipes" / "configs"


def settings(folder: Path, text: str) -> Settings:
    (folder / "settings.yaml").write_text(text)
    return Settings(folder / "settings.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("arms: [rft]\n", "arms: expected a mapping of an arm to a list"),
        ("arms: {rft: {learning_rate: 0.1}}\n", "arms.rft: expected a mapping"),
        ("arms: {rft: [{learning_rat: 0.1}]}\n", "arms.rft.learning_rat"),
        ("arms: {rft: [{learning_rate: fast}]}\n", "arms.rft.learning_rate"),
        ("arms: {rft: [{pairs: elsewhere}]}\n", "arms.rft: pairs is set by the loop"),
        ("arms: {rft: [{seed: 3}]}\n", "arms.rft: seed is set by the loop"),
    ],
)
def test_bad_candidates_are_refused_by_name(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        settings(tmp_path, text)


def test_arms_that_cannot_run_are_refused(tmp_path):
    two = "[{learning_rate: 0.1}, {learning_rate: 0.2}]"
    given = settings(tmp_path, f"arms: {{rft: {two}, mpo: {two}, dpo: [{{beta: 0.1}}]}}\n")
    check_arms(["mpo", "rft", "dpo", "mpo_exact_span"], given, development=True)
    with pytest.raises(ConfigError, match="unknown arm 'best'"):
        check_arms(["best"], given, development=True)
    with pytest.raises(ConfigError, match="arm mpo has 2 candidates, and there are no development problems"):
        check_arms(["mpo", "rft"], given, development=False)
    check_arms(["dpo"], given, development=False)
    unequal = settings(tmp_path, f"arms: {{rft: {two}, mpo: [{{}}, {{}}, {{}}]}}\n")
    with pytest.raises(ConfigError, match="the same tuning budget"):
        check_arms(["mpo", "rft"], unequal, development=True)
    with pytest.raises(ConfigError, match="unknown arm 'rtf'"):
        check_arms(["mpo"], settings(tmp_path, f"arms: {{rtf: {two}}}\n"), development=True)
    easy = settings(tmp_path, "easy_vqa: {}\n")
    with pytest.raises(ConfigError, match="only the digits world has"):
        check_arms(["mpo_exact_span"], easy, development=True)


def test_grpo_without_its_settings_or_with_those_of_pairs_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="arm mpo_grpo needs a section train_grpo"):
        check_arms(["mpo", "mpo_grpo"], settings(tmp_path, "arms: {}\n"), development=True)
    given = settings(tmp_path, "train_grpo: {max_steps: 3}\narms: {grpo: [{learning_rate: 0.1}]}\n")
    check_arms(["mpo", "mpo_grpo", "grpo"], given, development=True)
    for candidate, message in (("beta_: 1", "arms.grpo.beta_"), ("problems: x", "problems is set by the loop")):
        with pytest.raises(ConfigError, match=message):
            settings(tmp_path, f"arms: {{grpo: [{{{candidate}}}]}}\n")


def test_grpo_alone_generates_as_many_responses_more_as_pairs_are_made_of(tmp_path):
    (tmp_path / "preference.jsonl").write_text("{}\n" * 12)
    start = Start(tmp_path, tmp_path / "preference.jsonl", tmp_path / "test.jsonl")
    text = "preference_sample: {num_samples: 8}\ntrain_grpo: {max_steps: 5, batch_size: 32}\n"
    for changes, steps in (({}, 8), ({"updates_per_generation": 2}, 11), ({"batch_size": 40}, 8)):
        asked = []

        def do(name, config, about, asked=asked):
            asked.append(config)
            return config.out

        do.planning = False
        given = settings(tmp_path, text)
        for arm in ("grpo", "mpo_grpo", "mpo_first_error_grpo"):
            reinforce(do, given, start, arm, tmp_path, tmp_path / "prm", 0, tmp_path / arm, changes)
        assert [config.max_steps for config in asked] == [steps, 5, 5]


def test_only_the_other_arms_are_measured_at_fewer_k(tmp_path):
    """A k above the samples of the policy is wrong, and best-of-n says so; the other arms have fewer samples."""
    given = settings(tmp_path, "test_sample: {num_samples: 16}\nbest_of_n: {ks: [1, 8, 16, 32]}\n")
    start = Start(tmp_path, tmp_path / "preference.jsonl", tmp_path / "test.jsonl")
    for headline, ks, samples in ((True, [1, 8, 16, 32], 16), (False, [1, 8], 8)):
        plan = Plan()
        answer(plan, given, start, tmp_path / "mpo", tmp_path, tmp_path / "prm", 0, headline=headline)
        assert plan.stages[-1].config.ks == ks
        assert (
            next(s.config for s in plan.stages if s.config.out == tmp_path / "mpo" / "samples").num_samples == samples
        )


def test_the_evidence_gives_every_arm_the_same_budget():
    evidence = Settings(CONFIGS / "digits.yaml")
    every = [*ARMS, *REINFORCED]
    check_arms(every, evidence, development=True)
    assert len({len(evidence.arms.get(arm, [{}])) for arm in every}) == 1


def test_every_arm_has_pairs_and_a_name():
    assert {arm.pairs for arm in ARMS.values()} == set(PAIRS)
    every = {*ARMS, *REINFORCED}
    assert set(ARM_LABELS) == {"policy", *every}
    assert {name for both in COMPARED for name in both} <= every
    assert set(AFTER_TRAINED) == set(REINFORCED)


def test_the_link_follows_the_choice(tmp_path):
    for name in "01":
        (tmp_path / "tuning" / "rft" / name).mkdir(parents=True)
    for name in ("0", "0", "1"):
        link = _linked(tmp_path / "rft", tmp_path / "tuning" / "rft" / name)
        assert link.resolve() == tmp_path / "tuning" / "rft" / name
