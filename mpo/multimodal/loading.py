"""The only `from_pretrained`: models and processors, without remote code, from a local folder or the hub.

A checkpoint without an image processor is a text model: a causal LM whose tokenizer is called like a processor.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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
    PretrainedConfig,
    PreTrainedModel,
)

from mpo.multimodal.errors import ConfigError, MPOError, StageError
from mpo.multimodal.finite import non_finite_weight
from mpo.multimodal.text import one_line
from mpo.multimodal.text_processor import TextProcessor

# What an untrusted config.json may ask for; any other name is a repository whose kernels transformers would run.
ATTENTIONS = ("eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3")
ATTENTION_KEYS = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal",
                  "experts_implementation", "_experts_implementation")  # fmt: skip


def load_processor(path: str | Path) -> Any:
    """Processor (tokenizer, image processor, chat template) of a checkpoint; a `TextProcessor` of a text model."""
    _check(path)
    with _naming(path):
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
        ConfigError: a weight is NaN or infinite.
    """
    _check(path)
    more = {} if quantization_config is None else {"quantization_config": quantization_config}
    with _naming(path):
        config = AutoConfig.from_pretrained(str(path), trust_remote_code=False)
        sees = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
        auto = AutoModelForImageTextToText if sees else AutoModelForCausalLM
        model = auto.from_pretrained(str(path), dtype=dtype, trust_remote_code=False, **more)
    return _finite(model, path)


def load_merged(path: str | Path, adapter: str | Path, *, dtype: torch.dtype) -> PreTrainedModel:
    """The model of a checkpoint with a PEFT adapter's changes added to its weights, on the CPU.

    Args:
        path: the checkpoint that the adapter was trained on.
        adapter: folder with `adapter_config.json`.
        dtype: of the weights; the sum is rounded to it.
    """
    base: Any = load_model(path, dtype=dtype)
    with _naming(adapter):
        merged = PeftModel.from_pretrained(base, str(adapter)).merge_and_unload()
    return _finite(merged, adapter)


def load_config(path: str | Path) -> PretrainedConfig:
    """A checkpoint's configuration, checked; no weights are read."""
    _check(path)
    with _naming(path):
        return AutoConfig.from_pretrained(str(path), trust_remote_code=False)


def stored_dtype(path: str | Path) -> torch.dtype:
    """The number type that a checkpoint's configuration names; float32 if it names none."""
    config: Any = load_config(path)
    return config.dtype or config.get_text_config().dtype or torch.float32


def load_exactly(
    path: str | Path, model_class: type[PreTrainedModel], *, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """A model of a class that no Auto class knows, on the CPU; its parameters and the checkpoint's are the same.

    Raises:
        ConfigError: parameters are missing, left over, of another shape, or not finite.
    """
    _check(path)
    loads: Any = model_class
    with _naming(path, f"does not hold a {model_class.__name__}"):
        model, report = loads.from_pretrained(str(path), dtype=dtype, output_loading_info=True)
    wrong = [*report["missing_keys"], *report["unexpected_keys"], *report["mismatched_keys"]]
    if wrong:
        raise ConfigError(
            f"{path} does not hold a {model_class.__name__}: {len(wrong)} parameters are missing or left over, "
            f"e.g. {min(map(str, wrong))}"
        )
    return _finite(model, path)


def _finite(model: Any, path: str | Path) -> Any:
    if name := non_finite_weight(model):
        raise ConfigError(f"{path} holds NaN or infinity in {name}: expected finite weights; train or fetch it again")
    return model


def best_device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator or torch.device("cpu")


def _check(path: str | Path) -> None:
    looks_local = Path(path).is_absolute() or str(path).startswith((".", "runs/")) or Path(path).exists()
    if looks_local and not (Path(path) / "config.json").exists():
        raise StageError(f"no model at {path}: expected a folder with config.json; run the stage that trains it first")
    with _naming(path):
        config, _ = PretrainedConfig.get_config_dict(str(path))
    _check_attention(config, path)


def _check_attention(config: Any, path: str | Path) -> None:
    """Refuse what transformers would fetch and run: an attention that is named like a repository of kernels.

    Raises:
        ConfigError: any part of the config names an attention that is not in `ATTENTIONS`.
    """
    parts = config.values() if isinstance(config, dict) else config if isinstance(config, list) else ()
    for part in parts:
        _check_attention(part, path)
    for key in ATTENTION_KEYS if isinstance(config, dict) else ():
        named = config.get(key)
        wanted = [*named.values()] if isinstance(named, dict) else [named]
        if wrong := [name for name in wanted if name is not None and name not in ATTENTIONS]:
            raise ConfigError(
                f"{path}: config.json asks for {key}={one_line(str(wrong[0]), 80)!r}; expected one of "
                f"{', '.join(ATTENTIONS)}: no code is fetched, so remove the key"
            )


@contextmanager
def _naming(path: str | Path, what: str = "cannot be loaded") -> Iterator[None]:
    """A checkpoint that its library cannot load is an error of one line that names it.

    A parser may raise anything on a damaged file; out of memory is no fault of the file.
    """
    try:
        yield
    except (MPOError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ConfigError(
            f"{path} {what}: {type(error).__name__}: {one_line(str(error), 800)}; fetch or make it again"
        ) from error
