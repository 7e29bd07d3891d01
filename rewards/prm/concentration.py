"""How sure a PRM is of a step's score: a head that predicts the concentration κ of the Beta that the count came from.

    log κ(x) = w·h(x) + b,   mc of the step ~ Beta(κ·p, κ·(1 − p)),   spread = √(p·(1 − p) / (κ + 1))

h(x) is the hidden state that the LM head reads where the step is scored, p the step's score. The spread is the standard
deviation of that Beta: how far mc may lie from p, as far as the PRM can tell from the text and the image. Head and PRM
are trained together by the Beta-Binomial likelihood of the counts (`rewards/prm/step_losses.py`), as in BetaPRM
(https://arxiv.org/abs/2605.15529). Steps with one draw teach κ nothing.

The head is saved in a file of its own beside the weights, `concentration_head.safetensors`, which `prm.json` names.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import linear

from mpo.multimodal.errors import ConfigError
from mpo.multimodal.scoring import innermost
from rewards.prm.formats import CONTRACT

FILE = "concentration_head.safetensors"
KEY = "concentration_head"  # of the contract; its value is the file's name
WEIGHT, BIAS = "concentration_head.weight", "concentration_head.bias"
START = 8.0  # κ of every step before training: about what 8 draws say
LEAST, MOST = math.log(1e-3), math.log(1e6)  # of log κ; beyond, the likelihood is flat


class ConcentrationHead(nn.Module):
    """Hidden states → log κ; before training the same number everywhere.

    Args:
        width: H, of a hidden state.
        start: κ before training, above 0.

    Example:
        >>> head = ConcentrationHead(4, start=3.0)
        >>> head(torch.randn(2, 5, 4)).shape, round(head(torch.ones(1, 4)).exp().item(), 4)
        (torch.Size([2, 5, 1]), 3.0)
    """

    def __init__(self, width: int, *, start: float = START) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, width))  # (1, H) float32
        self.bias = nn.Parameter(torch.tensor([math.log(start)]))  # (1,) float32

    def forward(self, hidden: Tensor) -> Tensor:
        """(…, H) of any number type → log κ, float32 (…, 1)."""
        with torch.autocast(hidden.device.type, enabled=False):
            return linear(hidden.float(), self.weight.float(), self.bias.float()).clamp(LEAST, MOST)


def spread_of_scores(scores: Tensor, log_concentration: Tensor) -> Tensor:
    """The standard deviation √(p·(1 − p) / (κ + 1)) of Beta(κ·p, κ·(1 − p)), in [0, ½).

    Args:
        scores: (S,) float, p in [0, 1].
        log_concentration: (S,) float, log κ.

    Returns:
        (S,) of the scores' dtype.

    Example:
        >>> spread_of_scores(torch.tensor([0.5, 1.0]), torch.tensor([3.0, 3.0]).log())  # √(¼ / 4)
        tensor([0.2500, 0.0000])
    """
    return (scores * (1 - scores) / (log_concentration.exp() + 1)).sqrt()


def attach_head(model: Any, *, start: float | None = None) -> ConcentrationHead:
    """A new head as a part of a model that is trained: of its parameters, and not of the weights that it saves.

    Args:
        model: with an LM head, possibly wrapped by PEFT.
        start: κ before training, above 0; None is `START`.

    Raises:
        ConfigError: the model has no LM head, such as one that scores with a label head.
    """
    base = innermost(model)
    embeddings = base.get_output_embeddings()
    if embeddings is None:
        raise ConfigError(
            f"a concentration head reads what an LM head reads, and {type(base).__name__} has none: use a format that "
            "reads label tokens, or leave the head out"
        )
    head = ConcentrationHead(embeddings.weight.shape[1], start=start or START).to(embeddings.weight.device)
    base.concentration_head = head
    base._keys_to_ignore_on_save = {*(base._keys_to_ignore_on_save or ()), WEIGHT, BIAS}
    return head


def save_head(folder: str | Path, head: ConcentrationHead) -> None:
    """Write the head beside a PRM's weights, in float32."""
    tensors = {WEIGHT: head.weight, BIAS: head.bias}
    kept = {name: value.detach().float().cpu().contiguous() for name, value in tensors.items()}
    save_file(kept, str(Path(folder) / FILE), metadata={"format": "pt"})


def load_head(folder: str | Path, model: Any) -> ConcentrationHead:
    """The head of a PRM's folder, on the CPU.

    Args:
        folder: whose contract names the head.
        model: the folder's model; it is not changed.

    Raises:
        ConfigError: the file is missing or damaged, holds other tensors, or NaN or infinity; or the model has no LM
            head.
    """
    file, embeddings = Path(folder) / FILE, innermost(model).get_output_embeddings()
    if embeddings is None:
        raise ConfigError(f"{Path(folder) / CONTRACT} names {FILE}, and {type(model).__name__} has no LM head to read")
    if not file.is_file():
        raise ConfigError(
            f"{Path(folder) / CONTRACT} names {FILE}, which is not there: copy it too, or train the PRM again"
        )
    try:
        found = load_file(file)
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{file} cannot be read: {error}; copy it again") from error
    shapes = {name: tuple(value.shape) for name, value in found.items()}
    expected = {WEIGHT: (1, embeddings.weight.shape[1]), BIAS: (1,)}
    if shapes != expected or not all(value.isfinite().all() for value in found.values()):
        raise ConfigError(
            f"{file}: expected finite {WEIGHT} {expected[WEIGHT]} and {BIAS} (1,), got {str(shapes)[:200]}; copy the "
            "file that was saved with these weights"
        )
    head = ConcentrationHead(expected[WEIGHT][1])
    with torch.no_grad():
        head.weight.copy_(found[WEIGHT])
        head.bias.copy_(found[BIAS])
    return head
