"""Reward models with a scalar head: one value per response, read at its last token. Skywork-VL-Reward, for one.

Such a folder is an ordinary checkpoint and a `value_head.safetensors` with `v_head.summary.weight` (1, H) and
`v_head.summary.bias` (1,), as TRL's value-head wrapper and LLaMA-Factory write it. The conversation is rendered with
the checkpoint's chat template, the response as the assistant's turn, and the head reads the last hidden state of its
last token (model card of Skywork/Skywork-VL-Reward-7B). The head takes the place of the LM head, so it is read as any
logit is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from mpo.multimodal.errors import ConfigError, DataError
from mpo.multimodal.images import load_image
from mpo.multimodal.loading import best_device, load_model, load_processor, stored_dtype
from mpo.multimodal.messages import assistant_message, control_tokens_in, prompt_text, sanitised, user_message
from mpo.multimodal.prefix import EncodedPrompt, encode_prompt, stack_rows
from mpo.multimodal.scoring import logits_at
from rewards.types import Problem

HEAD = "value_head.safetensors"
WEIGHT, BIAS = "v_head.summary.weight", "v_head.summary.bias"


class RewardModel:
    """Gives each response P(better than one of value 0) = σ(value), which ranks as the value does.

    Args:
        model: whose output embedding is the scalar head, in eval mode, on its device.
        processor: its processor.
        batch_rows: responses per forward pass.
    """

    def __init__(self, model: Any, processor: Any, *, batch_rows: int = 8) -> None:
        self.model, self.processor, self.batch_rows = model, processor, batch_rows

    @classmethod
    def load(cls, path: str | Path, *, batch_rows: int = 8) -> RewardModel:
        """Load a checkpoint and its head, in the number type that it is stored in.

        Raises:
            ConfigError: there is no head, or not one of this checkpoint.
            StageError: there is no checkpoint.
        """
        model: Any = load_model(path, dtype=stored_dtype(path))
        weight, bias = _head(Path(path), model.get_output_embeddings().weight.shape[1])
        head = nn.Linear(weight.shape[1], 1, dtype=torch.float32)
        with torch.no_grad():
            head.weight.copy_(weight)
            head.bias.copy_(bias)
        model.set_output_embeddings(_InFloat32(head))
        return cls(model.to(best_device()).eval(), load_processor(path), batch_rows=batch_rows)

    def rewards(self, items: Sequence[tuple[Problem, str]]) -> list[float | DataError]:
        """σ(value) of each (problem, response) in (0, 1), or in its place why it has none; in order."""
        found = [self._row(*item) for item in items]
        places = [place for place, row in enumerate(found) if not isinstance(row, DataError)]
        rewards: list[float | DataError] = [row if isinstance(row, DataError) else math.nan for row in found]
        for start in range(0, len(places), self.batch_rows):
            some = places[start : start + self.batch_rows]
            for place, value in zip(some, self._values([found[place] for place in some]), strict=True):  # type: ignore[misc]
                rewards[place] = 1 / (1 + math.exp(-value)) if value > -700 else 0.0
        return rewards

    def _row(self, problem: Problem, response: str) -> EncodedPrompt | DataError:
        if not response.strip():
            return DataError("the response is empty", reason="empty")
        if control_tokens_in(self.processor, response):
            return DataError("the response holds a control token", reason="control token")
        asked = user_message(problem.question, len(problem.images))
        messages = sanitised(self.processor, [asked, assistant_message(response)])
        text = prompt_text(self.processor, messages, add_generation_prompt=False)
        return encode_prompt(self.processor, text, [load_image(image) for image in problem.images])

    @torch.inference_mode()
    def _values(self, rows: Sequence[EncodedPrompt]) -> list[float]:
        pad = self.processor.tokenizer.pad_token_id
        inputs = stack_rows(rows, [()] * len(rows), pad_token_id=0 if pad is None else pad)
        inputs = {name: value.to(self.model.device) for name, value in inputs.items()}
        last = [[len(row.input_ids) - 1] for row in rows]
        return [float(value) for value in logits_at(self.model, inputs, last, [0])]


class _InFloat32(nn.Module):
    """A head that is read in float32, whatever the model computes in: one value decides."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.head = head

    @property
    def weight(self) -> Any:
        """Of the head, which transformers asks an output embedding for."""
        return self.head.weight

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(…, H) → (…, 1)."""
        return self.head(hidden.to(self.head.weight.dtype))


def _head(folder: Path, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight (1, H) and bias (1,), float32."""
    if not (folder / HEAD).is_file():
        raise ConfigError(f"{folder} has no {HEAD}: expected a reward model with a scalar head, as Skywork-VL-Reward")
    try:
        found = load_file(folder / HEAD)
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{folder / HEAD} cannot be read: {error}; copy it again") from error
    shapes = {name: tuple(value.shape) for name, value in found.items()}
    if shapes != {WEIGHT: (1, width), BIAS: (1,)} or not all(value.isfinite().all() for value in found.values()):
        raise ConfigError(
            f"{folder / HEAD}: expected finite {WEIGHT} {(1, width)} and {BIAS} (1,), got {str(shapes)[:200]}"
        )
    return found[WEIGHT].float(), found[BIAS].float()
