"""Labelled groups → rows, read positions, labels, and the text of the responses that end right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from mpo.multimodal.images import load_image
from mpo.multimodal.jpeg import JpegAugmentation, compressed
from mpo.multimodal.memory_bound import KEPT_BYTES, Kept
from mpo.multimodal.positions import RowPositions
from mpo.multimodal.prefix import IGNORED
from rewards.prm.formats import PRMFormat
from rewards.prm.labelling.labels import LabelledGroup
from rewards.prm.released import as_released
from rewards.prm.rendering import RenderedSolution, render
from rewards.prm.rows import rows_of, spans_of


class PRMCollator:
    """Groups → rows, read positions and labels. Rendered groups are kept from epoch to epoch, as many as fit.

    Args:
        processor: of the model that is trained.
        prm_format: its contract.
        shared: packed rows, a problem's responses behind its prompt, for a model that can read them.
        with_text: the inputs' `labels` mark the tokens of the responses' own text, for L_text.
        released: rows of `rewards.prm.released`; their `labels` mark the signs and the ends of their turns.
        jpeg: compresses images at random (`mpo/multimodal/jpeg.py`); None leaves all as they are.
        positions: adds the model's `position_ids` to the inputs; None leaves them to the model.
    """

    def __init__(
        self,
        processor: Any,
        prm_format: PRMFormat,
        *,
        shared: bool = False,
        with_text: bool = False,
        released: bool = False,
        jpeg: JpegAugmentation | None = None,
        positions: RowPositions | None = None,
    ) -> None:
        self.positions = positions
        self.processor, self.format, self.jpeg = processor, prm_format, jpeg
        self.shared, self.with_text, self.released = shared, with_text, released
        self._rendered: Kept[tuple[LabelledGroup, list[RenderedSolution]]] = Kept(KEPT_BYTES)

    def __call__(self, groups: Sequence[LabelledGroup]) -> dict[str, Any]:
        """Returns `inputs` (model inputs), `positions` (a list for each row), for each position `step_labels`,
        `step_counts` (None without one), `problems` and `step_groups` (its group's place in the batch), and for each
        response `solution_groups`.

        With `with_text`, the inputs' `labels` mark the text of the responses that end right.
        """
        rendered = [self._rows_of(group) for group in groups]
        placed = [(place, solution) for place, group in enumerate(groups) for solution in group.solutions]
        inputs, positions = rows_of(rendered, self.processor, shared=self.shared, positions=self.positions)
        for (row, start, end), (_, solution) in zip(spans_of(inputs), placed, strict=True):
            if not solution.ends_right and not self.released:
                inputs["labels"][row, start:end] = IGNORED
        step_groups = [place for place, solution in placed for _ in solution.labels]
        return {
            "inputs": inputs,
            "positions": positions,
            "step_labels": [label for _, solution in placed for label in solution.labels],
            "step_counts": [count for _, some in placed for count in some.counts or [None] * len(some.labels)],
            "problems": [groups[place].problem.id for place in step_groups],
            "step_groups": step_groups,
            "solution_groups": [place for place, _ in placed],
        }

    def _rows_of(self, group: LabelledGroup) -> list[RenderedSolution]:
        marked = group.problem.meta.get("data_augment")
        quality = self.jpeg.quality(marked, group.problem.id) if self.jpeg else 0
        return self._rendered((id(group), quality), partial(self._with_rows, group, quality))[1]

    def _with_rows(self, group: LabelledGroup, quality: int) -> tuple[LabelledGroup, list[RenderedSolution]]:
        """The group itself as well: it is found by identity, and stays alive while its rows are kept."""
        images = [load_image(image) for image in group.problem.images]
        images = [compressed(image, quality) for image in images] if quality else images
        steps = [solution.steps for solution in group.solutions]
        rows = render(self.processor, self.format, group.problem, steps, images, with_text=self.with_text)
        if self.released:
            labels = [solution.labels for solution in group.solutions]
            rows = [as_released(self.processor, self.format, *row) for row in zip(rows, labels, strict=True)]
        return group, rows


def first_groups(batch: Mapping[str, Any], groups: int) -> dict[str, Any]:
    """The batch with labels of its first groups only; the others still run, and count nowhere.

    Args:
        batch: of `PRMCollator`.
        groups: how many to keep, 0 or more; there may be fewer.
    """
    labels = batch["inputs"]["labels"].clone()
    for (row, start, end), place in zip(spans_of(batch["inputs"]), batch["solution_groups"], strict=True):
        if place >= groups:
            labels[row, start:end] = IGNORED
    steps = zip(batch["step_labels"], batch["step_groups"], strict=True)
    return {
        **batch,
        "inputs": {**batch["inputs"], "labels": labels},
        "step_labels": [label if place < groups else None for label, place in steps],
    }
