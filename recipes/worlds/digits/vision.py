"""Pretrain the tiny vision tower on single digits, as InternViT is pretrained before InternVL exists.

Without it a policy of this size reads fewer than half of unseen digits after 800 steps, and no process reward
model can check what neither model can see (docs/log.md). Only scans of the warm-start split are used, one tile
each, with small random shifts, turns and stretches.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchvision.transforms import v2
from tqdm.auto import tqdm

from recipes.worlds.digits.world import INKS, Scene, split_indices


def pretrain_vision(model: Any, *, steps: int, seed: int, batch_size: int = 64, learning_rate: float = 2e-3) -> float:
    """Train vision tower and projector, in place, to tell digits and inks apart; the linear head is thrown away.

    Args:
        model: the policy; its text model is not touched.
        steps: optimizer steps of `batch_size` tiles.
        seed: order and augmentation.

    Returns:
        Accuracy on the training tiles over the last tenth of the steps, augmented.
    """
    torch.manual_seed(seed)
    tiles, digits, inks = single_tiles("warm_start")
    augment = v2.RandomAffine(degrees=12, translate=(0.1, 0.1), scale=(0.85, 1.15), shear=8, fill=1.0)
    head = torch.nn.Linear(model.config.text_config.hidden_size, 10 + len(INKS))
    trained = [
        *model.model.vision_tower.parameters(),
        *model.model.multi_modal_projector.parameters(),
        *head.parameters(),
    ]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.05)
    right: list[float] = []
    for _ in tqdm(range(steps), desc="pretrain vision", unit="step"):
        picked = torch.randint(len(tiles), (batch_size,))
        logits = head(tile_features(model, torch.stack([augment(tile) for tile in tiles[picked]])))
        loss = cross_entropy(logits[:, :10], digits[picked], label_smoothing=0.05)
        loss = loss + cross_entropy(logits[:, 10:], inks[picked], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        right.append((logits[:, :10].argmax(-1) == digits[picked]).float().mean().item())
    return float(np.mean(right[-max(1, steps // 10) :]))


def tile_features(model: Any, tiles: Tensor) -> Tensor:
    """Mean image token of each tile; tiles (N, 3, 32, 32) in [0, 1] → (N, H)."""
    features = model.get_image_features((tiles - 0.5) / 0.5, return_dict=True).pooler_output  # (N, 4, H)
    return torch.stack(list(features)).mean(dim=1)


def single_tiles(split: str) -> tuple[Tensor, Tensor, Tensor]:
    """Every scan of a split in every ink: (N, 3, 32, 32) in [0, 1], its digit (N,) and the ink's index (N,)."""
    scenes = [Scene("sum", (scan,), (ink,)) for scan in split_indices(split) for ink in INKS]
    pixels = np.stack([np.asarray(scene.picture()) for scene in scenes])
    tiles = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    digits = torch.tensor([scene.digits[0] for scene in scenes])
    return tiles, digits, torch.arange(len(INKS)).repeat(len(split_indices(split)))
