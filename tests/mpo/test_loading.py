"""A model is loaded whole or not at all: no weight is drawn at random, whoever loads it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mpo.multimodal.errors import ConfigError
from mpo.multimodal.loading import load_for_inference, load_merged, load_model, load_processor, stored_dtype
from mpo.multimodal.text_processor import TextProcessor
from mpo.trainer import MPOTrainer
from recipes.cli import main
from rewards.prm.model_prm import ModelPRM
from tests.mpo.tiny import preference_rows, tiny_config, tiny_internvl
from tests.recipes.tiny_checkpoints import build_adapter, build_math_prm, build_text_llm

Tensors = dict[str, Tensor]


def changed(
    folder: Path, source: str | Path, change: Callable[[Tensors], Any], file: str = "model.safetensors"
) -> Path:
    """A copy of a model in which some tensors are others."""
    shutil.copytree(source, folder)
    tensors = load_file(folder / file)
    change(tensors)
    save_file(tensors, folder / file, metadata={"format": "pt"})
    return folder


def without_ten(tensors: Tensors) -> None:
    for name in sorted(tensors)[::5][:10]:
        del tensors[name]


DAMAGE: dict[str, tuple[Callable[[Tensors], Any], str]] = {
    "missing": (
        without_ten,
        r"of 52 tensors expected, 10 missing \(.*model\.language_model\.layers.* and 7 more\)\. No",
    ),
    "left over": (
        lambda tensors: tensors.update({"value_head.weight": torch.ones(1, 32)}),
        r"1 left over \(value_head\.weight\)",
    ),
    "of another shape": (
        lambda tensors: (
            tensors.update({"language_model.lm_head.weight": torch.ones(7, 32)})
            if "language_model.lm_head.weight" in tensors
            else tensors.update({"lm_head.weight": torch.ones(7, 32)})
        ),
        r"1 of another shape \(lm_head\.weight \[7, 32\] instead of \[\d+, 32\]\)",
    ),
}


@pytest.fixture(scope="module", params=DAMAGE)
def damaged(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    change, expected = DAMAGE[request.param]
    return changed(tmp_path_factory.mktemp("damaged") / "model", tiny_internvl(), change), expected


LOADS: dict[str, Callable[[Path], Any]] = {
    "load_model": load_model,
    "load_for_inference": load_for_inference,
    "ModelPRM": lambda path: ModelPRM.load(path, prm_format="step_end"),
    "MPOTrainer": lambda path: MPOTrainer(str(path), args=tiny_config(path / "out"), train_dataset=preference_rows(2)),
    "its reference": lambda path: MPOTrainer(
        tiny_internvl(), str(path), args=tiny_config(path / "out"), train_dataset=preference_rows(2)
    ),
}


@pytest.mark.parametrize("load", LOADS)
def test_a_model_that_is_not_whole_is_refused_by_name(load: str, damaged: tuple[Path, str]) -> None:
    path, expected = damaged
    with pytest.raises(ConfigError, match=expected) as refused:
        LOADS[load](path)
    assert str(refused.value).startswith(f"{path} does not hold a whole InternVLForConditionalGeneration")
    assert "\n" not in str(refused.value)


def test_no_command_answers_with_it(damaged: tuple[Path, str], tmp_path: Path, capfd: Any) -> None:
    """Exit code 2, one line, no table of warnings; sampling ended with 0 before."""
    (tmp_path / "questions.jsonl").write_text(json.dumps({"id": "a", "question": "How many?", "answer": "1"}) + "\n")
    flags = ["--policy", str(damaged[0]), "--problems", str(tmp_path / "questions.jsonl"), "--num_samples", "1"]
    assert main(["sample", *flags, "--out", str(tmp_path / "out")]) == 2
    said = capfd.readouterr().err
    assert "No weight is drawn at random" in said
    assert "REPORT" not in said
    assert not (tmp_path / "out" / "groups.jsonl").exists()


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_text_llm(tmp_path_factory.mktemp("text") / "llm")


def test_what_an_architecture_declares_is_no_fault(text: Path, tmp_path: Path) -> None:
    """A tied head that is not stored, and buffers that older versions stored."""
    assert "lm_head.weight" not in load_file(text / "model.safetensors")
    model: Any = load_model(text)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    assert load_model(changed(tmp_path / "old", text, lambda tensors: tensors.update(buffer)))


def test_an_untied_head_is_missing(text: Path, tmp_path: Path) -> None:
    folder = changed(tmp_path / "untied", text, lambda tensors: None)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    with pytest.raises(ConfigError, match=r"1 missing \(lm_head\.weight\)"):
        load_model(folder)


def test_a_head_that_a_format_leaves_out_is_found_before_the_weights(text: Path, tmp_path: Path) -> None:
    """The wrong `--prm_format`, either way; the message names those that fit."""
    head = build_math_prm(tmp_path / "head")
    with pytest.raises(
        ConfigError, match=r"scores with a label head \(score\.0\.bias\).* of which there are qwen_math_prm"
    ):
        ModelPRM.load(head, prm_format="visualprm")
    with pytest.raises(ConfigError, match=r"has no label head .* of which there are visualprm, .*step_tag"):
        ModelPRM.load(changed(tmp_path / "text", text, lambda tensors: None), prm_format=str(_head_format(tmp_path)))
    with pytest.raises(
        ConfigError, match=r"4 left over \(score\.0\.bias, score\.0\.weight, score\.2\.bias and 1 more\)"
    ):
        load_model(head)


def _head_format(folder: Path) -> Path:
    """Qwen2.5-Math-PRM's format with a tag that every tokenizer has."""
    (folder / "head.yaml").write_text("name: mine\nlayout: tag\nreadout: head\ntag: '+'\n")
    return folder / "head.yaml"


