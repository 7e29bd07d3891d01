"""Rows of different lengths go through the model without their padding, and give what padded rows give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mpo.multimodal import scoring
from mpo.multimodal.packing import LAYOUT
from mpo.multimodal.scoring import innermost, logits_and_text_logps, logits_at, response_logps, token_logps
from mpo.multimodal.shared_prefix import shared_inputs
from mpo.multimodal.unpadded import Unpadded, without_padding
from tests.mpo.test_varlen import kernel, let_a_cpu_use_it
from tests.mpo.tiny_models import SHARING, packed_batch, packed_row, prepared

MASKED = {"gemma3"}  # its image tokens see each other, and some layers have a window


def as_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        scoring, "without_padding", lambda model, inputs: Unpadded(dict(inputs), None, inputs["input_ids"].shape)
    )


def tokens_read(model: Any) -> list[int]:
    seen: list[int] = []
    innermost(model).get_decoder().norm.register_forward_pre_hook(
        lambda _, given: seen.append(given[0][..., 0].numel())
    )
    return seen


def some_positions(packed: dict[str, Any]) -> list[list[int]]:
    """The ends of the responses of each row, and of the second row's prefix."""
    ends = [[end - 1 for end in row] for row in packed[LAYOUT].ends]
    return [ends[0], [packed[LAYOUT].prefixes[1] - 1, *ends[1]], ends[2]]


def results(model: Any, packed: dict[str, Any]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Log-probs of responses and tokens, logits at positions; gradients of them all."""
    model.zero_grad()
    sums, numbers = response_logps(model, packed)
    tokens = token_logps(model, packed)
    read = some_positions(packed)
    logits = logits_at(model, packed, read, [7, 8])
    with_text, text = logits_and_text_logps(model, packed, read, [7, 8])
    parts = [sums, *tokens, *logits, *with_text, text]
    sum((part * torch.arange(1, part.numel() + 1).view(part.shape)).sum() for part in parts).backward()  # type: ignore[union-attr]
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return [part.detach() for part in (*parts, numbers)], gradients


@pytest.mark.parametrize("name", SHARING)
def test_rows_without_padding_are_the_padded_rows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = prepared(name, "plain")
    packed = packed_batch(name, model)
    lengths = [ends[-1] for ends in packed[LAYOUT].ends]
    seen = tokens_read(model)
    ours, gradients = results(model, packed)
    assert set(seen) == {packed["input_ids"].numel() if name in MASKED else sum(lengths)}
    as_padded(monkeypatch)
    theirs, known = results(model, packed)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=5e-5, rtol=1e-5)
    whole = torch.stack([gradient.norm() for gradient in known.values()]).norm()
    assert gradients.keys() == known.keys()
    for key, gradient in known.items():
        assert (gradients[key] - gradient).norm() <= 1e-5 * torch.maximum(gradient.norm(), 1e-3 * whole)


@pytest.mark.parametrize("name", ["internvl", "qwen2_5_vl"])
def test_the_kernel_reads_them_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mpo.multimodal import varlen

    monkeypatch.setattr(varlen, "_installed", lambda: kernel)
    model = prepared(name, "plain")
    packed = packed_batch(name, model)
    packed[LAYOUT].varlen = False
    split, _ = response_logps(model, packed)
    let_a_cpu_use_it(monkeypatch)
    packed[LAYOUT].varlen = True
    one, _ = response_logps(model, packed)
    torch.testing.assert_close(one, split, atol=2e-5, rtol=0)


def test_scoring_on_a_cpu_reads_them_in_inference_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    model = prepared("internvl", "plain")
    packed = packed_batch("internvl", model)
    with torch.inference_mode():
        ours = logits_at(model, packed, some_positions(packed), [7, 8])
        as_padded(monkeypatch)
        theirs = logits_at(model, packed, some_positions(packed), [7, 8])
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_a_single_row_and_paired_rows_stay() -> None:
    model = prepared("internvl", "plain")
    row = shared_inputs(model, packed_row("internvl", model, (5, 9)))
    assert without_padding(model, row).places is None
    paired = {"input_ids": torch.ones(2, 3, dtype=torch.int64)}
    assert without_padding(model, paired).places is None
