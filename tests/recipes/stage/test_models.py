"""Models as commands name them: on the hub, as adapters, without images; which role a folder can play."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from mpo.multimodal.errors import ConfigError
from mpo.multimodal.hub import hub_name
from mpo.trainer import MPOTrainer
from recipes import config as configs
from recipes.cli import main
from recipes.commands.table import COMMANDS
from recipes.config import SampleConfig
from recipes.loop.settings import Settings
from recipes.loop.start import own_start
from recipes.stage.folder import content_of, manifest_of
from recipes.stage.groups import read_groups, read_problems
from recipes.stage.models import roles_of, with_models_here
from rewards.prm.model_prm import ModelPRM
from rewards.types import Completion, Problem, Rollout, RolloutGroup, Verdict
from tests.hub_server import HubServer, reach_hub
from tests.mpo.tiny import preference_rows, tiny_config, tiny_internvl
from tests.recipes.run_folders import write_stage
from tests.recipes.tiny_checkpoints import build_adapter, build_math_prm, build_qwen2_5_vl, build_text_llm
from tests.rewards.conversion.chat_checkpoints import QWEN, write_chat_checkpoint

LLM, PRM, VLM = "Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-Math-PRM-7B", "Qwen/Qwen2.5-VL-3B-Instruct"
SEES, CHAT = "OpenGVLab/InternVL3-1B-hf", "OpenGVLab/InternVL3-1B"
COMMIT = r"[0-9a-f]{40}"


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny checkpoints under published names, each in the layout that the hub has it in."""
    folder = tmp_path_factory.mktemp("repositories")
    return {
        LLM: build_text_llm(folder / "llm"),
        PRM: build_math_prm(folder / "prm"),
        VLM: build_qwen2_5_vl(folder / "vlm"),
        SEES: Path(tiny_internvl()),
        CHAT: write_chat_checkpoint(folder / "chat", QWEN),
    }


