"""The launch configurations are what accelerate reads: its own parser takes them, and knows every key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env

FOLDER = Path(__file__).resolve().parents[3] / "recipes" / "accelerate"
KINDS = {
    "multi_gpu": DistributedType.MULTI_GPU,
    "fsdp2": DistributedType.FSDP,
    "deepspeed_zero3": DistributedType.DEEPSPEED,
}


def launch_settings(name: str, *flags: str) -> Any:
    """What `accelerate launch --config_file … script.py` would run with."""
    command = ["--config_file", str(FOLDER / f"{name}.yaml"), *flags, "script.py"]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(command))
    return arguments


def test_these_are_all() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == KINDS.keys()


@pytest.mark.parametrize("name", KINDS)
def test_accelerate_reads_it(name: str) -> None:
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    assert config.distributed_type == KINDS[name]
    assert config.mixed_precision == "no"  # MPOConfig decides
    known = vars(launch_command_parser().parse_args(["script.py"])).keys()
    nested = {key for part in (config.fsdp_config, config.deepspeed_config) for key in part}
    assert nested <= known


@pytest.mark.parametrize("name", KINDS)
def test_flags_stand_above_the_file(name: str) -> None:
    assert launch_settings(name).num_processes == 8
    assert launch_settings(name, "--num_processes", "2").num_processes == 2


def test_every_value_reaches_the_launch() -> None:
    fsdp = launch_settings("fsdp2")
    assert (fsdp.use_fsdp, fsdp.use_deepspeed) == (True, False)
    environment = prepare_multi_gpu_env(fsdp)
    assert environment["FSDP_VERSION"] == "2"
    assert environment["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false"
    assert environment["FSDP_STATE_DICT_TYPE"] == "FULL_STATE_DICT"
    zero = launch_settings("deepspeed_zero3")
    assert (zero.use_deepspeed, zero.zero_stage, zero.zero3_init_flag) == (True, 3, False)
    assert launch_settings("multi_gpu").multi_gpu


def test_an_unknown_key_would_be_refused(tmp_path: Path) -> None:
    content = yaml.safe_load((FOLDER / "multi_gpu.yaml").read_text())
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(content | {"num_procesess": 2}))
    with pytest.raises(ValueError, match="num_procesess"):
        load_config_from_file(str(tmp_path / "wrong.yaml"))
