"""The only `from_pretrained`: models and processors, without remote code, from a local folder or the hub.

A checkpoint without an image processor is a text model: a causal LM whose tokenizer is called like a processor.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedModel,
)

from mpo.multimodal.errors import ConfigError, StageError
from mpo.multimodal.text_processor import TextProcessor


def load_processor(path: str | Path) -> Any:
    """Processor (tokenizer, image processor, chat template) of a checkpoint; a `TextProcessor` of a text model."""
    _check(path)
    processor = AutoProcessor.from_pretrained(str(path), trust_remote_code=False)
    return processor if hasattr(processor, "tokenizer") else TextProcessor(processor)


def load_for_inference(path: str | Path) -> PreTrainedModel:
    """The model of a checkpoint on the best device, in eval mode, in the number type that it is stored in."""
    model: Any = load_model(path, dtype=stored_dtype(path))
    return model.to(best_device()).eval()


def load_model(
    path: str | Path, *, dtype: torch.dtype = torch.float32, quantization_config: Any = None
) -> PreTrainedModel:
    """The model of a checkpoint, on the CPU; a quantised one where its backend puts it.

    It is an image-text-to-text model where transformers has such a class for its config, else a causal LM.

    Args:
        path: a local folder or a name on the hub.
        dtype: of the weights that are not quantised.
        quantization_config: e.g. `transformers.BitsAndBytesConfig(load_in_4bit=True)`, for QLoRA.

    Raises:
        StageError: a local path without `config.json`: the stage that writes it has not run.
    """
    _check(path)
    more = {} if quantization_config is None else {"quantization_config": quantization_config}
    config = AutoConfig.from_pretrained(str(path), trust_remote_code=False)
    sees = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    auto = AutoModelForImageTextToText if sees else AutoModelForCausalLM
    return auto.from_pretrained(str(path), dtype=dtype, trust_remote_code=False, **more)


def load_merged(path: str | Path, adapter: str | Path, *, dtype: torch.dtype) -> PreTrainedModel:
    """The model of a checkpoint with a PEFT adapter's changes added to its weights, on the CPU.

    Args:
        path: the checkpoint that the adapter was trained on.
        adapter: folder with `adapter_config.json`.
        dtype: of the weights; the sum is rounded to it.
    """
    base: Any = load_model(path, dtype=dtype)
    return PeftModel.from_pretrained(base, str(adapter)).merge_and_unload()


def stored_dtype(path: str | Path) -> torch.dtype:
    """The number type that a checkpoint's configuration names; float32 if it names none."""
    _check(path)
    config = AutoConfig.from_pretrained(str(path), trust_remote_code=False)
    return config.dtype or config.get_text_config().dtype or torch.float32


def load_exactly(
    path: str | Path, model_class: type[PreTrainedModel], *, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """A model of a class that no Auto class knows, on the CPU; its parameters and the checkpoint's are the same.

    Raises:
        ConfigError: parameters are missing, left over, or of another shape.
    """
    _check(path)
    loads: Any = model_class
    try:
        model, report = loads.from_pretrained(str(path), dtype=dtype, output_loading_info=True)
    except RuntimeError as error:  # shapes differ
        raise ConfigError(f"{path} does not hold a {model_class.__name__}: {error}") from error
    wrong = [*report["missing_keys"], *report["unexpected_keys"], *report["mismatched_keys"]]
    if wrong:
        raise ConfigError(
            f"{path} does not hold a {model_class.__name__}: {len(wrong)} parameters are missing or left over, "
            f"e.g. {min(map(str, wrong))}"
        )
    return model


def best_device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator or torch.device("cpu")


def _check(path: str | Path) -> None:
    looks_local = Path(path).is_absolute() or str(path).startswith((".", "runs/")) or Path(path).exists()
    if looks_local and not (Path(path) / "config.json").exists():
        raise StageError(f"no model at {path}: expected a folder with config.json; run the stage that trains it first")
