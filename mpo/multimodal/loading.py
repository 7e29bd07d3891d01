"""The only `from_pretrained`: models and processors, without remote code, whole or not at all.

A checkpoint without an image processor is a text model: a causal LM whose tokenizer is called like a processor.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    PretrainedConfig,
    PreTrainedModel,
)

from mpo.multimodal.errors import ConfigError, MPOError
from mpo.multimodal.finite import non_finite_weight
from mpo.multimodal.hub import CONFIG, adapter_base, hub_name, loadable_folder, model_folder
from mpo.multimodal.text import one_line
from mpo.multimodal.text_processor import TextProcessor

# What an untrusted config.json may ask for; any other name is a repository whose kernels transformers would run.
ATTENTIONS = ("eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3")
ATTENTION_KEYS = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal",
                  "experts_implementation", "_experts_implementation")  # fmt: skip
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
NAMES_SHOWN = 3


def load_processor(path: str | Path) -> Any:
    """Processor (tokenizer, image processor, chat template) of a model; a `TextProcessor` of a text model.

    An adapter's folder may hold one of its own; else it is its base model's.
    """
    folder = _checked(path)
    base = adapter_base(folder)
    if base is None:
        return _processor(folder)
    processor = load_processor(base)
    own = ("tokenizer_config.json",) if isinstance(processor, TextProcessor) else PROCESSOR_FILES
    return _processor(folder) if any((folder / name).exists() for name in own) else processor


def load_for_inference(path: str | Path) -> PreTrainedModel:
    """The model of a checkpoint on the best device, in eval mode, in the number type that it is stored in."""
    folder = model_folder(path)  # of one commit, should the hub's branch move meanwhile
    model: Any = load_model(folder, dtype=stored_dtype(folder))
    return model.to(best_device()).eval()


def load_model(
    path: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    quantization_config: Any = None,
    model_class: type[PreTrainedModel] | None = None,
) -> PreTrainedModel:
    """The model of a checkpoint, on the CPU; a quantised one where its backend puts it.

    Its parameters are those of the checkpoint, all of them and no others, but for what its architecture declares tied
    or without use: nothing is drawn at random. Of an adapter's folder it is the base model with the adapter merged in.

    Args:
        path: a local folder, or a name on the hub, `org/name` or `org/name@revision`.
        dtype: of the weights that are not quantised.
        quantization_config: e.g. `transformers.BitsAndBytesConfig(load_in_4bit=True)`, for QLoRA.
        model_class: None takes transformers' image-text-to-text class of the config where there is one, else its
            causal LM.

    Raises:
        StageError: a local path without `config.json`.
        ConfigError: weights are missing, left over, of another shape, NaN or infinite; all by name.
    """
    folder = _checked(path)
    if base := adapter_base(folder):
        return load_merged(base, folder, dtype=dtype, quantization_config=quantization_config, model_class=model_class)
    more = {} if quantization_config is None else {"quantization_config": quantization_config}
    with _naming(path):
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
        sees = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
        loads: Any = model_class or (AutoModelForImageTextToText if sees else AutoModelForCausalLM)
        named = {} if model_class else {"trust_remote_code": False}
        with _without_report():
            model, found = loads.from_pretrained(
                str(folder), dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, **named, **more
            )
    _check_whole(found, model, path)
    if name := hub_name(folder):
        model.name_or_path = name.partition("@")[0]  # what PEFT writes as an adapter's base
    return _finite(model, path)


def load_merged(path: str | Path, adapter: str | Path, **how: Any) -> PreTrainedModel:
    """The model of a checkpoint with a PEFT adapter's changes added to its weights, on the CPU.

    Args:
        path: the checkpoint that the adapter was trained on.
        adapter: folder with `adapter_config.json`.
        how: further arguments of `load_model`; the sum is rounded to their `dtype`.

    Raises:
        ConfigError: the adapter's tensors are not those that its configuration gives this model.
    """
    base: Any = load_model(path, **how)
    with _naming(adapter):
        config = PeftConfig.from_pretrained(str(adapter))
        config.inference_mode = True
        if config.is_prompt_learning:
            raise ConfigError(
                f"{adapter} holds a learned prompt ({config.peft_type}), which has no place in the weights"
            )
        model = PeftModel(base, config)
        names = getattr(base, "_checkpoint_conversion_mapping", {})
        found = model.load_adapter(str(adapter), "default", torch_device="cpu", key_mapping=names)
        faults = {"missing": found.missing_keys, "left over": found.unexpected_keys}
        total = len(get_peft_model_state_dict(model, save_embedding_layers=False))  # "auto" would ask the hub
        _refuse(faults, f"{adapter} is no whole adapter of {path}", total=total)
        merged = model.merge_and_unload()
    merged.name_or_path = merged.config._name_or_path = str(adapter)  # no longer the base
    return _finite(merged, adapter)


def load_config(path: str | Path) -> PretrainedConfig:
    """A checkpoint's configuration, checked; no weights are read."""
    folder = _checked(path)
    with _naming(path):
        return AutoConfig.from_pretrained(str(folder), trust_remote_code=False)


