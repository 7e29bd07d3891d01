"""The only place that calls a model in training and scoring: rows → log-probs, or logits at named positions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from torch.nn.functional import linear, pad
from torch.utils.checkpoint import checkpoint

from mpo.multimodal.logps import sum_logps
from mpo.multimodal.packing import LAYOUT, segment_sums
from mpo.multimodal.passes import row_passes
from mpo.multimodal.prefix import IGNORED
from mpo.multimodal.shared_prefix import shared_inputs
from mpo.multimodal.unpadded import ROW_IDS, without_padding
from mpo.multimodal.vision import BLANK, IMAGES, reading

LOGITS_AT_A_TIME = 2**26  # of the text: 256 MiB in float32


def response_logps(model: Any, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Log-probability of each response.

    Args:
        model: prepared with `mpo.multimodal.logps.enable_chunked_logps`, possibly wrapped (PEFT, DDP); for packed rows
            with `enable_shared_prefix` as well.
        inputs: rows from `mpo.multimodal.prefix.stack_rows`, or packed rows from `mpo.multimodal.packing.pack_rows`;
            `labels` (B, T) mark the responses.

    Returns:
        Sums, float32 (M,), with gradients; numbers of tokens, int64 (M,). M is B, or of packed rows the number of
        responses of all rows together, row after row.
    """
    values = _label_logps(model, inputs)
    if LAYOUT not in inputs:
        return sum_logps(values[:, 1:], inputs["labels"])
    return segment_sums(values, inputs[LAYOUT]), response_lengths(inputs)


def token_logps(model: Any, inputs: Mapping[str, Any]) -> list[Tensor]:
    """Log-probability of each labelled token, float32, a tensor for each response in the order of `response_logps`."""
    values, labels = _label_logps(model, inputs), inputs["labels"]
    layout = inputs.get(LAYOUT)
    places = [(row, *span) for row in range(len(labels))
              for span in (layout.segments(row) if layout else [(1, labels.shape[1])])]  # fmt: skip
    return [values[row, start:end][labels[row, start:end] != IGNORED] for row, start, end in places]


def _label_logps(model: Any, inputs: Mapping[str, Any]) -> Tensor:
    """Log-probability of every label, float32 (B, T); 0 in the first column and where a row is padded."""
    batch = without_padding(innermost(model), _with_positions(model, inputs))
    read = _read(model, batch.inputs, fused_lm_head=True)
    return batch.rows(pad(read.log_probs.float(), (1, 0)))


def response_lengths(inputs: Mapping[str, Any]) -> Tensor:
    """Numbers of labelled tokens, int64, in the order of `response_logps`."""
    labelled = inputs["labels"] != IGNORED
    return labelled[:, 1:].sum(dim=1) if LAYOUT not in inputs else segment_sums(labelled, inputs[LAYOUT])


def logits_at(
    model: Any,
    inputs: Mapping[str, Any],
    positions: Sequence[Sequence[int]],
    token_ids: Sequence[int],
    *,
    beside: nn.Module | None = None,
    max_tokens: float = math.inf,
) -> list[Tensor]:
    """Logits of a few tokens at a few positions of each row.

    Only the union of the rows' positions goes through the LM head, and only the head's rows of these tokens are used.

    Args:
        model: any causal multimodal LM; for packed rows prepared with `enable_shared_prefix`.
        inputs: from `stack_rows` or `pack_rows`; `labels` are ignored.
        positions: for each of the B rows, the S positions to read, ascending.
        token_ids: the K tokens to read, e.g. the ids of `+` and `-`.
        beside: a small head that reads the hidden states which the LM head reads, (…, H) → (…, J); it runs inside the
            model's own forward pass.
        max_tokens: a single packed row that is longer is read in several passes (`mpo/multimodal/passes.py`), which
            is for scoring: the prefix gets no gradients from the later ones.

    Returns:
        For each row, float32 logits (S, K), or (S, K + J) with what `beside` gives behind them.
    """
    batch = without_padding(innermost(model), _with_positions(model, inputs))
    places = batch.positions(positions)
    wanted = sorted({position for row in places for position in row})
    head = innermost(model).get_output_embeddings()
    with _head_rows(head, token_ids) as only, _read_beside(head, beside) as more:
        logits = _logits(model, batch.inputs, wanted, max_tokens)  # (B, len(wanted), K or V)
    read = _joined(logits if only else logits[:, :, list(token_ids)], more)
    return _of_rows(_rows(read, wanted, places), positions)


