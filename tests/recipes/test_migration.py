"""docs/migration.md against the installed TRL and against our own settings: no flag that is not there."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from pathlib import Path

import trl

from mpo.config import IGNORED, REFUSED, MPOConfig
from mpo.older_flags import HARMLESS, OLDER
from mpo.trainer import MPOTrainer
from recipes.cli import COMMANDS
from recipes.config import TrainMPOConfig
from rewards.prm.formats import PRMFormat
from rewards.prm.model_prm import ModelPRM

PAGE = (Path(__file__).parents[2] / "docs" / "migration.md").read_text()
TRAIN_FLAGS = {f.name for f in fields(TrainMPOConfig)}
TRL_FIELDS = {f.name for f in fields(trl.DPOConfig)}


def section(title: str) -> str:
    """The text below a heading of the second level."""
    (found,) = [part for part in PAGE.split("\n## ")[1:] if part.startswith(title)]
    return found


def rows(text: str) -> list[list[str]]:
    """The cells of a section's table, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def code(cell: str) -> list[str]:
    cell = re.sub(r"```.*?```", "", cell, flags=re.DOTALL)
    return re.findall(r"`([^`]+)`", cell)


def test_every_flag_of_ours_is_one() -> None:
    for title in ("From InternVL", "From ms-swift"):
        for row in rows(section(title)):
            named = {flag.removeprefix("--") for text in code(row[1]) for flag in re.findall(r"--\w+", text)}
            assert named - {"config_file"} <= TRAIN_FLAGS, row


def test_every_field_of_trl_is_there_and_none_that_is_refused_is_forgotten() -> None:
    _, table = section("From TRL").split("\n| `DPOConfig`")  # before it comes the table of a row's forms
    table = rows("| `DPOConfig`" + table)
    refused, ignored, gone = set(), set(), set()
    for there, here in table:
        names = set(code(there))
        if here.startswith("gone"):
            assert not names & TRL_FIELDS, there
            gone |= names
            continue
        assert names <= TRL_FIELDS, there
        if here.startswith("ignored"):
            ignored |= names
        elif here.startswith("refused"):
            refused |= names
        else:
            assert not names & set(REFUSED) - {"remove_unused_columns"}, there
    assert refused == set(REFUSED) - {"remove_unused_columns"}
    assert ignored == set(IGNORED)
    assert gone == {*OLDER, *HARMLESS}
    assert {f.name for f in fields(MPOConfig)} - TRL_FIELDS <= set(code(section("From TRL")))


def test_the_defaults_that_differ() -> None:
    assert trl.DPOConfig.max_length == 1024
    assert MPOConfig.max_length is None
    assert trl.DPOConfig.logging_nan_inf_filter is True
    assert MPOConfig.logging_nan_inf_filter is False
    assert trl.DPOConfig.gradient_checkpointing is True
    assert MPOConfig.gradient_checkpointing is None


def test_the_trainers_arguments() -> None:
    ours, theirs = (set(inspect.signature(t.__init__).parameters) for t in (MPOTrainer, trl.DPOTrainer))
    assert {"model", "args", "train_dataset", "processing_class", "peft_config"} <= ours & theirs
    assert "compute_metrics" in theirs - ours


def test_the_commands_exist() -> None:
    named = set(re.findall(r"(?<![\w-])mpo ([a-z]+(?:-[a-z]+)*)", PAGE))
    assert named <= set(COMMANDS), named - set(COMMANDS)


def test_visualprms_arguments() -> None:
    ours = set(inspect.signature(ModelPRM.select_best_response).parameters)
    assert ours == {"self", "problem", "responses", "how", "return_scores"}
    assert {"positive", "negative", "neutral", "max_steps"} <= {f.name for f in fields(PRMFormat)}
