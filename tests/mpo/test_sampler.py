"""Pairs of one prompt together, or micro-batches of one length; the order depends on seed and epoch, not on ranks."""

from __future__ import annotations

import io
import random
from itertools import groupby
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from benchmarks.packing import balanced_steps, figures, pair_lengths, random_steps
from mpo.multimodal.errors import ConfigError
from mpo.sampler import PromptGroupSampler
from mpo.trainer import MPOTrainer
from tests.mpo.tiny import preference_row, preference_rows, tiny_config, tiny_internvl


@given(st.lists(st.sampled_from("abcde"), min_size=1, max_size=30), st.integers(0, 99))
@settings(deadline=None)
def test_every_row_once_and_groups_whole(names: list[str], seed: int) -> None:
    rows = [{"problem_id": name} for name in names]
    sampler = PromptGroupSampler(rows, seed=seed)
    order = list(sampler)
    assert sorted(order) == list(range(len(rows)))
    assert len(sampler) == len(rows)
    assert len([*groupby(names[i] for i in order)]) == len(set(names))
    assert list(sampler) == order
    sampler.set_epoch(1)
    assert sorted(sampler) == sorted(order)


def test_epochs_and_seeds_differ() -> None:
    rows = [{"problem_id": str(i // 2)} for i in range(40)]

    def order(seed: int, epoch: int) -> list[int]:
        sampler = PromptGroupSampler(rows, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert len({tuple(order(seed, epoch)) for seed in (0, 7) for epoch in (0, 1)}) == 4


def test_without_ids_prompt_and_pictures_tell_prompts_apart() -> None:
    def row(text: str, colour: str) -> dict[str, Any]:
        return {"prompt": [{"role": "user", "content": text}], "images": [Image.new("RGB", (4, 4), colour)]}

    rows = [row("a", "red"), row("b", "red"), row("a", "blue"), row("a", "red")]
    assert sorted(map(sorted, PromptGroupSampler(rows, seed=0).groups)) == [[0, 3], [1], [2]]
    features = datasets.Features(
        {
            "prompt": [{"role": datasets.Value("string"), "content": datasets.Value("string")}],
            "images": [datasets.Image()],
        }
    )
    table = datasets.Dataset.from_list([{**r, "images": [_png(r["images"][0])]} for r in rows], features=features)
    assert sorted(map(sorted, PromptGroupSampler(table, seed=0).groups)) == [[0, 3], [1], [2]]
    named = table.add_column("problem_id", ["x", "y", "x", None])
    assert sorted(map(sorted, PromptGroupSampler(named, seed=0).groups)) == [[0, 2], [1], [3]]


def _png(image: Image.Image) -> dict[str, Any]:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def test_a_stream_is_refused() -> None:
    with pytest.raises(ConfigError, match="group_by_prompt needs a dataset with a length"):
        PromptGroupSampler(iter([]), seed=0)


def grouped_rows() -> list[dict[str, Any]]:
    """Three prompts with four pairs each, of two right and two wrong responses."""
    return [
        preference_row(prompt, problem_id=f"prompt {prompt}", chosen=f"{right} one", rejected=f"{wrong} two")
        for right in (1, 2)
        for wrong in (3, 4)
        for prompt in range(3)
    ]


def test_grouped_pairs_take_the_steps_of_pairs_apart_with_fewer_tokens(tmp_path: Path) -> None:
    """Four pairs of one prompt per step, in 1 row: the losses of one pair at a time in the paired layout."""

    def run(name: str, **changes: Any) -> tuple[MPOTrainer, list[int]]:
        rows: list[int] = []
        settings = {"max_steps": 3, "group_by_prompt": True, **changes}
        trainer = MPOTrainer(
            tiny_internvl(), args=tiny_config(tmp_path / name, **settings), train_dataset=grouped_rows()
        )
        trainer.sharing._checked = True
        trainer.model.get_decoder().register_forward_pre_hook(
            lambda module, args, kwargs: rows.append(len(kwargs["inputs_embeds"])), with_kwargs=True
        )
        trainer.train()
        return trainer, rows

    together, rows = run("together", per_device_train_batch_size=4)
    apart, more = run("apart", per_device_train_batch_size=1, gradient_accumulation_steps=4, layout="paired")
    split, some = run("split", per_device_train_batch_size=4, max_row_tokens=1)
    assert (rows, more, some) == ([1] * 3, [2] * 12, [4] * 3)
    repeats = [trainer.state.log_history[0]["rows_per_prompt"] for trainer in (together, apart, split)]
    assert repeats == [1, 2, 4]
    for other in (apart, split):
        for ours, theirs in zip(together.state.log_history[:-1], other.state.log_history[:-1], strict=True):
            for key in ("loss", "loss/quality", "bco/delta", "rewards/margins", "grad_norm"):
                assert ours[key] == pytest.approx(theirs[key], rel=1e-4, abs=1e-5), key
        for ours, theirs in zip(together.model.parameters(), other.model.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_balanced_micro_batches_have_one_length_and_ranks_one_load() -> None:
    """On a long-tailed mix: at least 95 % of the tokens are no padding, and no rank has 5 % more than the mean."""
    lengths = pair_lengths(1024, random.Random(0))
    cut = {"step": 256, "ranks": 4, "micro_batches": 8, "seed": 0}
    balanced, shuffled = (figures(list(steps(lengths, **cut))) for steps in (balanced_steps, random_steps))
    assert balanced["useful"] > 0.95 > shuffled["useful"]
    assert balanced["slowest / mean rank"] < 1.05
    assert balanced["largest micro-batch"] < shuffled["largest micro-batch"]


def test_balanced_steps_hold_the_same_pairs_on_any_number_of_ranks() -> None:
    lengths = pair_lengths(64, random.Random(1))
    one, four = (
        [
            sorted(length for rank in step for rows in rank for length in rows)
            for step in balanced_steps(lengths, step=16, ranks=ranks, micro_batches=4 // ranks, seed=3)
        ]
        for ranks in (1, 4)
    )
    assert one == four
    assert len(one) == 4


def test_balancing_needs_lengths(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="leave group_by_prompt out"):
        tiny_config(tmp_path, train_sampling_strategy="batch_rebalance", group_by_prompt=True)
    with pytest.raises(ConfigError, match="set train_sampling_strategy='batch_rebalance'"):
        tiny_config(tmp_path, train_sampling_strategy="group_by_length")
    few = tiny_config(tmp_path, train_sampling_strategy="batch_rebalance", per_device_train_batch_size=4)
    with pytest.raises(ConfigError, match="at least the 4 pairs of a step, got 3"):
        MPOTrainer(tiny_internvl(), args=few, train_dataset=preference_rows(3)).get_train_dataloader()
