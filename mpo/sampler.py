"""An order of the pairs in which those of one prompt stand together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Sampler

from mpo.multimodal.errors import ConfigError
from mpo.multimodal.images import image_sha256, load_image


class PromptGroupSampler(Sampler[int]):
    """Prompts in random order, the pairs of each in random order; the order depends only on seed and epoch.

    Args:
        rows: a dataset with a length. A row's prompt is known by its `problem_id`, or else by prompt and pictures.
        seed: of the order.

    Raises:
        ConfigError: rows without a length.

    Example:
        >>> rows = [{"problem_id": name} for name in "aabb"]
        >>> order = list(PromptGroupSampler(rows, seed=0))
        >>> [rows[i]["problem_id"] for i in order] in (["a", "a", "b", "b"], ["b", "b", "a", "a"])
        True
    """

    def __init__(self, rows: Any, *, seed: int) -> None:
        if not hasattr(rows, "__len__"):
            raise ConfigError("group_by_prompt needs a dataset with a length, got a stream: load the rows first")
        groups: dict[str, list[int]] = {}
        for index, key in enumerate(_keys(rows)):
            groups.setdefault(key, []).append(index)
        self.groups, self.seed, self.epoch = list(groups.values()), seed, 0

    def __len__(self) -> int:
        return sum(map(len, self.groups))

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        for place in torch.randperm(len(self.groups), generator=generator).tolist():
            group = self.groups[place]
            yield from (group[i] for i in torch.randperm(len(group), generator=generator).tolist())

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch; the data loader calls it."""
        self.epoch = epoch


def _keys(rows: Any) -> Iterator[str]:
    if (columns := getattr(rows, "column_names", None)) is not None:  # datasets.Dataset: read no picture in vain
        named = "problem_id" in columns and all(name is not None for name in rows["problem_id"])
        wanted = {"problem_id"} if named else {"problem_id", "prompt", "images", "image"}
        rows = rows.select_columns([name for name in columns if name in wanted])
    for row in rows:
        yield _key(row)


def _key(row: Any) -> str:
    if row.get("problem_id") is not None:
        return str(row["problem_id"])
    images = row["images"] if row.get("images") is not None else [row["image"]] if row.get("image") is not None else []
    parts = [
        row.get("prompt"),
        *(image if isinstance(image, str) else image_sha256(load_image(image)) for image in images),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