# ---- adapters ----


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_adapter(tmp_path_factory.mktemp("adapter") / "lora", Path(tiny_internvl()))


def test_an_adapters_folder_is_a_model(adapter: Path, text: Path, tmp_path: Path) -> None:
    """The base with the changes merged in, its processor, its number type."""
    merged, base = load_model(adapter).state_dict(), load_model(tiny_internvl()).state_dict()
    expected = load_merged(tiny_internvl(), adapter, dtype=torch.float32).state_dict()
    assert merged.keys() == base.keys()
    assert all(torch.equal(merged[name], expected[name]) for name in merged)
    different = {name for name in merged if not torch.equal(merged[name], base[name])}
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in different} == {"q_proj", "v_proj"}
    assert stored_dtype(adapter) == stored_dtype(tiny_internvl())
    assert load_processor(adapter).image_processor is not None
    own = build_adapter(tmp_path / "own", text)
    shutil.copy(text / "tokenizer.json", own)
    settings = json.loads((text / "tokenizer_config.json").read_text())
    (own / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": "{{ 'mine' }}"}))
    processor = load_processor(own)
    assert isinstance(processor, TextProcessor)
    assert processor.tokenizer.chat_template == "{{ 'mine' }}"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda tensors: tensors.pop(min(tensors)),
            r"no whole adapter of .*: of 12 tensors expected, 1 missing \(.*lora_A",
        ),
        (
            lambda tensors: tensors.update({"base_model.model.other.lora_A.weight": torch.ones(2, 2)}),
            r"1 left over \(.*other",
        ),
        (lambda tensors: tensors.update({min(tensors): torch.ones(3, 32)}), r"size mismatch for .*lora_A"),
    ],
    ids=["missing", "left over", "of another shape"],
)
def test_an_adapter_that_is_not_whole_is_refused(
    change: Callable[[Tensors], Any], expected: str, adapter: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=expected):
        load_model(changed(tmp_path / "lora", adapter, change, "adapter_model.safetensors"))


def test_an_adapter_of_another_model_is_refused(adapter: Path, text: Path, tmp_path: Path) -> None:
    folder = changed(tmp_path / "lora", adapter, lambda tensors: None, "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(text)}))
    with pytest.raises(ConfigError, match=r"lora.*(left over|missing|size mismatch)"):
        load_model(folder)


def test_an_adapter_beside_whole_weights_is_ambiguous(adapter: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_internvl(), tmp_path / "both")
    shutil.copy(adapter / "adapter_config.json", tmp_path / "both")
    with pytest.raises(ConfigError, match="a whole model and an adapter"):
        load_model(tmp_path / "both")
