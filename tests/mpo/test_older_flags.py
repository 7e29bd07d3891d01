"""A script that was written for an earlier TRL: each flag is answered with what does it now, or left out and said."""

from __future__ import annotations

import copy
import inspect
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from mpo.config import IGNORED, MPOConfig
from mpo.multimodal.errors import ConfigError
from mpo.multimodal.text_processor import TextProcessor
from mpo.older_flags import HARMLESS, OLDER, as_processor
from mpo.trainer import MPOTrainer

VALUES: dict[str, Any] = {
    "padding_free": True,
    "pad_to_multiple_of": 8,
    "dataset_num_proc": 4,
    "use_liger_kernel": True,
}
ROW = {"prompt": [{"role": "user", "content": "a"}], "chosen": "b", "rejected": "c"}


@pytest.mark.parametrize("name", OLDER)
def test_an_older_flag_names_what_takes_its_place(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"^{name}=0.5 is no setting of MPOConfig: .{{8}}") as caught:
        MPOConfig(str(tmp_path), **{name: 0.5})
    assert OLDER[name] in str(caught.value)


@pytest.mark.parametrize(("name", "value"), [*((name, None) for name in OLDER), *((name, 1) for name in HARMLESS)])
def test_a_flag_that_asks_for_nothing_is_left_out(name: str, value: Any, tmp_path: Path, caplog: Any) -> None:
    with caplog.at_level("WARNING"):
        config = MPOConfig(str(tmp_path), beta=0.2, **{name: value})
    assert config.beta == 0.2
    assert not hasattr(config, name)


@pytest.mark.parametrize("name", IGNORED)
def test_a_flag_of_speed_is_set_back(name: str, tmp_path: Path) -> None:
    assert VALUES.keys() == IGNORED.keys()
    default = getattr(MPOConfig(str(tmp_path)), name)
    assert default != VALUES[name]
    assert getattr(MPOConfig(str(tmp_path), **{name: VALUES[name]}), name) == default


def test_an_unknown_flag_has_its_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="quality_wieght=1 is no setting of MPOConfig; did you mean 'quality_weight'"):
        MPOConfig(str(tmp_path), quality_wieght=1)


def test_a_config_is_still_a_dataclass(tmp_path: Path) -> None:
    config = MPOConfig(str(tmp_path), beta=0.3)
    for other in (replace(config), copy.deepcopy(config), pickle.loads(pickle.dumps(config))):  # noqa: S301
        assert other.beta == 0.3
    assert "beta" in inspect.signature(MPOConfig).parameters


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"tokenizer": object()}, "MPOTrainer takes no tokenizer: pass processing_class"),
        ({"beta": 0.1}, "MPOTrainer takes no beta: set it in MPOConfig"),
        ({"compute_metrics": print}, "MPOTrainer takes no compute_metrics: "),
        ({"quantization_config": {"load_in_4bit": True}}, "takes no quantization_config: load the model with"),
        ({"max_prompt_length": 128}, "takes no max_prompt_length: set max_length"),
        ({"nonsense": 1}, "takes no nonsense: its arguments are model, ref_model"),
        ({"train_dataset": DatasetDict(train=Dataset.from_list([ROW]))}, r"DatasetDict of 'train': .*rows\['train'\]"),
        ({"train_dataset": "trl-lib/rlaif-v"}, r"is a name: expected rows; load them, as in datasets\.load_dataset"),
        ({"train_dataset": Path("rows.parquet")}, "is a name"),
    ],
)
def test_arguments_that_are_no_arguments(given: dict[str, Any], expected: str) -> None:
    """Before the model is looked for."""
    with pytest.raises(ConfigError, match=expected):
        MPOTrainer("models/none", **given)


def test_a_tokenizer_is_the_processor_of_a_text_model(processor: Any) -> None:
    assert as_processor(processor) is processor
    assert isinstance(as_processor(processor.tokenizer), TextProcessor)
