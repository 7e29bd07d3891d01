"""Rows per sampling call from stated memory sizes: the arithmetic by hand, the policy's own config, and the stage."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from mpo.multimodal.loading import load_config
from recipes.config import SampleConfig
from recipes.stage import policies
from recipes.stage.policies import rows_for, with_rows
from rewards.sampling.rows_per_call import MOST_ROWS, PROMPT_TOKENS, ROWS, row_bytes, rows_per_call

GIB = 2**30


def test_a_row_of_a_1b_model_by_hand() -> None:
    """24 layers x 2 key heads x 64 x 2 (K and V) x 2 bytes = 12,288 bytes per token; logits 12 bytes per word."""
    text = SimpleNamespace(
        num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2, hidden_size=896, vocab_size=151_936
    )
    assert row_bytes(text, number_bytes=2, new_tokens=512) == 12_288 * (PROMPT_TOKENS + 512) + 12 * 151_936


@pytest.mark.parametrize(
    ("memory", "rows"),
    [(79 * GIB, 256), (47 * GIB, 128), (31 * GIB, 64), (23 * GIB, 32), (15 * GIB, 1), (8 * GIB, 1)],
)
def test_a_7b_model_on_cards_of_several_sizes(memory: int, rows: int) -> None:
    """15.2 GiB of weights and 142 MiB a row: 0.6 · (79 − 15.2) GiB = 276 rows, 0.6 · (47 − 15.2) = 137, then 68, 33."""
    assert rows_per_call(memory=memory, weights=int(15.2 * GIB), row=142 * 2**20) == rows


def test_never_more_than_fits_and_never_half_of_it() -> None:
    for row in (10**6, 3 * 10**8, 10**9, 10**10):
        rows = rows_per_call(memory=80 * GIB, weights=16 * GIB, row=row)
        assert rows == 1 or rows * row <= 0.6 * 64 * GIB
        assert rows == MOST_ROWS or 2 * rows * row > 0.6 * 64 * GIB


def test_a_policy_on_a_disk(policy_folder: Path) -> None:
    """The weights' files and the config decide; without a GPU it is 64, as ever."""
    assert rows_for(policy_folder, 512, memory=0) == ROWS
    assert rows_for(policy_folder, 512, memory=80 * GIB) == MOST_ROWS
    weights = sum(file.stat().st_size for file in policy_folder.glob("*.safetensors"))
    text = load_config(policy_folder).get_text_config()
    row = row_bytes(text, number_bytes=4, new_tokens=512)
    assert rows_for(policy_folder, 512, memory=weights + int(33 * row / 0.6)) == 32


def test_the_decision_is_a_setting_of_the_run(
    policy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SampleConfig(problems=tmp_path / "q.jsonl", out=tmp_path, policy=policy_folder)
    monkeypatch.setattr(policies, "_device_memory", lambda: 80 * GIB)
    assert with_rows(config).batch_rows == MOST_ROWS
    assert with_rows(SampleConfig(tmp_path, tmp_path, policy=policy_folder, batch_rows=8)).batch_rows == 8
    monkeypatch.setattr(policies, "_device_memory", lambda: 0)
    assert with_rows(config).batch_rows == ROWS