def logits_and_text_logps(
    model: Any,
    inputs: Mapping[str, Any],
    positions: Sequence[Sequence[int]],
    token_ids: Sequence[int],
    *,
    beside: nn.Module | None = None,
) -> tuple[list[Tensor], Tensor]:
    """What `logits_at` gives, and the log-probability of every labelled text token, from one forward pass.

    The tokens that are read, e.g. `+` and `-`, take no part in the text's softmax, so the two readings of the head do
    not pull at each other; a label that is one of them is left out. The text goes through the head in parts, whose
    logits are computed again for their gradients: never (N, V) at a time. Where the head is no plain linear layer, is
    followed by a softcap or is sharded (FSDP, ZeRO-3), they do exist.

    Args:
        model, inputs, positions, token_ids, beside: as in `logits_at`; `labels` (B, T) mark the text.

    Returns:
        For each row what `logits_at` gives; log-probs of all labelled tokens together, float32 (N,).
    """
    batch = without_padding(innermost(model), _with_positions(model, inputs))
    places = batch.positions(positions)
    labels = _text_labels(batch.inputs, token_ids)
    predicted = (labels[:, 1:] != IGNORED).any(dim=0).nonzero().flatten().tolist()  # columns that predict a text token
    wanted = sorted({position for row in places for position in row} | set(predicted))
    targets = labels.new_full((len(labels), len(wanted)), IGNORED)  # (B, len(wanted)), of the text
    place = {position: index for index, position in enumerate(wanted)}
    targets[:, [place[position] for position in predicted]] = labels[:, [position + 1 for position in predicted]]
    head = innermost(model).get_output_embeddings()
    with _text_head(model, token_ids, targets) as in_parts, _read_beside(head, beside) as more:
        logits = _logits(model, batch.inputs, wanted)  # (B, len(wanted), K + 1, the text's log-probs last, or V)
    scored = targets != IGNORED
    if in_parts:
        return _of_rows(_rows(_joined(logits[:, :, :-1], more), wanted, places), positions), logits[:, :, -1][scored]
    text = _masked_logps(logits[scored], targets[scored], _ids(token_ids, inputs))
    return _of_rows(_rows(_joined(logits[:, :, list(token_ids)], more), wanted, places), positions), text


def _masked_logps(logits: Tensor, targets: Tensor, without: Tensor) -> Tensor:
    """Log-probabilities (N,) of targets under logits (N, V), float32; some tokens take no part in the softmax."""
    masked = logits.float().index_fill(1, without, float("-inf"))
    return masked.gather(1, targets[:, None]).squeeze(1) - masked.logsumexp(dim=-1)