def stored_dtype(path: str | Path) -> torch.dtype:
    """The number type that a checkpoint's configuration names; float32 if it names none. Of an adapter its base's."""
    if base := adapter_base(_checked(path)):
        return stored_dtype(base)
    config: Any = load_config(path)
    return config.dtype or config.get_text_config().dtype or torch.float32


def _processor(folder: Path) -> Any:
    with _naming(folder):
        processor = AutoProcessor.from_pretrained(str(folder), trust_remote_code=False)
    return processor if hasattr(processor, "tokenizer") else TextProcessor(processor)


def _check_whole(found: Mapping[str, Any], model: Any, path: str | Path) -> None:
    """Refuse a checkpoint whose tensors are not the model's.

    transformers has left out of its lists what the class declares tied, unused or computed.
    """
    shapes = [f"{name} {[*there]} instead of {[*here]}" for name, there, here in found["mismatched_keys"]]
    faults = {"missing": found["missing_keys"], "left over": found["unexpected_keys"], "of another shape": shapes}
    _refuse(faults, f"{path} does not hold a whole {type(model).__name__}", total=len(model.state_dict()))


def _refuse(faults: Mapping[str, Collection[str]], start: str, *, total: int) -> None:
    said = [f"{len(names)} {kind} ({_first(names)})" for kind, names in faults.items() if names]
    if said:
        raise ConfigError(
            f"{start}: of {total} tensors expected, {'; '.join(said)}. No weight is drawn at random: fetch or make it "
            "again, or name the model that it belongs to"
        )


def _first(names: Collection[str]) -> str:
    more = len(names) - NAMES_SHOWN
    return ", ".join(sorted(names)[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


@contextmanager
def _without_report() -> Iterator[None]:
    """Keep transformers from printing as a table of warnings what `_check_whole` says as one error."""

    def passes(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(passes)
    try:
        yield
    finally:
        logger.removeFilter(passes)


def _finite(model: Any, path: str | Path) -> Any:
    if name := non_finite_weight(model):
        raise ConfigError(f"{path} holds NaN or infinity in {name}: expected finite weights; train or fetch it again")
    return model


def best_device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator or torch.device("cpu")


def _checked(path: str | Path) -> Path:
    """The folder of a model whose configuration asks for nothing that would be fetched or run."""
    folder = loadable_folder(path)
    if (folder / CONFIG).exists():
        with _naming(path):
            config, _ = PretrainedConfig.get_config_dict(str(folder))
        _check_attention(config, path)
    return folder


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
def _naming(path: str | Path) -> Iterator[None]:
    """A checkpoint that its library cannot load is an error of one line that names it.

    A parser may raise anything on a damaged file; out of memory is no fault of the file.
    """
    try:
        yield
    except (MPOError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ConfigError(
            f"{path} cannot be loaded: {type(error).__name__}: {one_line(str(error), 800)}; fetch or make it again"
        ) from error
