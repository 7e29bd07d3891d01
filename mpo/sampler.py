"""Orders of the pairs: those of one prompt together, or micro-batches of one length with even load over the ranks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import BatchRebalanceSampler

from mpo.admission import lengths
from mpo.collator import PreferenceCollator
from mpo.config import MPOConfig
from mpo.multimodal.errors import ConfigError, DataError
from mpo.multimodal.images import image_sha256, load_image
from mpo.row_forms import read_prompt


class PromptGroupSampler(Sampler[int]):
    """Prompts in random order, the pairs of each in random order; the order depends only on seed and epoch.

    Args:
        rows: a dataset with a length. A row's prompt is known by its `problem_id`, or else by prompt and images.
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


class TokenBalancedSampler(BatchRebalanceSampler):
    """Micro-batches of pairs of about one length that all cost about the same: hardly any padding, and no rank waits.

    Transformers' sampler, with another cost: a step's pairs depend on seed and epoch only, so on any number of ranks
    the update is the same; they are sorted by length and cut into ranks × micro-batches where the costs are even. Cost
    is tokens with padding: its quadratic term for attention, L/1000, is some 50 times that of an 8B model.
    """

    QUADRATIC_COST_COEF = 0.0


def token_balanced(rows: Any, collator: Any, args: MPOConfig, *, shared: bool) -> TokenBalancedSampler:
    """This rank's micro-batches, from the tokens of every row; images are not decoded where the processor can count.

    Args:
        rows: a dataset with a length.
        collator: the trainer's `PreferenceCollator`.
        args: of the run.
        shared: a pair is one packed row, not two.

    Raises:
        ConfigError: rows that cannot be counted, or fewer than a step has.
    """
    if not isinstance(collator, PreferenceCollator) or not hasattr(rows, "__len__"):
        raise ConfigError("batch_rebalance counts tokens, so it needs a PreferenceCollator and rows with a length")
    found = lengths(rows, collator, quiet=args.disable_tqdm or args.process_index > 0)
    tokens = [one.prompt + one.chosen + one.rejected + 1 if shared else 2 * one.longer for one in found]
    step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    if len(tokens) < step:
        raise ConfigError(f"batch_rebalance needs at least the {step} pairs of a step, got {len(tokens)}")
    share = {"dp_size": args.world_size, "rank": args.process_index, "grad_accum": args.gradient_accumulation_steps}
    return TokenBalancedSampler(tokens, step, seed=seed_of(args), **share)


def seed_of(args: MPOConfig) -> int:
    """Of the order of the rows."""
    return args.seed if args.data_seed is None else args.data_seed


def _keys(rows: Any) -> Iterator[str]:
    if (columns := getattr(rows, "column_names", None)) is not None:  # datasets.Dataset: read no image in vain
        named = "problem_id" in columns and all(name is not None for name in rows["problem_id"])
        wanted = {"problem_id"} if named else {"problem_id", "prompt", "images", "image", "chosen", "rejected"}
        rows = rows.select_columns([name for name in columns if name in wanted])
    for row in rows:
        yield _key(row)


def _key(row: Any) -> str:
    if row.get("problem_id") is not None:
        return str(row["problem_id"])
    try:
        images, *prompt = read_prompt(row)
    except DataError:  # of a form that only its own collator knows
        return hashlib.sha256(json.dumps(row.get("prompt"), sort_keys=True, default=str).encode()).hexdigest()
    parts = [*prompt, *(image if isinstance(image, str) else image_sha256(load_image(image)) for image in images)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
