"""Random JPEG compression: what it changes, when it draws anew, and what it never touches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mpo.collator import PreferenceCollator
from mpo.config import MPOConfig
from mpo.multimodal.errors import ConfigError
from mpo.multimodal.jpeg import JpegAugmentation, compressed
from mpo.multimodal.loading import load_processor
from mpo.trainer import MPOTrainer
from tests.mpo.tiny import tiny_internvl

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8))


def row(marked: bool | None, question: str = "?", chosen: str = "1") -> dict[str, Any]:
    content = [{"type": "image"}, {"type": "text", "text": question}]
    prompt = [{"role": "user", "content": content}]
    return {"images": [NOISE], "prompt": prompt, "chosen": chosen, "rejected": "2", "data_augment": marked}


def pixels(collator: PreferenceCollator, *rows: dict[str, Any]) -> torch.Tensor:
    return collator(rows)["pixel_values"]


@pytest.fixture(scope="module")
def processor() -> Any:
    return load_processor(tiny_internvl())


def test_compression_is_jpegs() -> None:
    """Lower quality is further away; the size stays."""
    far = [
        np.abs(np.asarray(compressed(NOISE, quality), int) - np.asarray(NOISE, int)).mean() for quality in (100, 75, 1)
    ]
    assert far == sorted(far)
    assert far[0] > 0
    assert compressed(NOISE, 75).size == NOISE.size


def test_every_quality_is_drawn_about_equally_often() -> None:
    """26 qualities, 5,200 draws: 200 each, give or take five standard deviations of 13.9."""
    augmentation = JpegAugmentation("all", seed=3)
    drawn = np.bincount([augmentation.quality(None, str(i)) for i in range(5200)], minlength=101)
    assert drawn[:75].sum() == 0
    assert drawn[75:].min() > 130
    assert drawn[75:].max() < 270


@pytest.mark.parametrize(
    ("which", "expected"), [("none", (False, False)), ("marked", (True, False)), ("all", (True, True))]
)
def test_which_rows_are_compressed(processor: Any, which: Any, expected: tuple[bool, bool]) -> None:
    plain = pixels(PreferenceCollator(processor), row(True))
    collator = PreferenceCollator(processor, jpeg=JpegAugmentation(which, seed=0))
    changed = tuple(not torch.equal(pixels(collator, row(marked)), plain) for marked in (True, None))
    assert changed == expected


def test_a_draw_depends_on_seed_epoch_and_prompt_alone(processor: Any) -> None:
    """Two collators, or a run and its resume, agree; another epoch or seed differs; the pairs of a prompt share."""
    ours, theirs = (JpegAugmentation("marked", seed=0) for _ in range(2))
    first, second = PreferenceCollator(processor, jpeg=ours), PreferenceCollator(processor, jpeg=theirs)
    some = [row(True, str(i)) for i in range(4)]
    zero = pixels(first, *some)
    assert torch.equal(pixels(second, *reversed(some)).flip(0), zero)
    ours.set_epoch(1)
    one = pixels(first, *some)
    assert not torch.equal(one, zero)
    assert torch.equal(pixels(second, *some), zero)
    theirs.set_epoch(1)
    assert torch.equal(pixels(second, *some), one)
    other = PreferenceCollator(processor, jpeg=JpegAugmentation("marked", seed=1))
    assert not torch.equal(pixels(other, *some), zero)
    assert first([row(True, chosen="1"), row(True, chosen="3")])["pair_prompts"] == 1


def test_training_draws_anew_in_every_epoch_and_evaluation_never(tmp_path: Path) -> None:
    rows = [row(True, str(i)) for i in range(2)]
    run: dict[str, Any] = {"use_cpu": True, "disable_tqdm": True, "report_to": "none", "save_strategy": "no"}
    args = MPOConfig(str(tmp_path), num_train_epochs=2, per_device_train_batch_size=2, eval_strategy="epoch", **run)
    trainer = MPOTrainer(str(tiny_internvl()), args=args, train_dataset=rows, eval_dataset=rows)
    seen: dict[bool, list[torch.Tensor]] = {True: [], False: []}
    compute = trainer.compute_loss

    def watched(model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
        seen[model.training].append(inputs["pixel_values"].clone())
        return compute(model, inputs, *rest, **more)

    trainer.compute_loss = watched  # type: ignore[method-assign]
    trainer.train()
    plain = images(pixels(PreferenceCollator(trainer.processing_class), *rows))
    (first, second), evaluation = map(images, seen[True]), list(map(images, seen[False]))
    assert not first & plain
    assert first != second
    assert evaluation == [plain, plain]


def images(batch: torch.Tensor) -> set[bytes]:
    """The different images of a batch, in which a layout may repeat one."""
    return {image.numpy().tobytes() for image in batch}


def test_a_precomputed_reference_knows_one_image(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="jpeg_augmentation='all' changes the images"):
        MPOConfig(str(tmp_path), precompute_ref_log_probs=True, jpeg_augmentation="all")
    with pytest.raises(ConfigError, match="jpeg_augmentation must be one of"):
        MPOConfig(str(tmp_path), jpeg_augmentation="some")  # type: ignore[arg-type]
