"""A process reward model in this process: load it, score N responses, pick the best.

The folder that holds a PRM holds its contract, `prm.json`, so whoever scores it asks as its trainer asked. Someone
else's PRM has none, and is prompted as a row of `rewards.prm.formats` defines.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers.utils import logging

from mpo.multimodal.ahead import ahead
from mpo.multimodal.errors import ConfigError, StageError
from mpo.multimodal.hub import model_folder
from mpo.multimodal.images import load_image
from mpo.multimodal.loading import best_device, load_model, load_processor, stored_dtype
from mpo.multimodal.packing import LAYOUT
from mpo.multimodal.positions import RowPositions
from mpo.multimodal.scoring import logits_at
from rewards.prm.concentration import FILE, KEY, ConcentrationHead, load_head, save_head
from rewards.prm.formats import CONTRACT, FORMATS, PRMFormat, find_format, validated
from rewards.prm.label_head import check_head, load_label_head
from rewards.prm.readout import label_softmax
from rewards.prm.rendering import RenderedSolution, render
from rewards.prm.rows import check_sharing, prepare_sharing, rows_of
from rewards.prm.step_prm import CutResponse, StepPRM, by_problem
from rewards.types import StepScores

logger = logging.get_logger(__name__)


class ModelPRM(StepPRM):
    """Scores every step of a response with P(correct up to this step), and with its spread where it was trained to.

    The responses to one problem share its prompt: question and images go through the model once for all of them
    (`mpo.multimodal.packing`), where the model can read such rows; else each response is a row of its own.

    Args:
        model: an image-text-to-text model, in eval mode, on its device; it is prepared in place.
        processor: its processor.
        prm_format: how it was trained to be asked.
        batch_rows: responses per forward pass.
        max_pass_tokens: responses that share a prompt and hold more tokens are read in several passes; the prompt is
            read in the first, and its keys and values are kept for the others. None: 4,096 on a CPU, where short
            passes are faster, and 65,536 elsewhere, which bounds the memory.
        concentration: a head of this model, on its device (`rewards/prm/concentration.py`): `StepScores.spreads` then
            has the standard deviation of each step's Beta. None: scores have no spread.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        prm_format: PRMFormat,
        *,
        batch_rows: int = 32,
        max_pass_tokens: int | None = None,
        concentration: ConcentrationHead | None = None,
    ) -> None:
        super().__init__(processor, prm_format)
        self.model, self.concentration = model, concentration
        self.batch_rows = batch_rows
        self.max_pass_tokens = max_pass_tokens or (4096 if model.device.type == "cpu" else 65_536)
        self._labels = prm_format.label_ids(processor.tokenizer)
        self._positions = RowPositions.without_weights(model)
        self.shares = prepare_sharing(model)
        self._kernel: bool | None = None  # whether attention may use it; unknown until a first packed batch

    @classmethod
    def load(cls, path: str | Path, *, prm_format: str | None = None, batch_rows: int = 32) -> ModelPRM:
        """Load a PRM that `PRMTrainer` saved, or someone else's, in the number type that it is stored in.

        Args:
            path: its folder, or `org/name` or `org/name@revision` on the hub.
            prm_format: for a folder without `prm.json`: a name of `rewards.prm.formats.FORMATS` or a YAML file.
            batch_rows: responses per forward pass.

        Raises:
            StageError: the folder has no `prm.json` and no format is given.
            ConfigError: both are there and differ, or the weights, or the head that `prm.json` names, are not those of
                such a PRM.
        """
        contract = load_format(path, prm_format)
        folder = model_folder(path)  # of one commit, should the hub's branch move meanwhile
        processor = load_processor(folder)
        contract.check_tokens(processor.tokenizer)
        model: Any = load_weights(folder, contract, dtype=stored_dtype(folder))
        head = load_head(folder, model).to(best_device()) if has_head(folder) else None
        return cls(model.to(best_device()).eval(), processor, contract, batch_rows=batch_rows, concentration=head)

    def _scores(self, items: Sequence[CutResponse], describe: str) -> list[StepScores]:
        """Tokens of a batch are made in a thread while the model reads the one before it."""
        scores: list[StepScores] = []
        batches = [items[start : start + self.batch_rows] for start in range(0, len(items), self.batch_rows)]
        with tqdm(total=len(items), desc=describe, unit="response", disable=not describe) as bar:
            for batch, rendered in zip(batches, ahead(self._rendered, batches), strict=True):
                scores.extend(self._read(rendered))
                bar.update(len(batch))
        return scores

    def _rendered(self, items: Sequence[CutResponse]) -> list[list[RenderedSolution]]:
        return [
            render(self.processor, self.format, problem, steps, [load_image(image) for image in problem.images])
            for problem, steps in by_problem(items)
        ]

    def _read(self, rendered: Sequence[Sequence[RenderedSolution]]) -> list[StepScores]:
        logits = torch.cat(self._logits(rendered))  # (all steps, labels), and log κ behind them with a head
        steps_each = [len(solution.read_positions) for some in rendered for solution in some]
        if self.concentration is None:
            return [label_softmax(own) for own in logits.split(steps_each)]
        return [label_softmax(own[:, :-1], own[:, -1]) for own in logits.split(steps_each)]

    @torch.inference_mode()
    def _logits(self, rendered: Sequence[Sequence[RenderedSolution]]) -> list[Tensor]:
        """Label logits of the steps of several problems' responses, in order: (steps of a row, labels) each, with log κ
        behind them if there is a head."""
        if self.shares and self._kernel is None:
            self._check(rendered[0])
        inputs, positions = self._rows(rendered)
        if LAYOUT in inputs and len(rendered) > 1 and inputs["input_ids"].numel() > self.max_pass_tokens:
            return [logits for some in rendered for logits in self._logits([some])]
        beside, most = self.concentration, self.max_pass_tokens
        return logits_at(self.model, inputs, positions, self._labels, beside=beside, max_tokens=most)

    def _rows(self, rendered: Sequence[Sequence[RenderedSolution]]) -> tuple[dict[str, Any], list[list[int]]]:
        inputs, positions = rows_of(rendered, self.processor, shared=self.shares, positions=self._positions)
        if LAYOUT in inputs:
            inputs[LAYOUT].varlen = self._kernel is not False
        device = self.model.device
        return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs.items()}, positions

    def _check(self, some: Sequence[RenderedSolution]) -> None:
        """Compare the two longest responses to one problem, read together, with each read alone, once."""
        inputs, positions = self._rows([sorted(some, key=lambda solution: len(solution.continuation))[-2:]])
        if LAYOUT not in inputs:
            return
        found = check_sharing(self.model, inputs, positions, self._labels)
        self.shares, self._kernel = found.shares, found.kernel
        if not found.shares:
            logger.warning("each response is read with a prompt of its own: %s", found.reason)


