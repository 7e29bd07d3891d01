"""Which of a model's weights are trained, in which number type, and how the result is written."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from transformers import PreTrainedModel

from mpo.multimodal.errors import ConfigError
from mpo.multimodal.files import read_json, write_atomic
from mpo.multimodal.hub import hub_name
from mpo.multimodal.loading import load_merged, load_model, stored_dtype
from recipes.config import TrainGRPOConfig, TrainMPOConfig, WeightTraining
from recipes.stage.folder import is_first_process

ADAPTER = "adapter"  # folder in a stage's folder
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def run_dtype(config: WeightTraining, source: Path) -> torch.dtype:
    """The number type that the forward pass runs in, and that the result is written in.

    Args:
        config: of the stage.
        source: the model that it starts from.

    Raises:
        ConfigError: no name of `DTYPES`, or "auto" for a checkpoint in another type.
    """
    if config.dtype == "auto":
        stored = stored_dtype(source)
        if stored in DTYPES.values():
            return stored
        raise ConfigError(f"{source} is stored in {stored}: set dtype to one of {', '.join(DTYPES)}")
    if config.dtype not in DTYPES:
        raise ConfigError(f"dtype must be auto or one of {', '.join(DTYPES)}, got {config.dtype!r}")
    return DTYPES[config.dtype]


def load_policy(
    config: TrainMPOConfig | TrainGRPOConfig, dtype: torch.dtype
) -> tuple[PreTrainedModel, LoraConfig | None]:
    """The policy, frozen where it is not trained, and its adapters."""
    model = load_model(config.policy, dtype=weights_dtype(config, dtype))
    return model, choose_trained(model, config)


def weights_dtype(config: WeightTraining, dtype: torch.dtype) -> torch.dtype:
    """The number type of the weights while they are trained, of a pass in `dtype`.

    Weights that are trained are float32 whatever the pass runs in: at a learning rate of 1e-6, an Adam step is below
    the resolution of bfloat16 and would be lost. Under adapters the weights stay as they are, so they take `dtype`; so
    do those whose float32 copies the optimizer keeps.
    """
    return dtype if config.lora_rank or getattr(config, "master_weights", False) else torch.float32


def choose_trained(model: Any, config: WeightTraining) -> LoraConfig | None:
    """Freeze in place what is not trained; the adapters to put around the model, if there are to be any.

    Raises:
        ConfigError: `lora_targets` names a layer that the model does not have.
    """
    if config.lora_rank:
        return _adapters(model, config)
    head = model.get_output_embeddings()
    if config.freeze_vision and head is not None:  # a PRM with a label head has none, and no vision
        trained = {id(parameter) for part in (model.get_decoder(), head) for parameter in part.parameters()}
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in trained)
    return None


def _adapters(model: Any, config: WeightTraining) -> LoraConfig:
    all_linear = config.lora_targets == ["all-linear"]
    names = [f".{name}" for name, _ in model.named_modules()]
    unknown = [target for target in config.lora_targets if not any(name.endswith(f".{target}") for name in names)]
    if unknown and not all_linear:
        source = model.config._name_or_path
        raise ConfigError(f"lora_targets: {source} has no layer {unknown[0]!r}; all-linear takes every one")
    decoder = next(name for name, module in model.named_modules() if module is model.get_decoder())
    only_decoder = rf"(?!{re.escape(decoder)}\.).*"  # matches every name outside
    head = None if model.get_output_embeddings() is None else r"(.*\.)?lm_head"
    return LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        target_modules="all-linear" if all_linear else config.lora_targets,
        exclude_modules=only_decoder if config.freeze_vision else head,
    )


def save_policy(trainer: Any, config: TrainMPOConfig | TrainGRPOConfig, out: Path, dtype: torch.dtype) -> None:
    """Write a whole model with its processor to `out`; adapters are merged into it, and kept in `out`/adapter too.

    All ranks call this. Merging reads the policy once more, on the first rank's CPU, so it works for shards as well.
    Under FSDP, weights that were trained are written as they were gathered, in float32.
    """
    if isinstance(trainer.accelerator.unwrap_model(trainer.model), PeftModel):
        trainer.save_model(str(out / ADAPTER))
        if is_first_process():
            (out / ADAPTER / "README.md").unlink(missing_ok=True)  # PEFT's, with the path of the base model
            in_order(out / ADAPTER / "adapter_config.json", base=config.policy)
            load_merged(config.policy, out / ADAPTER, dtype=dtype).save_pretrained(out)
            trainer.processing_class.save_pretrained(out)
        return
    weights_to(trainer, dtype)
    trainer.save_model(str(out))


def in_order(file: Path, *, base: Path) -> None:
    """Write PEFT's configuration with its names sorted, which it writes in the order of a hash seed, and the base's
    commit, if that came from the hub."""
    found = read_json(file)
    if name := hub_name(base):
        found["base_model_name_or_path"], _, found["revision"] = name.partition("@")
    found = {key: sorted(value) if _is_names(value) else value for key, value in found.items()}
    write_atomic(file, json.dumps(found, indent=2, sort_keys=True) + "\n")


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def weights_to(trainer: Any, dtype: torch.dtype) -> None:
    """Weights that were trained in float32 into the number type that they are written in, unless they are shards."""
    if not trainer.weights_get_sharded:
        trainer.model.to(dtype)
