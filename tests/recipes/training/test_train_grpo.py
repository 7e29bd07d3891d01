"""`mpo train-grpo` with real tiny models on the digits world: TRL's trainer, our rewards, checkpoints, the guard."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mpo.multimodal.errors import ConfigError
from mpo.multimodal.images import load_image
from mpo.multimodal.loading import load_model, load_processor
from mpo.multimodal.messages import prompt_text
from mpo.multimodal.prefix import encode_prompt
from recipes.config import TrainGRPOConfig
from recipes.stage.folder import manifest_of
from recipes.training import train_grpo as stage
from recipes.training.grpo_run import ALGORITHMS, grpo_config, rows_of
from recipes.training.train_grpo import train_grpo
from recipes.training.training_guard import LOOKS
from recipes.training.weights import ADAPTER
from recipes.worlds.digits.world import scenes, to_problem
from rewards.sampling.prompts import PROMPTS, messages_of
from tests.recipes.training.planted import digit_problems, planted, prm_of_policy


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six problems of the digits world, and one without a reference answer."""
    return digit_problems(tmp_path_factory.mktemp("problems"), "train", 6, open_one=True)


@pytest.fixture(scope="module")
def prm_folder(policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prm_of_policy(policy_folder, tmp_path_factory.mktemp("prm") / "prm")


def settings(policy: Path, problems: Path, out: Path, **changes: Any) -> TrainGRPOConfig:
    tiny = {"max_steps": 4, "batch_size": 4, "num_generations": 2, "max_new_tokens": 12, "learning_rate": 1e-3}
    quiet = {"prompt": "direct", "save_steps": 0, "guard_every": 0, "warmup": 0.0, "timeout_s": 60.0}
    return TrainGRPOConfig(policy=policy, problems=problems, out=out, **(tiny | quiet | changes))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_model(folder).state_dict())


def log_of(out: Path) -> list[dict[str, Any]]:
    return [line for line in json.loads((out / "log_history.json").read_text()) if "reward" in line]


