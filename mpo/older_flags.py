"""Flags and arguments that scripts for TRL and transformers carry from earlier versions, and what to write instead.

A script that worked last year names flags that are gone. Each is answered with the name that does it now; those that
change nothing here are left out with a warning, so that the script runs.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from transformers.utils import logging

from mpo.multimodal.errors import ConfigError
from mpo.multimodal.text_processor import TextProcessor

logger = logging.get_logger(__name__)

_LENGTH = "set max_length, which limits prompt and longer response together; a longer row is rejected, never cut"
_LOOKS = "evaluation generates nothing; a callback may, as `mpo train-mpo --sample_every` does"
_REFERENCE = "MPO needs its reference: pass ref_model to MPOTrainer, or none for the initial policy"
_METRICS = "MPO's metrics are logged as they are; compute others in a callback"

# Gone or never there → what to do instead. A value of None or False asks for nothing and is left out.
OLDER: dict[str, str] = {
    "max_prompt_length": _LENGTH,
    "max_completion_length": _LENGTH,
    "max_target_length": _LENGTH,
    "rpo_alpha": "set generation_weight (w_g of L_g)",
    "generate_during_eval": _LOOKS,
    "reference_free": _REFERENCE,
    "force_use_ref_model": _REFERENCE,
    "model_adapter_name": _REFERENCE,
    "ref_adapter_name": _REFERENCE,
    "ref_model_init_kwargs": "load the reference with mpo.multimodal.loading.load_model and pass it as ref_model",
    "is_encoder_decoder": "MPO trains decoders; leave it out",
    "warmup_ratio": "set warmup_steps, which is a share of the steps if it is below 1",
    "group_by_length": "set train_sampling_strategy='batch_rebalance', which counts tokens",
    "evaluation_strategy": "set eval_strategy",
    "no_cuda": "set use_cpu",
    "per_gpu_train_batch_size": "set per_device_train_batch_size",
    "per_gpu_eval_batch_size": "set per_device_eval_batch_size",
    "push_to_hub_token": "set hub_token",
    "dispatch_batches": "set it in accelerator_config",
    "split_batches": "set it in accelerator_config",
    "fsdp_min_num_params": "set it in fsdp_config",
    "adafactor": "set optim='adafactor'",
    "torchdynamo": "set torch_compile and torch_compile_backend",
    "include_inputs_for_metrics": _METRICS,
    "tokenizer": "pass processing_class to MPOTrainer: the processor, or a text model's tokenizer",
    "quantization_config": "load the model with mpo.multimodal.loading.load_model(path, quantization_config=…)",
    "compute_metrics": _METRICS,
    "preprocess_logits_for_metrics": _METRICS,
    "tools": "render tools into the text of each prompt",
}
# They decide how fast or where, or only confirm what is so anyway: left out with a warning.
HARMLESS = (
    *("overwrite_output_dir", "logging_dir", "save_safetensors", "half_precision_backend", "use_mps_device"),
    *("label_pad_token_id", "padding_value", "use_logits_to_keep", "base_model_attribute_name", "past_index"),
    *("jit_mode_eval", "use_ipex", "tpu_num_cores", "ray_scope", "use_legacy_prediction_loop", "dataset_kwargs"),
)


def known_flags(given: Mapping[str, Any], known: Iterable[str]) -> dict[str, Any]:
    """The flags of a config that it knows.

    Args:
        given: name → value, as the user wrote them.
        known: names of the config's fields.

    Raises:
        ConfigError: a flag of an earlier version that asks for something, with the name that does it now; or an
            unknown one, with the nearest that there is.

    Example:
        >>> known_flags({"beta": 0.2, "reference_free": False}, ["beta"])
        {'beta': 0.2}
    """
    names = list(known)
    for name in (name for name in given if name not in names):
        if name in HARMLESS or (name in OLDER and given[name] in (None, False)):
            logger.warning("%s=%r has no effect in MPO and is left out", name, given[name])
        elif name in OLDER:
            raise ConfigError(f"{name}={given[name]!r} is no setting of MPOConfig: {OLDER[name]}")
        else:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else "; docs/migration.md lists those of TRL"
            raise ConfigError(f"{name}={given[name]!r} is no setting of MPOConfig{hint}")
    return {name: value for name, value in given.items() if name in names}


def refuse_older_arguments(given: Mapping[str, Any], config_class: Any) -> None:
    """Arguments of earlier trainers, which MPOTrainer does not take.

    Raises:
        ConfigError: any of them that asks for something; the message says where it belongs.
    """
    known = {field.name for field in fields(config_class)}
    for name, value in given.items():
        if name in HARMLESS or value is None:
            logger.warning("MPOTrainer takes no %s; it is left out", name)
        elif name in known:
            raise ConfigError(f"MPOTrainer takes no {name}: set it in MPOConfig, which is passed as args")
        else:
            instead = OLDER.get(name, "its arguments are model, ref_model, args, train_dataset, eval_dataset, …")
            raise ConfigError(f"MPOTrainer takes no {name}: {instead}")


def check_dataset(name: str, rows: Any) -> None:
    """Rows are a `Dataset`, an `IterableDataset` or a list; several sets or a name are no rows.

    Raises:
        ConfigError: a `DatasetDict` or another mapping, or the name of a data set or file.
    """
    if isinstance(rows, Mapping):
        first = next(iter(rows), "train")
        raise ConfigError(
            f"{name} is a {type(rows).__name__} of {', '.join(map(repr, rows)) or 'nothing'}: pass one of them, as in "
            f"{name}=rows[{first!r}]"
        )
    if isinstance(rows, str) or hasattr(rows, "__fspath__"):
        raise ConfigError(
            f"{name}={str(rows)!r} is a name: expected rows; load them, as in datasets.load_dataset({str(rows)!r}, "
            "split='train')"
        )


def as_processor(given: Any) -> Any:
    """A processor as it is; a text model's tokenizer, which TRL takes too, as the processor of a text model."""
    return given if hasattr(given, "tokenizer") else TextProcessor(given)
