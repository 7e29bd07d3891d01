"""Batch → PairLogps, for policy and reference.

Rows are the paired layout: the prompt is repeated for each response, all chosen rows first, then all rejected ones.
The model itself is called in `mpo/multimodal/scoring.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mpo.multimodal.errors import ConfigError
from mpo.multimodal.scoring import response_logps
from mpo.types import PairLogps


def pair_logps(policy: nn.Module, inputs: Mapping[str, Tensor], *, reference: nn.Module | None = None) -> PairLogps:
    """Log-probs of B pairs under the policy, with gradients, and under the reference, without.

    Args:
        policy: the trained model, possibly wrapped (PEFT, DDP, FSDP).
        inputs: 2B rows from `PreferenceCollator`, model inputs only.
        reference: a frozen model, or None: the policy with its PEFT adapters disabled.

    Returns:
        Five (B,) tensors.

    Raises:
        ConfigError: no reference, and a policy without adapters to disable.
    """
    # The reference runs first: toggling adapters must not touch a graph that still waits for its backward.
    with torch.no_grad():
        if reference is not None:
            reference_sums, _ = response_logps(reference, inputs)
        else:
            with _adapters_disabled(policy):
                reference_sums, _ = response_logps(policy, inputs)
    policy_sums, lengths = response_logps(policy, inputs)  # (2B,), (2B,)
    policy_chosen, policy_rejected = policy_sums.chunk(2)
    reference_chosen, reference_rejected = reference_sums.chunk(2)
    return PairLogps(policy_chosen, policy_rejected, reference_chosen, reference_rejected, lengths.chunk(2)[0])


@contextmanager
def _adapters_disabled(policy: nn.Module) -> Iterator[None]:
    """The base model inside a PEFT policy, in evaluation mode: a reference has no dropout."""
    peft_model = _unwrapped(policy)
    if not hasattr(peft_model, "disable_adapter"):
        raise ConfigError(
            f"no reference: expected a reference model or a PEFT policy, got only a {type(peft_model).__name__}"
        )
    was_training = policy.training
    policy.eval()
    try:
        with peft_model.disable_adapter():
            yield
    finally:
        policy.train(was_training)


def _unwrapped(model: Any) -> Any:
    """Inside DDP, DeepSpeed (`.module`) and torch.compile (`._orig_mod`)."""
    for attribute in ("_orig_mod", "module"):
        if not hasattr(model, "disable_adapter") and isinstance(getattr(model, attribute, None), nn.Module):
            return _unwrapped(getattr(model, attribute))
    return model
