"""The reference is the initial policy (DPO, arXiv 2305.18290): which adapters keep it under them, and a look at both.

What is known of adapters is asked before a run; whatever was missed shows on the first batch, where policy and
reference must agree: every implicit reward is 0 there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from torch import Tensor
from transformers.utils import logging

from mpo.multimodal.agreement import computing_dtype
from mpo.multimodal.errors import ConfigError
from mpo.types import PairLogps

# Nats per token that rounding may leave between two ways to run the same weights, in float32 and in half precision.
TOLERANCE, TOLERANCE_HALF = 1e-3, 5e-2

logger = logging.get_logger(__name__)


def why_base_is_no_reference(peft_config: PeftConfig) -> str | None:
    """Why the model without these adapters is, or becomes, another one than the initial policy; None where it stays it.

    A reference is the initial policy, unchanged (DPO, arXiv 2305.18290). The model under the adapters is that only if
    they begin as the identity and nothing else trains. `bias` trains weights of the base; PiSSA, OLoRA and CorDA move a
    part of the base's weights into the adapters at the start.

    Raises:
        ConfigError: adapters whose random or approximate start makes the initial policy itself another model.

    Example:
        >>> from peft import LoraConfig
        >>> why_base_is_no_reference(LoraConfig()), why_base_is_no_reference(LoraConfig(bias="all"))
        (None, "bias='all' trains weights of the model under the adapters")
    """
    bias, start = getattr(peft_config, "bias", "none"), getattr(peft_config, "init_lora_weights", None)
    name = type(peft_config).__name__
    if start is False or start == "loftq":
        raise ConfigError(
            f"init_lora_weights={start!r} starts from another model than the one given, so no reference is the initial "
            "policy: take the default True, or train from a merged model"
        )
    if bias != "none":
        return f"bias={bias!r} trains weights of the model under the adapters"
    if name == "LoraConfig" and start in (True, "gaussian", "eva"):
        return None  # B is 0, and the base's weights stay as they are
    if name == "LoraConfig":
        return f"init_lora_weights={start!r} starts with adapters that are not 0"
    return f"it is not known whether the adapters of {name} begin as the identity"


def check_fresh_adapters(policy: PeftModel) -> None:
    """Disabled adapters are the initial policy only while every B of LoRA is 0 and nothing under them trains.

    Raises:
        ConfigError: trained adapters, or adapters under which the model is not the initial policy.
    """
    for config in policy.peft_config.values():
        if reason := why_base_is_no_reference(config):
            raise ConfigError(f"the model without its adapters is no reference, since {reason}: pass ref_model")
    if any(bool(p.detach().any()) for name, p in policy.named_parameters() if "lora_B" in name):
        raise ConfigError(
            "the PEFT model's adapters are trained, so the model without them is not the initial policy: "
            "call merge_and_unload() and pass a fresh peft_config, or pass ref_model"
        )


class StartCheck:
    """Calls `check_start` on the first batch that a trainer trains on, and never again.

    Args:
        trainer: whose policy starts at its reference; one that resumes does not.
        expected: False for a reference that is another model on purpose: nothing is looked at.
    """

    def __init__(self, trainer: Any, *, expected: bool) -> None:
        self.trainer, self.expected = trainer, expected

    def __call__(self, logps: PairLogps) -> None:
        """Look at a batch, on every rank.

        Raises:
            ConfigError: policy and reference differ.
        """
        trainer, expected, self.expected = self.trainer, self.expected, False
        if not expected or trainer.state.global_step > 0:
            return
        with trainer.accelerator.autocast():
            dtype = computing_dtype(trainer.model, logps.policy_chosen.device)
        dropout = not trainer.args.disable_dropout
        check_start(logps, dtype=dtype, has_dropout=dropout, summed=trainer._sum_over_ranks)


@torch.no_grad()
def check_start(
    logps: PairLogps,
    *,
    dtype: torch.dtype,
    has_dropout: bool = False,
    summed: Callable[[Tensor], Tensor] = lambda values: values,
) -> None:
    """Compare policy and reference on the first batch of a run: mean over pairs of |π_c − ρ_c| / |y_c|.

    Args:
        logps: of the batch.
        dtype: that the passes ran in.
        has_dropout: the policy has dropout on purpose, so that the two differ: a warning.
        summed: over the ranks that decide together; all of them call.

    Raises:
        ConfigError: they differ by more than rounding. NaN is left to the guard that names its rows.
    """
    off = ((logps.policy_chosen - logps.reference_chosen).float().abs() / logps.chosen_lengths).sum()
    total, pairs = summed(torch.stack([off, off.new_tensor(float(len(logps.chosen_lengths)))])).tolist()
    limit = TOLERANCE if dtype == torch.float32 else TOLERANCE_HALF
    if not pairs or not total / pairs > limit:
        return
    said = (
        f"on the first batch policy and reference differ by {total / pairs:.2g} nats per token (limit {limit:g}), so "
        "the reference is not the initial policy"
    )
    if has_dropout:
        logger.warning("%s: dropout is on (disable_dropout=False)", said)
        return
    raise ConfigError(
        f"{said}: adapters that do not begin as the identity, weights that were changed after the trainer was made, or "
        "layers that are random in training; pass ref_model if another reference is meant"
    )
