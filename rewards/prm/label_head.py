"""PRMs that score with a head of their own instead of with label tokens: Qwen2.5-Math-PRM, without its remote code.

Its checkpoint (`Qwen2ForProcessRewardModel`, [arXiv 2501.07301](https://arxiv.org/abs/2501.07301)) is a Qwen2 decoder
and a head `score`, Linear → ReLU → Linear, that gives two logits at every position: wrong, right. A step's score is
their softmax at the tag token `<extra_0>` that follows the step.

The head takes the place of the LM head, so the readout is the usual one with other ids:

    logits_at(model, inputs, positions, HEAD_COLUMNS)  # mpo.multimodal.scoring, then label_softmax
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForTokenClassification
from transformers.modeling_outputs import TokenClassifierOutput

from mpo.multimodal.errors import ConfigError
from mpo.multimodal.hub import adapter_base, loadable_folder
from mpo.multimodal.loading import load_model
from rewards.prm.formats import FORMATS, HEAD_COLUMNS, PRMFormat

HEAD = "score."  # how the tensors of a label head are named
READS = {"head": "the label head", "tokens": "the logits of label tokens"}


class Qwen2ProcessRewardModel(Qwen2ForTokenClassification):
    """A Qwen2 decoder with a two-layer label head; parameters are named as in the released checkpoints."""

    _keys_to_ignore_on_load_unexpected = {r"lm_head\."}  # noqa: RUF012  left over from the language model

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.score: Any = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, len(HEAD_COLUMNS)))
        self.post_init()

    def forward(self, *arguments: Any, logits_to_keep: int | Tensor = 0, **inputs: Any) -> TokenClassifierOutput:
        """Logits (B, T, 2), or (B, K, 2) of the K positions to keep.

        Args:
            arguments, inputs: of a Qwen2 model.
            logits_to_keep: as in transformers' language models: a number of last positions (0: all), or positions.
        """
        output = super().forward(*arguments, **inputs)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        output.logits = output.logits[:, kept]
        return output


def check_head(path: str | Path, prm_format: PRMFormat) -> None:
    """Compare what a checkpoint scores with, read off the names of its tensors, with what a format reads.

    Raises:
        ConfigError: a label head and a format of label tokens, or the other way round; it names the formats that fit.
    """
    folder = loadable_folder(path)
    head = next((name for name in _tensor_names(adapter_base(folder) or folder) if name.startswith(HEAD)), None)
    fits = "head" if head else "tokens"
    if prm_format.readout != fits:
        has = f"scores with a label head ({head})" if head else f"has no label head (no tensor {HEAD}*)"
        names = ", ".join(name for name, one in FORMATS.items() if one.readout == fits)
        raise ConfigError(
            f"{path} {has}, and the PRM format {prm_format.name!r} reads {READS[prm_format.readout]}: expected one "
            f"that reads {READS[fits]}, of which there are {names}"
        )


def load_label_head(path: str | Path, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A Qwen2.5-Math-PRM checkpoint on the CPU, in eval mode; no code of its folder is run.

    Raises:
        ConfigError: parameters are missing, left over, or of another shape, e.g. since it has another head.
    """
    model: Any = load_model(path, dtype=dtype, model_class=Qwen2ProcessRewardModel)
    return model.eval()


def _tensor_names(folder: Path) -> Iterable[str]:
    """Names in the headers of a checkpoint's safetensors; a damaged file has none, and loading says so."""
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as opened:
                yield from opened.keys()
        except SafetensorError:
            continue
