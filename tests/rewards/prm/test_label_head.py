"""Qwen2.5-Math-PRM's layout without remote code, against the source tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import linear

from mpo.multimodal.errors import ConfigError
from mpo.multimodal.scoring import logits_at
from rewards.prm.formats import HEAD_COLUMNS
from rewards.prm.label_head import load_label_head
from rewards.prm.readout import label_softmax
from tests.rewards.conversion.chat_checkpoints import QWEN, ChatModel, random_tensors, write_chat_checkpoint

TAG = 7


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model.*` of a Qwen2 decoder and `score.0`, `score.2`; a config with `auto_map`, a file that must not run."""
    folder = tmp_path_factory.mktemp("math-prm")
    chat = write_chat_checkpoint(folder / "chat", QWEN)
    config = json.loads((chat / "config.json").read_text())
    tensors = {
        name.removeprefix("language_model."): tensor
        for name, tensor in random_tensors(config).items()
        if name.startswith("language_model.model.")
    }
    generator = torch.Generator().manual_seed(1)
    width = config["llm_config"]["hidden_size"]
    for name, shape in {"0.weight": (width, width), "0.bias": (width,), "2.weight": (2, width), "2.bias": (2,)}.items():
        tensors[f"score.{name}"] = torch.randn(shape, generator=generator) * 0.3
    text = config["llm_config"] | {
        "architectures": ["Qwen2ForProcessRewardModel"],
        "auto_map": {"AutoModel": "modeling_qwen2_rm.Qwen2ForProcessRewardModel"},
        "rope_scaling": None,
    }
    prm = folder / "prm"
    prm.mkdir()
    (prm / "config.json").write_text(json.dumps(text))
    (prm / "modeling_qwen2_rm.py").write_text("raise SystemExit('remote code ran')")
    save_file(tensors, prm / "model.safetensors", metadata={"format": "pt"})
    return prm


def expected_logits(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    """(T, 2): the decoder by hand, then Linear → ReLU → Linear."""
    reader = ChatModel.__new__(ChatModel)
    reader.config = {"llm_config": json.loads((folder / "config.json").read_text())}
    weights = load_file(folder / "model.safetensors")
    reader.w = {f"language_model.{name}": tensor for name, tensor in weights.items()}
    reader.w["language_model.lm_head.weight"] = torch.eye(reader.config["llm_config"]["hidden_size"])
    hidden = reader.decoder(ids)
    inner = linear(hidden, weights["score.0.weight"], weights["score.0.bias"]).relu()
    return linear(inner, weights["score.2.weight"], weights["score.2.bias"])


def rows(*lengths: int) -> tuple[dict[str, torch.Tensor], list[list[int]]]:
    """Right-padded rows with a tag after every fourth token."""
    width, generator = max(lengths), torch.Generator().manual_seed(2)
    ids = torch.randint(10, 300, (len(lengths), width), generator=generator)
    ids[:, 3::4] = TAG
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    return {"input_ids": ids, "attention_mask": mask.long()}, [list(range(3, length, 4)) for length in lengths]


def test_label_logits_and_scores(checkpoint: Path) -> None:
    """Positive is the head's second column; padding and the other rows' positions change nothing."""
    model = load_label_head(checkpoint)
    inputs, positions = rows(12, 21)
    with torch.inference_mode():
        came = logits_at(model, inputs, positions, HEAD_COLUMNS)
    for row, (logits, places) in enumerate(zip(came, positions, strict=True)):
        expected = expected_logits(checkpoint, inputs["input_ids"][row, : max(places) + 1])[places]
        assert torch.allclose(logits, expected[:, [1, 0]], atol=1e-5)
        assert label_softmax(logits).values == pytest.approx(expected.softmax(-1)[:, 1].tolist(), abs=1e-5)
    assert float(torch.cat(came).std()) > 0.1


@pytest.mark.parametrize(("keep", "columns"), [(0, slice(None)), (3, slice(-3, None)), (torch.tensor([2, 5]), [2, 5])])
def test_positions_to_keep(checkpoint: Path, keep: Any, columns: Any) -> None:
    model: Any = load_label_head(checkpoint)
    inputs, _ = rows(9)
    with torch.inference_mode():
        whole, kept = model(**inputs).logits, model(**inputs, logits_to_keep=keep).logits
    assert whole.shape == (1, 9, 2)
    assert torch.equal(kept, whole[:, columns])


def changed(checkpoint: Path, folder: Path, change: Any) -> Path:
    tensors = load_file(checkpoint / "model.safetensors")
    change(tensors)
    (folder / "config.json").write_text((checkpoint / "config.json").read_text())
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_left_over_language_head_is_ignored(checkpoint: Path, tmp_path: Path) -> None:
    folder = changed(checkpoint, tmp_path, lambda tensors: tensors.update({"lm_head.weight": torch.ones(4, 32)}))
    assert load_label_head(folder)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda tensors: tensors.pop("score.2.bias"), r"score\.2\.bias"),
        (lambda tensors: tensors.update({"v_head.weight": torch.ones(1, 32)}), r"v_head\.weight"),
        (lambda tensors: tensors.update({"score.2.weight": torch.ones(1, 32)}), "Qwen2ProcessRewardModel"),
    ],
)
def test_another_head_is_refused(checkpoint: Path, tmp_path: Path, change: Any, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        load_label_head(changed(checkpoint, tmp_path, change))