def save_format(path: str | Path, prm_format: PRMFormat, *, head: ConcentrationHead | None = None) -> None:
    """Write the contract beside the weights, and a concentration head, which the contract then names."""
    if head is not None:
        save_head(path, head)
    (Path(path) / CONTRACT).write_text(json.dumps(contract_of(prm_format, head), indent=2) + "\n")


def contract_of(prm_format: PRMFormat, head: ConcentrationHead | None = None) -> dict[str, Any]:
    """What `prm.json` holds: the format's fields, and the name of the head's file."""
    return {**prm_format.to_dict(), **({} if head is None else {KEY: FILE})}


def load_format(path: str | Path, given: str | None = None) -> PRMFormat:
    """The contract of a PRM folder; `given`, a row's name or a YAML file, is used if the folder has none.

    Raises:
        StageError: there is neither.
        ConfigError: a damaged contract, or both are there and differ.
    """
    file = model_folder(path) / CONTRACT
    if not file.exists():
        if given is None:
            raise StageError(
                f"no process reward model at {path}: expected {CONTRACT} there, as `mpo train-prm` writes it; for "
                f"someone else's PRM add --prm_format, one of {', '.join(FORMATS)} or a YAML file"
            )
        return find_format(given)
    contract = validated({key: value for key, value in _fields(file).items() if key != KEY}, str(file))
    if given is not None and find_format(given) != contract:
        raise ConfigError(
            f"{file} defines how this PRM is prompted, and prm_format={given} differs from it; leave it out"
        )
    return contract


def has_head(path: str | Path) -> bool:
    """Whether the contract of a PRM folder names a concentration head.

    Raises:
        ConfigError: a damaged contract, or one that names another file.
    """
    file = model_folder(path) / CONTRACT
    named = _fields(file).get(KEY) if file.exists() else None
    if named not in (None, FILE):
        raise ConfigError(f"{file}: expected {KEY} to be {FILE!r}, or nothing of that name; got {named!r:.80}")
    return named is not None


def _fields(file: Path) -> dict[str, Any]:
    try:
        fields = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file} is not a PRM contract: {error}") from error
    if not isinstance(fields, dict):
        raise ConfigError(f"{file} is not a PRM contract: expected a JSON object, got {type(fields).__name__}")
    return fields


def load_weights(path: str | Path, prm_format: PRMFormat, *, dtype: torch.dtype = torch.float32) -> Any:
    """The model of a checkpoint, with a label head if the format reads one; on the CPU.

    Raises:
        ConfigError: the format reads a head that is not there, or leaves one out.
    """
    check_head(path, prm_format)
    loads = load_label_head if prm_format.readout == "head" else load_model
    return loads(path, dtype=dtype)
