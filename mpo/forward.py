"""The two models of a preference run: prepared once, then batch → PairLogps.

A batch holds M responses, packed or a row each, and B pairs of them. The model itself is called in
`mpo/multimodal/scoring.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging

from mpo.initial_policy import check_fresh_adapters, why_base_is_no_reference
from mpo.multimodal.errors import ConfigError
from mpo.multimodal.loading import load_model
from mpo.multimodal.logps import enable_chunked_logps
from mpo.multimodal.scoring import response_lengths, response_logps
from mpo.quantised import admit_quantised
from mpo.types import PairLogps

logger = logging.get_logger(__name__)

Source = str | Path | PreTrainedModel | PeftModel


def pair_logps(
    policy: nn.Module,
    inputs: Mapping[str, Any],
    pair_index: Tensor,
    *,
    reference: nn.Module | None = None,
    reference_sums: Tensor | None = None,
) -> PairLogps:
    """Log-probs of B pairs under the policy, with gradients, and under the reference, without.

    Args:
        policy: the trained model, possibly wrapped (PEFT, DDP, FSDP).
        inputs: from `PreferenceCollator`, model inputs only: M responses.
        pair_index: int64 (B, 2), the chosen and the rejected response of each pair.
        reference: a frozen model, or None: the policy with its PEFT adapters disabled.
        reference_sums: the reference's log-probs (M,), where they are known: nothing but the policy runs.

    Returns:
        Five (B,) tensors.

    Raises:
        ConfigError: no reference, and a policy without adapters to disable.
    """
    # The reference runs first: toggling adapters must not touch a graph that still waits for its backward.
    known = reference_logps(policy, inputs, reference=reference) if reference_sums is None else reference_sums
    sums, lengths = response_logps(policy, inputs)  # (M,), (M,)
    chosen, rejected = pair_index.unbind(dim=1)  # (B,), (B,)
    return PairLogps(sums[chosen], sums[rejected], known[chosen], known[rejected], lengths[chosen])


def model_inputs(batch: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the models read of a collated batch, and the rest, which records how its responses form pairs."""
    about_pairs = {name for name in batch if name.startswith(("pair_", "response_"))}
    inputs = {name: value for name, value in batch.items() if name not in about_pairs}
    return inputs, {name: batch[name] for name in about_pairs}


def reference_logps(policy: nn.Module, inputs: Mapping[str, Any], *, reference: nn.Module | None = None) -> Tensor:
    """Log-probs of the M responses under the reference, float32 (M,), without gradients."""
    with torch.no_grad():
        if reference is not None:
            return response_logps(reference, inputs)[0]
        with _adapters_disabled(policy):
            return response_logps(policy, inputs)[0]


def chosen_lengths(batch: Mapping[str, Any]) -> Tensor:
    """|y_c|, labelled tokens of the chosen response of each pair, int64 (B,)."""
    return response_lengths(batch)[batch["pair_index"][:, 0]]


def prepare_models(
    model: Source,
    ref_model: Source | None = None,
    *,
    peft_config: PeftConfig | None = None,
    checkpointing: bool = False,
    copy_policy: bool = True,
    dtype: torch.dtype = torch.float32,
) -> tuple[Any, PreTrainedModel | None]:
    """Policy, ready to train, and frozen reference; None where the reference is the policy without its adapters.

    Args:
        model: folder, name on the hub, or model of the policy.
        ref_model: the same for the reference; None with plain weights keeps a frozen copy of `model`.
        peft_config: adapters to put around the policy.
        checkpointing: whether activations will be recomputed, which adapters need to know.
        copy_policy: False makes no frozen copy: the caller asks the policy itself before it is trained.
        dtype: of weights that are read from a path.

    Raises:
        ConfigError: a model, reference or adapter that cannot work together.
    """
    policy: Any = load_model(model, dtype=dtype) if isinstance(model, (str, Path)) else model
    if isinstance(policy, PeftModel) and peft_config is not None:
        raise ConfigError("the model already has adapters: leave peft_config out, or call merge_and_unload() first")
    if ref_model is policy:
        raise ConfigError("model and ref_model are one object: leave ref_model out to keep a frozen copy")

    base: Any = policy.get_base_model() if isinstance(policy, PeftModel) else policy
    admit_quantised(base, has_adapters=base is not policy or peft_config is not None)
    reference: Any = load_model(ref_model, dtype=dtype) if isinstance(ref_model, (str, Path)) else ref_model
    if reference is None and isinstance(policy, PeftModel):
        check_fresh_adapters(policy)
    elif reference is None and peft_config is not None:
        reason = why_base_is_no_reference(peft_config)
        if reason:
            logger.warning(
                "the reference is a frozen copy of the policy, since %s; it takes the policy's memory", reason
            )
            reference = _frozen_copy(policy)
    elif reference is None and copy_policy:
        reference = _frozen_copy(policy)
    if reference is not None:
        reference.requires_grad_(False).eval()
        reference.config.use_cache = False
        enable_chunked_logps(reference)

    enable_chunked_logps(base)
    if peft_config is not None:
        # A copy, since PEFT writes into what it is given; around the chunked log-probs, not inside.
        policy = get_peft_model(policy, copy.deepcopy(peft_config))
    if isinstance(policy, PeftModel):
        _check_head(policy)
        if checkpointing:
            policy.enable_input_require_grads()
    return policy, reference


def source_of(model: Source) -> str:
    """The path that a model was loaded from, where its processor lies as well."""
    path = str(model) if isinstance(model, (str, Path)) else getattr(model.config, "_name_or_path", "")
    if not path:
        raise ConfigError("the model was not loaded from a path: pass its processor as processing_class")
    return path


def _frozen_copy(policy: PreTrainedModel) -> PreTrainedModel:
    reference = copy.deepcopy(policy)
    # A patched forward (chunked log-probs, autocast) is bound to the original and would run the original's weights.
    reference.__dict__.pop("forward", None)
    reference.__dict__.pop("_chunked_logps", None)
    return reference


def _check_head(policy: Any) -> None:
    if isinstance(policy.get_base_model().get_output_embeddings(), BaseTunerLayer):
        raise ConfigError("an adapter on lm_head would never train (log-probs read its weight): exclude lm_head")


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