@pytest.fixture
def hub(repositories: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer() as running:
        for name, folder in repositories.items():
            running.add(name, folder)
        reach_hub(running, tmp_path / "cache", monkeypatch)
        monkeypatch.chdir(tmp_path)
        rows = [{"id": name, "question": f"How many {name}?", "answer": "3"} for name in ("apples", "pears")]
        Path("questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        yield running


def run(command: str, **flags: object) -> Path:
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    assert main([command, *words]) == 0
    return Path(str(flags["out"]))


def drawn(policy: str, **flags: object) -> Path:
    out = Path(f"samples-{len(list(Path().glob('samples-*')))}")
    given = {"num_samples": 1, "max_new_tokens": 4, **flags}
    return run("sample", policy=policy, problems="questions.jsonl", out=out, **given)


def test_every_field_that_names_a_model_is_one() -> None:
    """`policy`, `prm`, `model`, …: what is a model by its name is looked up on the hub, and only that."""
    classes = {command.config: getattr(configs, command.config) for command in COMMANDS.values()}
    named = {
        (name, field.name)
        for name, config in classes.items()
        for field in fields(config)
        if field.name in ("policy", "prm", "checkpoint", "model", "reward_model", "judge") and "Path" in str(field.type)
    }
    found = {(name, field) for name, config in classes.items() for field in roles_of(config)}
    assert found == named
    assert roles_of(configs.OwnConfig) == {"policy": "policy", "prm": "model", "prm_model": "model"}


def test_a_text_model_and_its_prm_from_the_hub(hub: HubServer, repositories: dict[str, Path]) -> None:
    """The documented way: sample, label-steps, score and prm-eval on names alone; manifests say which commits."""
    commit = hub.commit(LLM, "main")
    samples = drawn(f"{LLM}@main", num_samples=2)
    assert manifest_of(samples)["hub"] == {"policy": f"{LLM}@{commit}"}
    assert [len(group.rollouts) for group in read_groups(samples)] == [2, 2]
    groups = write_stage(Path("verified"), _verified(), Path("questions.jsonl"))
    hub.add("my/policy", _that_ends_at_once(repositories[LLM]))
    labelled = run("label-steps", groups=groups, policy="my/policy", out="labelled", num_continuations=2)
    assert all(rollout.mc for group in read_groups(labelled) for rollout in group.rollouts)
    scored = run("score", groups=groups, prm=PRM, prm_format="qwen_math_prm", out="scored")
    assert manifest_of(scored)["hub"] == {"prm": f"{PRM}@{hub.commit(PRM, 'main')}"}
    rewards = [rollout.reward for group in read_groups(scored) for rollout in group.rollouts]
    assert len(rewards) == 4
    assert all(reward is not None and 0 < reward < 1 for reward in rewards)
    rows = [
        {
            "id": f"gsm8k-{i}",
            "problem": f"{i} + 1?",
            "steps": ["one", "two"],
            "label": -1 if i % 2 else 0,
            "generator": "x",
        }
        for i in range(12)
    ]
    Path("processbench.json").write_text(json.dumps(rows))
    flags = {"benchmark": "processbench.json", "kind": "processbench", "prm": PRM, "out": "evaluated"}
    run("prm-eval", prm_format="qwen_math_prm", development_share=0.5, **flags)
    assert not [path for path in hub.paths if path.endswith(".py")]


def _verified() -> list[RolloutGroup]:
    texts = {"Final answer: 3\n\nSo it is 3": Verdict.CORRECT, "Final answer: 4\n\nSo it is 4": Verdict.WRONG}
    rollouts = tuple(Rollout(Completion(text), verdict=verdict) for text, verdict in texts.items())
    return [RolloutGroup(problem, rollouts) for problem in read_problems(Path("questions.jsonl")).values()]


def _that_ends_at_once(source: Path) -> Path:
    """The text model with weights that always say the end of the turn: what was said before is the whole response."""
    folder = Path("ends")
    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor.zero_()
    embedding = tensors["model.embed_tokens.weight"].fill_(1.0)
    embedding[json.loads((folder / "config.json").read_text())["eos_token_id"]] = 3.0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_the_wrong_format_is_found_before_a_score(hub: HubServer, capsys: Any) -> None:
    groups = write_stage(Path("verified"), _verified(), Path("questions.jsonl"))
    flags = ["--groups", str(groups), "--prm", PRM, "--out", "scored"]
    assert main(["score", *flags, "--prm_format", "visualprm"]) == 2
    assert "scores with a label head (score.0.bias)" in (said := capsys.readouterr().err)
    assert "of which there are qwen_math_prm" in said
    assert main(["score", *flags]) == 2
    assert "for someone else's PRM add --prm_format, one of visualprm, " in capsys.readouterr().err
    assert not Path("scored/groups.jsonl").exists()


@pytest.mark.parametrize("name", [SEES, VLM])
def test_a_model_that_sees(name: str, hub: HubServer) -> None:
    assert [len(group.rollouts) for group in read_groups(drawn(name))] == [1, 1]


def test_another_commit_is_another_policy(hub: HubServer, repositories: dict[str, Path], capsys: Any) -> None:
    """Identity is content: the same weights from a folder are the same stage; a branch that moved is refused."""
    samples = drawn(LLM)
    flags = ["--problems", "questions.jsonl", "--num_samples", "1", "--max_new_tokens", "4", "--out", str(samples)]
    assert main(["sample", "--policy", str(repositories[LLM]), *flags]) == 0
    assert "complete already" in capsys.readouterr().err
    moved = Path("moved")
    shutil.copytree(repositories[LLM], moved)
    settings = json.loads((moved / "generation_config.json").read_text())
    (moved / "generation_config.json").write_text(json.dumps(settings | {"max_length": 7}))
    hub.add(LLM, moved)
    assert main(["sample", "--policy", LLM, *flags]) == 4
    assert "policy" in capsys.readouterr().err


def test_an_unconverted_checkpoint_is_refused_and_converts_by_name(hub: HubServer, capsys: Any) -> None:
    flags = ["--problems", "questions.jsonl", "--num_samples", "1", "--max_new_tokens", "4", "--out", "out"]
    assert main(["sample", "--policy", CHAT, *flags]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    command = f"mpo convert --checkpoint {CHAT}@{hub.commit(CHAT, 'main')} --out models/InternVL3-1B"
    assert f"`{command}`" in said
    assert main(command.split()[1:]) == 0
    assert main(["sample", "--policy", "models/InternVL3-1B", *flags]) == 0


def test_problems_of_the_hub_beside_a_model_of_the_hub(hub: HubServer, policy_folder: Path) -> None:
    """`hub:NAME` is no path that has to be there."""
    hub.add("org/tiny", policy_folder)
    told = configs.SampleConfig(problems=Path("hub:org/questions"), out=Path("out"), policy=Path("org/tiny"))
    here = with_models_here(told)
    assert here.problems == told.problems
    assert here.policy is not None
    assert (here.policy / "config.json").exists()


def test_nothing_is_fetched_while_another_input_is_missing(hub: HubServer, capsys: Any) -> None:
    assert main(["sample", "--policy", LLM, "--problems", "none.jsonl", "--out", "out"]) == 2
    assert "input none.jsonl does not exist" in capsys.readouterr().err
    assert hub.paths == []


def test_a_prm_is_no_policy(tmp_path: Path) -> None:
    shutil.copytree(tiny_internvl(), tmp_path / "prm")
    (tmp_path / "prm" / "prm.json").write_text("{}")
    (tmp_path / "questions.jsonl").write_text("")
    sampling = SampleConfig(problems=tmp_path / "questions.jsonl", out=tmp_path / "out", policy=tmp_path / "prm")
    with pytest.raises(ConfigError, match=r"is a process reward model .* expected a model that answers as --policy"):
        with_models_here(sampling)


def test_the_models_of_a_run_on_data_of_ones_own(hub: HubServer) -> None:
    Path("own.yaml").write_text(
        f"own:\n  policy: {LLM}\n  prm: {PRM}\n  preference_problems: questions.jsonl\n  test_problems: test.jsonl\n"
    )
    Path("test.jsonl").write_text(json.dumps({"id": "t", "question": "Why?", "answer": "1"}) + "\n")
    start = own_start(Settings(Path("own.yaml")), Path("run"))
    assert hub_name(start.policy) == f"{LLM}@{hub.commit(LLM, 'main')}"
    assert start.prm is not None
    assert hub_name(start.prm) == f"{PRM}@{hub.commit(PRM, 'main')}"


def test_an_adapter_is_a_policy_whose_base_counts(hub: HubServer, repositories: dict[str, Path]) -> None:
    """Its identity is its own weights and its base's, wherever the base lies; the manifest names the base's commit."""
    adapter = build_adapter(Path("lora"), repositories[LLM])
    here = content_of(adapter, "sample", None)
    _name_base(adapter, LLM)
    assert content_of(adapter, "sample", None) == here
    samples = drawn(str(adapter))
    assert manifest_of(samples)["hub"] == {"policy, base": f"{LLM}@{hub.commit(LLM, 'main')}"}
    hub.add("my/lora", adapter)
    assert manifest_of(drawn("my/lora"))["fingerprint"] == manifest_of(samples)["fingerprint"]
    other = Path("other")
    shutil.copytree(repositories[LLM], other)
    (other / "generation_config.json").write_text("{}")
    _name_base(adapter, str(other))
    assert content_of(adapter, "sample", None) != here


def _name_base(adapter: Path, name: str) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": name}))


def test_python_takes_the_same_names(hub: HubServer, tmp_path: Path) -> None:
    MPOTrainer(SEES, f"{SEES}@main", args=tiny_config(tmp_path / "out"), train_dataset=preference_rows(2))
    (scores,) = ModelPRM.load(f"{PRM}@{hub.commit(PRM, 'main')}", prm_format="qwen_math_prm").score(
        Problem("p", "How many?"), ["one\n\ntwo"]
    )
    assert len(scores.values) == 2
