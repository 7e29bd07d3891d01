"""Problems over real handwritten digits, and the many right ways to answer them.

scikit-learn ships 1,797 scans of handwritten digits (8x8 grey values, UCI Optical Recognition of Handwritten
Digits). 2 to 5 of them are side by side in one image, one 32x32 tile each, each in an ink of its own; a question
asks for the last digit of their sum, for the largest minus the smallest, or for the largest number that they make. An
answer names one digit per step by its ink, updates the running result in the step after it, and ends in
`Final answer: …`; steps are separated by blank lines. Order of reading, wording and optional checks vary, so that one
problem has many right answers, as real reasoning does.

The scans are split into five parts before anything else happens, so a scan seen in one stage never occurs in
another: `warm_start`, `prm`, `preference`, `development`, `test`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

from mpo.multimodal.errors import ConfigError
from rewards.types import Problem

TILE = 32  # pixels per digit
SPLITS = {"warm_start": 0.05, "prm": 0.42, "preference": 0.25, "development": 0.10, "test": 0.18}
QUESTIONS = {
    "sum": "What is the last digit of the sum?",
    "range": "What is the largest digit minus the smallest?",
    "number": "What is the largest number that these digits make?",
    "triple": "What is the last digit of three times the sum?",
}
KINDS = ("sum", "range", "number")  # of the published tables
# A misread digit leaves a third of the answers to "range" right. In these kinds every digit counts.
REASONING_KINDS = ("sum", "triple", "number")
INKS = {  # name → RGB
    "Red": (215, 25, 30),
    "Green": (15, 140, 50),
    "Blue": (35, 70, 220),
    "Orange": (245, 150, 0),
    "Purple": (140, 40, 170),
}
WORDINGS = ("See {ink} {digit}", "Read {ink} {digit}", "Find {ink} {digit}")


@cache
def _scans() -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ConfigError(f"the digits need the extra: pip install -e '.[digits]' ({error})") from error

    data = load_digits()
    return data.images, data.target


def split_indices(split: str) -> list[int]:
    """The scans that belong to one split: a fixed permutation of all 1,797, cut in five; no overlap.

    Raises:
        ConfigError: unknown split.
    """
    if split not in SPLITS:
        raise ConfigError(f"unknown split {split!r}: expected one of {', '.join(SPLITS)}")
    total = len(_scans()[1])
    order = np.random.default_rng(20241110).permutation(total)
    ends = np.cumsum([round(share * total) for share in SPLITS.values()])
    ends[-1] = total
    position = list(SPLITS).index(split)
    start = 0 if position == 0 else ends[position - 1]
    return [int(index) for index in order[start : ends[position]]]


@dataclass(frozen=True)
class Scene:
    """A question kind, the scans in the image from left to right, and the ink of each, all different."""

    kind: str
    scans: tuple[int, ...]
    inks: tuple[str, ...]

    @property
    def digits(self) -> tuple[int, ...]:
        """The true digits, from left to right."""
        return tuple(int(_scans()[1][scan]) for scan in self.scans)

    @property
    def answer(self) -> int:
        """The exact answer."""
        return answer_of(self.kind, self.digits)

    def picture(self) -> Image.Image:
        """The scans side by side, RGB, 32 pixels high, coloured ink on white."""
        images = _scans()[0]
        tiles = [_coloured(images[scan] / 16.0, INKS[ink]) for scan, ink in zip(self.scans, self.inks, strict=True)]
        wide = Image.fromarray(np.concatenate(tiles, axis=1))
        return wide.resize((TILE * len(tiles), TILE), Image.Resampling.BICUBIC)


def _coloured(coverage: np.ndarray, ink: tuple[int, int, int]) -> np.ndarray:
    """Ink coverage (8, 8) in [0, 1] on white paper → (8, 8, 3) uint8."""
    return np.rint(255 + coverage[:, :, None] * (np.array(ink) - 255)).astype(np.uint8)


def answer_of(kind: str, digits: Sequence[int]) -> int:
    """The answer to a question kind.

    Example:
        >>> [answer_of(kind, (3, 8, 2)) for kind in ("sum", "range", "number", "triple")]
        [3, 6, 832, 9]
    """
    if kind in ("sum", "triple"):
        return sum(digits) * (3 if kind == "triple" else 1) % 10
    if kind == "range":
        return max(digits) - min(digits)
    return int("".join(map(str, sorted(digits, reverse=True))))


def scenes(
    split: str, count: int, seed: int, *, lengths: Sequence[int] = (2, 3, 4, 5), kinds: Sequence[str] = KINDS
) -> list[Scene]:
    """`count` random scenes of one split; the same arguments give the same scenes."""
    rng = random.Random(f"{split}:{seed}")
    pool = split_indices(split)

    def draw() -> Scene:
        length = rng.choice(list(lengths))
        return Scene(rng.choice(list(kinds)), tuple(rng.sample(pool, length)), tuple(rng.sample(list(INKS), length)))

    return [draw() for _ in range(count)]


def to_problem(scene: Scene, identifier: str) -> Problem:
    """The scene as a problem with its image in memory; the truth is kept in `meta` for exact step labels."""
    meta = {"kind": scene.kind, "digits": dict(zip(scene.inks, scene.digits, strict=True)), "scans": list(scene.scans)}
    return Problem(identifier, QUESTIONS[scene.kind], (scene.picture(),), str(scene.answer), meta)


def solution(kind: str, digits: Mapping[str, int], rng: random.Random) -> str:
    """One of the many right answers, drawn at random.

    Args:
        kind: a key of `QUESTIONS`.
        digits: ink → digit.
        rng: draws order, wording and the optional check.

    Example:
        >>> print(solution("sum", {"Red": 3, "Blue": 9}, random.Random(1)).replace("\\n\\n", " ¶ "))
        See Blue 9 ¶ Now 9 ¶ See Red 3 ¶ Now 2 ¶ Final answer: 2
    """
    inks = list(digits)
    order = rng.choice((inks, inks[::-1], rng.sample(inks, len(inks))))
    wording = rng.choice(WORDINGS)
    steps = []
    for count, ink in enumerate(order, start=1):
        running = running_result(kind, [digits[seen] for seen in order[:count]])
        steps += [wording.format(ink=ink, digit=digits[ink]), f"Now {running}"]
    if rng.random() < 0.2:
        ink = rng.choice(inks)
        steps.append(f"Check: {WORDINGS[0].format(ink=ink, digit=digits[ink])}")
    return "\n\n".join([*steps, f"Final answer: {answer_of(kind, list(digits.values()))}"])


def running_result(kind: str, read: Sequence[int]) -> str:
    """What a step carries along after the digits read so far.

    Example:
        >>> [running_result(kind, (3, 8)) for kind in ("sum", "range", "number")]
        ['1', '3 to 8', '83']
    """
    if kind == "range":
        return f"{min(read)} to {max(read)}"
    return str(answer_of(kind, read))