@contextmanager
def _text_head(model: Any, token_ids: Sequence[int], targets: Tensor) -> Iterator[bool]:
    """While this lasts, a plain linear head gives (B, columns, K + 1) float32: logits of these tokens, and the
    log-probability of each target; yields whether it does.

    Args:
        targets: (B, columns), `IGNORED` where there is none.
    """
    base = innermost(model)
    head, text = base.get_output_embeddings(), base.config.get_text_config()
    capped = getattr(text, "final_logit_softcapping", None) is not None
    if type(head) is not nn.Linear or capped or _is_sharded(model):
        yield False
        return
    rows, scored = list(token_ids), targets != IGNORED
    without, wanted = torch.tensor(rows, device=targets.device), targets[scored]
    size = max(1, LOGITS_AT_A_TIME // head.out_features)

    def part(hidden: Tensor, own: Tensor) -> Tensor:
        return _masked_logps(linear(hidden, head.weight, head.bias), own, without)

    def few(hidden: Tensor) -> Tensor:
        labels = linear(hidden, head.weight[rows], None if head.bias is None else head.bias[rows]).float()
        parts = [
            checkpoint(part, some, own, use_reentrant=False, preserve_rng_state=False)
            for some, own in zip(hidden[scored].split(size), wanted.split(size), strict=True)
        ]
        logps = labels.new_zeros(scored.shape).masked_scatter(scored, torch.cat([labels.new_zeros(0), *parts]))
        return torch.cat([labels, logps[:, :, None]], dim=-1)

    with patch.object(head, "forward", few):
        yield True


def _is_sharded(model: Any) -> bool:
    """Whether weights are whole only while their module runs: computing logits again later would find them gone."""
    return isinstance(model, (FSDPModule, FullyShardedDataParallel)) or any(
        hasattr(parameter, "ds_id") or isinstance(parameter, DTensor) for parameter in model.parameters()
    )


def text_tokens(inputs: Mapping[str, Any], token_ids: Sequence[int]) -> Tensor:
    """How many log-probs `logits_and_text_logps` gives, 0-d int64."""
    return (_text_labels(inputs, token_ids)[:, 1:] != IGNORED).sum()


def _text_labels(inputs: Mapping[str, Any], token_ids: Sequence[int]) -> Tensor:
    """The labels (B, T) without those of the tokens that are read."""
    return inputs["labels"].masked_fill(torch.isin(inputs["labels"], _ids(token_ids, inputs)), IGNORED)


def _with_positions(model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """A batch as `_read` takes it: packed rows need the position ids that the model could not know."""
    return shared_inputs(innermost(model), inputs) if LAYOUT in inputs else dict(inputs)


def _read(model: Any, inputs: Mapping[str, Any], **how: Any) -> Any:
    """The model's output for a batch from `_with_positions`; repeated images are encoded once."""
    given = dict(inputs)
    images, blank = given.pop(IMAGES, None), given.pop(BLANK, None)
    with reading(innermost(model), images, given.pop(ROW_IDS, given["input_ids"]), blank):
        return model(**given, **how)


def _logits(model: Any, inputs: Mapping[str, Any], columns: Sequence[int], max_tokens: float = math.inf) -> Tensor:
    """Logits (B, len(columns), V) of a few columns of the batch, ascending, in the model's number type."""
    unlabelled = {key: value for key, value in inputs.items() if key != "labels"}
    found = []
    for part, start in row_passes(unlabelled, max_tokens):
        ids = part["input_ids"]
        own = [column - start for column in columns if 0 <= column - start < ids.shape[1]]
        kept = torch.tensor(own, device=ids.device)
        found.append(_read(model, part, use_cache=False, logits_to_keep=kept).logits)
    return torch.cat(found, dim=1)


@contextmanager
def _head_rows(head: Any, token_ids: Sequence[int]) -> Iterator[bool]:
    """While this lasts, a plain linear head gives the logits of these tokens alone, (…, K); yields whether it does."""
    if type(head) is not nn.Linear:
        yield False
        return
    rows = list(token_ids)

    def few(hidden: Tensor) -> Tensor:
        return linear(hidden, head.weight[rows], None if head.bias is None else head.bias[rows])

    with patch.object(head, "forward", few):  # inside the module's call, where FSDP and ZeRO have gathered its weight
        yield True


@contextmanager
def _read_beside(head: Any, beside: nn.Module | None) -> Iterator[list[Tensor]]:
    """While this lasts, what the LM head reads goes through `beside` too; yields what it gives, pass after pass."""
    found: list[Tensor] = []
    if beside is None:
        yield found
        return
    handle = head.register_forward_hook(lambda _, given, __: found.append(beside(given[0])))
    try:
        yield found
    finally:
        handle.remove()


def _joined(logits: Tensor, more: Sequence[Tensor]) -> Tensor:
    """Logits (B, S, K), float32, and behind them what was read beside them, (B, S, J)."""
    return torch.cat([logits.float(), torch.cat(list(more), dim=1)], dim=-1) if more else logits.float()


def _rows(read: Tensor, columns: Sequence[int], positions: Sequence[Sequence[int]]) -> list[Tensor]:
    """For each row, the (S, K) part of `read` (B, len(columns), K) at its positions."""
    column = {position: index for index, position in enumerate(columns)}
    return [read[i, [column[position] for position in row]] for i, row in enumerate(positions)]


def _of_rows(read: list[Tensor], positions: Sequence[Sequence[int]]) -> list[Tensor]:
    """What was read at the positions of each row, (S, K), of what may come from one row for all."""
    return [*torch.cat(read).split([len(row) for row in positions])]


def _ids(token_ids: Sequence[int], inputs: Mapping[str, Any]) -> Tensor:
    return torch.tensor(list(token_ids), device=inputs["input_ids"].device)


def innermost(model: Any) -> Any:
    """The model inside DDP, FSDP, DeepSpeed (`.module`), torch.compile (`._orig_mod`) and PEFT."""
    for attribute in ("module", "_orig_mod"):
        while isinstance(getattr(model, attribute, None), nn.Module):
            model = getattr(model, attribute)
    return model.get_base_model() if hasattr(model, "get_base_model") else model