@pytest.mark.timeout(300)
def test_a_short_run_moves_weights_and_logs_each_reward(
    policy_folder: Path, problems: Path, prm_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And a run that was cut after two of four steps has the weights, the log and the account of this one."""
    config = settings(policy_folder, problems, tmp_path / "out", prm=prm_folder, length_weight=0.5, save_steps=2)
    out = train_grpo(config)
    printed = capsys.readouterr()
    said = printed.err.strip().splitlines()[-1]
    assert "rewards/verifier/mean" in printed.out + printed.err
    assert "frac_reward_zero_std" not in printed.out + printed.err  # the other numbers of TRL's log are in the file
    before, after = weights(policy_folder), weights(out)
    assert any(not torch.equal(after[name], before[name]) for name in before)
    log = log_of(out)
    assert [line["step"] for line in log] == [1, 2, 3, 4]
    for name, weight in {"verifier": 1.0, "prm": 1.0, "format": 0.1, "length": 0.5}.items():
        assert f"rewards/{name}/mean" in log[-1]
        assert "frac_reward_zero_std" in log[-1]
        assert weight >= 0
    counts = manifest_of(out)["counts"]
    assert (counts["in"], counts["out"], counts["rejected"]) == (7, 7, {})
    found = counts["training"]["rewards"]
    assert {name: sum(row.values()) for name, row in found.items()} == dict.fromkeys(found, 16)
    assert set(found["verifier"]) <= {"correct", "wrong", "unparsable", "no_reference"}
    assert said.startswith("train-grpo: 7 in, 7 out, nothing rejected; 4 optimizer steps, mean reward ")
    assert "GRPOTrainer" in (out / "README.md").read_text()

    cut = replace(config, out=tmp_path / "cut")
    shutil.copytree(out, cut.out)
    shutil.rmtree(cut.out / "checkpoint-4")
    for name in ("manifest.json", "log_history.json", "model.safetensors"):
        (cut.out / name).unlink()
    train_grpo(cut)
    resumed = weights(cut.out)
    assert all(torch.equal(resumed[name], after[name]) for name in after)
    assert manifest_of(cut.out)["counts"]["training"]["rewards"] == found
    assert [line["reward"] for line in log_of(cut.out)] == [line["reward"] for line in log]


@pytest.mark.timeout(200)
@pytest.mark.parametrize("algorithm", ["gspo", "dr_grpo"])
def test_adapters_and_the_other_algorithms(
    policy_folder: Path, prm_folder: Path, problems: Path, tmp_path: Path, algorithm: str
) -> None:
    more = {"updates_per_generation": 2, "lora_rank": 2, "beta": 0.01, "max_steps": 2}
    out = train_grpo(
        settings(policy_folder, problems, tmp_path, prm=prm_folder, prm_gate=False, algorithm=algorithm, **more)
    )
    before, after = weights(policy_folder), weights(out)
    assert any(not torch.equal(after[name], before[name]) for name in before)
    assert (out / ADAPTER / "adapter_model.safetensors").exists()


def test_algorithms_are_trls_options(policy_folder: Path, problems: Path, tmp_path: Path) -> None:
    expected = {
        "grpo": ("grpo", "token", "group", 0.2, None),
        "gspo": ("grpo", "sequence", "group", 3e-4, 4e-4),
        "dr_grpo": ("dr_grpo", "token", "none", 0.2, None),
    }
    assert expected.keys() == ALGORITHMS.keys()
    for name, values in expected.items():
        args = grpo_config(settings(policy_folder, problems, tmp_path, algorithm=name), tmp_path, [1.0])
        found = (args.loss_type, args.importance_sampling_level, args.scale_rewards, args.epsilon, args.epsilon_high)
        assert found == values
    several = settings(policy_folder, problems, tmp_path, algorithm="gspo", updates_per_generation=4, epsilon=0.1)
    args = grpo_config(replace(several, per_device_batch=2), tmp_path, [1.0])
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps, args.steps_per_generation) == (2, 2, 8)
    assert (args.generation_batch_size, args.epsilon, args.epsilon_high) == (16, 0.1, 4e-4)


def test_the_policy_is_asked_as_mpo_sample_asks(policy_folder: Path) -> None:
    """The token ids of TRL's prompt are those of `mpo sample`, template, system message and image included."""
    processor = load_processor(policy_folder)
    problem = replace(to_problem(scenes("test", 1, 3)[0], "p"), prompt=PROMPTS["r1"])
    (row,) = list(rows_of([problem], processor))
    blocks = iter(row["images"])
    filled = [
        {**turn, "content": [{**block, "image": next(blocks)} if block["type"] == "image" else block
                             for block in turn["content"]]}
        for turn in row["prompt"]
    ]  # fmt: skip
    theirs = processor.apply_chat_template([filled], add_generation_prompt=True, tokenize=True, return_dict=True)
    text = prompt_text(processor, messages_of(problem))
    ours = encode_prompt(processor, text, [load_image(image) for image in problem.images])
    assert list(theirs["input_ids"][0]) == list(ours.input_ids)


@pytest.mark.timeout(200)
@pytest.mark.parametrize("sees", [False, True])
def test_the_guard_stops_a_run_whose_prm_does_not_look(
    policy_folder: Path, problems: Path, prm_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], sees: bool,
) -> None:  # fmt: skip
    monkeypatch.setattr(stage, "prm_in_training", planted(problems, sees=sees))
    guarded = {"guard_every": 1, "guard_problems": 4, "guard_repetition": 1.0, "guard_drift": 1000.0}
    config = settings(
        policy_folder, problems, tmp_path, prm=prm_folder, verifier_weight=0.0, format_weight=0.0, max_steps=3,
        **guarded,
    )  # fmt: skip
    out = train_grpo(config)
    said = capsys.readouterr().err.strip().splitlines()[-1]
    training = manifest_of(out)["counts"]["training"]
    looks = [json.loads(line) for line in (out / LOOKS).read_text().splitlines()]
    if sees:
        assert (training["steps"], training["stopped"]) == (3, None)
        assert max(look["remaining"] for look in looks) < 0.2
        assert "STOPPED" not in said
    else:
        assert training["steps"] == 1  # the second look in a row
        assert training["stopped"]["reason"] == "image_blind_reward"
        assert [look["remaining"] for look in looks] == [1.0, 1.0]
        assert "STOPPED by the guard at step 1: image_blind_reward (100 % of the PRM's reward remains" in said
        log = json.loads((out / "log_history.json").read_text())
        assert [line["guard/remaining"] for line in log if "guard/remaining" in line] == [1.0, 1.0]
        assert [line["step"] for line in log if "rewards/prm/mean" in line] == [1]


