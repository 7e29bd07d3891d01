"""Position ids from the collator's process are bit-equal to the model's own: both layouts, every architecture."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mpo.multimodal.errors import ConfigError
from mpo.multimodal.packing import paired_rows
from mpo.multimodal.positions import RowPositions
from mpo.multimodal.scoring import response_logps
from mpo.trainer import MPOTrainer
from tests.mpo.tiny import preference_rows, tiny_config, tiny_internvl
from tests.mpo.tiny_models import SHARING, packed_batch, prepared

MROPE = ("qwen2_5_vl", "qwen3_vl")


def positions_read(model: Any, batch: dict[str, Any]) -> tuple[Tensor | None, Tensor]:
    """What the language model was given as positions, and the log-probs."""
    seen: list[Tensor | None] = []
    hook = model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs.get("position_ids")), with_kwargs=True
    )
    with torch.no_grad():
        sums, _ = response_logps(model, batch)
    hook.remove()
    return seen[0], sums


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("name", SHARING)
def test_bit_equal_to_the_models_own(name: str, shared: bool) -> None:
    model = prepared(name, "plain")
    batch = packed_batch(name, model)
    batch = batch if shared else paired_rows(batch)
    sent = pickle.loads(pickle.dumps(RowPositions.without_weights(model)))  # noqa: S301  our own, as a worker has it
    made = sent(batch)
    assert bool(made) == (shared or name in MROPE)
    own, own_sums = positions_read(model, batch)
    given, sums = positions_read(model, {**batch, **made})
    assert torch.equal(sums, own_sums)
    if made:
        assert own is not None
        assert given is not None
        assert torch.equal(given, own)
        assert given.dim() == (3 if name in MROPE else 2)


@pytest.mark.parametrize("name", MROPE)
def test_it_holds_no_weights(name: str) -> None:
    model = prepared(name, "plain")
    assert len(pickle.dumps(RowPositions.without_weights(model))) < 20_000
    assert sum(p.numel() for p in model.parameters()) > 20_000


def test_the_models_device_never_looks_at_grids(monkeypatch: pytest.MonkeyPatch) -> None:
    """With positions in the batch, `get_rope_index` does not run again."""
    model = prepared("qwen2_5_vl", "plain")
    batch = packed_batch("qwen2_5_vl", model)
    batch |= RowPositions.without_weights(model)(batch)

    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("positions were computed again")

    monkeypatch.setattr(type(model.base_model), "get_rope_index", never)
    response_logps(model, batch)


def test_grids_without_token_types_are_an_error() -> None:
    model = prepared("qwen2_5_vl", "plain")
    batch = packed_batch("qwen2_5_vl", model)
    del batch["mm_token_type_ids"]
    with pytest.raises(ConfigError, match=r"expected 'mm_token_type_ids' beside \['image_grid_thw'\]: Qwen2_5_VLModel"):
        RowPositions.without_weights(model)(batch)


def test_a_trainers_batches_come_with_positions(tmp_path: Path) -> None:
    trainer = MPOTrainer(tiny_internvl(), args=tiny_config(tmp_path), train_dataset=preference_rows(2))
    batch = trainer.data_collator(trainer.train_dataset)
    assert batch["position_ids"].shape == batch["input_ids"].shape
