"""What is kept never exceeds its bytes, and what is kept is what was made."""

from __future__ import annotations

import pickle

import torch
from hypothesis import given
from hypothesis import strategies as st

from mpo.multimodal.memory_bound import Kept, tensor_bytes
from mpo.multimodal.prefix import EncodedPrompt


@given(st.lists(st.integers(0, 9), max_size=60), st.booleans(), st.integers(0, 400))
def test_values_are_those_of_their_key_and_fit(keys: list[int], newest: bool, most: int) -> None:
    kept: Kept[torch.Tensor] = Kept(most, newest=newest)
    for key in keys:
        value = kept(key, lambda key=key: torch.full((key + 1,), key, dtype=torch.int64))  # type: ignore[misc]
        assert value.tolist() == [key] * (key + 1)
        assert kept.bytes == sum(size for _, size in kept._values.values()) <= most


def test_round_and_round_keeps_the_first_runs_keep_the_newest() -> None:
    made: list[int] = []

    def make(key: int) -> torch.Tensor:
        made.append(key)
        return torch.zeros(1, dtype=torch.int64)

    first: Kept[torch.Tensor] = Kept(16)
    for key in [0, 1, 2] * 2:
        first(key, lambda key=key: make(key))  # type: ignore[misc]
    assert made == [0, 1, 2, 2]
    made.clear()
    newest: Kept[torch.Tensor] = Kept(16, newest=True)
    for key in [0, 0, 1, 1, 2, 2, 1]:
        newest(key, lambda key=key: make(key))  # type: ignore[misc]
    assert made == [0, 1, 2]


def test_bytes_count_a_shared_tensor_once() -> None:
    pixels = {"pixel_values": torch.zeros(10)}
    prompts = [EncodedPrompt(torch.zeros(3, dtype=torch.int64), {}, pixels) for _ in range(4)]
    assert tensor_bytes(prompts) == 4 * 24 + 40


def test_another_process_starts_empty() -> None:
    kept: Kept[torch.Tensor] = Kept(100)
    kept("a", lambda: torch.zeros(2))
    assert len(pickle.loads(pickle.dumps(kept))) == 0  # noqa: S301