def test_what_cannot_work(policy_folder: Path, problems: Path, prm_folder: Path, tmp_path: Path) -> None:
    for changes, message in [
        ({"prm_gate": True}, "prm_gate needs prm"),
        ({"verifier_weight": 0.0, "format_weight": 0.0}, "no reward: expected a weight above 0"),
        ({"batch_size": 5}, "batch_size=5 responses per step are no whole groups of num_generations=2"),
        ({"save_steps": 3, "updates_per_generation": 2}, "save_steps=3 must be a multiple of updates_per_generation=2"),
        ({"vllm_base_url": "http://127.0.0.1:1"}, "vllm_base_url needs vLLM"),
        ({"prm": prm_folder, "prm_base_url": ["http://127.0.0.1:1/v1"]}, "give prm_model, its name there"),
        ({"prm": prm_folder, "prm_model": "prm"}, "give prm_base_url, its address"),
        ({"per_device_batch": 3}, "batch_size=4 rows per step cannot be cut into micro-batches of 3"),
        ({"verifier": "judge"}, "verifier judge is not supported in training"),
        ({"verifier": "auot"}, "unknown verifier 'auot'"),
        ({"verifier": "os:nothing"}, "cannot be imported"),
        ({"guard_drift": 0.5}, "drift >= 1"),
        ({"guard_drift": 0.5, "guard_stop": False}, "drift >= 1"),
    ]:
        with pytest.raises(ConfigError, match=message):
            train_grpo(settings(policy_folder, problems, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


@pytest.mark.timeout(100)
def test_problems_that_no_reward_could_judge_are_named(policy_folder: Path, problems: Path, tmp_path: Path) -> None:
    out = train_grpo(settings(policy_folder, problems, tmp_path, max_steps=1))
    counts = manifest_of(out)["counts"]
    assert (counts["in"], counts["out"], counts["rejected"]) == (7, 6, {"no reference answer": 1})
    (row,) = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert row["id"] == "open"


@pytest.mark.timeout(100)
def test_a_guard_of_held_out_problems_and_no_prm(policy_folder: Path, problems: Path, tmp_path: Path) -> None:
    """Held out is what is not trained on: a guard with one of those problems is refused."""
    quiet = {"max_steps": 2, "guard_every": 1, "guard_repetition": 1.0, "guard_drift": 1000.0}
    apart = digit_problems(tmp_path / "data", "guard", 3, seed=8)
    out = train_grpo(settings(policy_folder, problems, tmp_path / "out", guard=apart, **quiet))
    looks = [json.loads(line) for line in (out / LOOKS).read_text().splitlines()]
    assert [(look["step"], len(look["gold"]), look["reward"]) for look in looks] == [(n, 3, []) for n in range(3)]
    same = digit_problems(tmp_path / "data", "same", 1)
    with pytest.raises(ConfigError, match=r"1 of 1 questions of --guard .* are also in --problems"):
        train_grpo(settings(policy_folder, problems, tmp_path / "other", guard=same, **quiet))
