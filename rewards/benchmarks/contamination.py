"""Near-duplicates between training and test problems: images by a perceptual hash, questions by their word n-grams.

A test problem is a near-duplicate of a training problem if every image of the one has a close image in the other, in
order, and their questions share most of their n-grams. An image that is close while the question is another one is
counted apart: it tells of a common source, not of a known answer. Exact duplicates are near-duplicates too.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mpo.multimodal.errors import ImageError
from mpo.multimodal.images import load_image
from rewards.types import Problem

SIDE = 16  # of the difference hash: SIDE² bits
STEP = 6  # grey levels of 255 that a neighbour must be brighter by: the noise of JPEG and of resizing sets no bit
BAND = 16  # bits of a hash that must be the same for two images to be compared at all
MAX_DISTANCE = 12  # bits of SIDE² = 256; fewer than there are bands, so a close pair has equal ones
MIN_OVERLAP = 0.6  # of n-grams
WORDS = 3  # per n-gram
_WORD = re.compile(r"\w+")

Hash = bytes


@dataclass(frozen=True)
class NearDuplicate:
    """A test problem and the closest training problem.

    Attributes:
        test, training: their ids.
        overlap: of the questions, in [0, 1]; see `overlap`.
        distance: the largest number of bits in which two images' hashes differ; `None` where there are no images.
        same_question: whether the overlap is large enough for a near-duplicate; else only the images are close.
    """

    test: str
    training: str
    overlap: float
    distance: int | None
    same_question: bool


def difference_hash(image: Image.Image) -> Hash:
    """256 bits: whether each of 16 × 16 cells of the grey image is clearly darker than its right neighbour.

    The difference hash (dHash, as in the package ImageHash) with a threshold, so that white paper, which line drawings
    mostly are, hashes to zeros before and after JPEG compression.

    Args:
        image: RGB, of any size.

    Example:
        >>> image = Image.new("RGB", (64, 64), "white")
        >>> difference_hash(image) == difference_hash(image.resize((200, 100)))
        True
    """
    grey = image.convert("L").resize((SIDE + 1, SIDE), Image.Resampling.BOX)
    cells: NDArray[np.int16] = np.asarray(grey, dtype=np.int16)
    return np.packbits(np.diff(cells, axis=1) > STEP).tobytes()


def distance(a: Hash, b: Hash) -> int:
    """Bits in which two hashes differ.

    Example:
        >>> distance(bytes([0b101]), bytes([0b110]))
        2
    """
    return (int.from_bytes(a) ^ int.from_bytes(b)).bit_count()


def ngrams(question: str) -> frozenset[tuple[str, ...]]:
    """The word n-grams of a question: letters and digits only, without case, accents composed; short ones are one.

    Example:
        >>> sorted(ngrams("What is the SUM?"))
        [('is', 'the', 'sum'), ('what', 'is', 'the')]
    """
    words = _WORD.findall(unicodedata.normalize("NFKC", question).casefold())
    if len(words) <= WORDS:
        return frozenset([tuple(words)] if words else [])
    return frozenset(tuple(words[start : start + WORDS]) for start in range(len(words) - WORDS + 1))


def overlap(test: frozenset[Any], training: frozenset[Any], *, with_images: bool = False) -> float:
    """How much of two questions is the same: the Jaccard index |a ∩ b| / |a ∪ b| of their n-grams; 0 for empty ones.

    With images, which must be close as well, it is |a ∩ b| / |a|, the part of the test question that the training
    prompt holds, whatever instructions stand around it.

    Example:
        >>> overlap(frozenset("abc"), frozenset("bcd")), overlap(frozenset("bc"), frozenset("bcd"), with_images=True)
        (0.5, 1.0)
    """
    whole = len(test) if with_images else len(test | training)
    return len(test & training) / whole if whole else float(with_images and not training)


@dataclass
class _Index:
    """Training problems by what a close test problem must share with them."""

    problems: list[tuple[str, tuple[Hash, ...], frozenset[tuple[str, ...]]]] = field(default_factory=list)
    places: defaultdict[Hashable, list[int]] = field(default_factory=lambda: defaultdict(list))

    def add(self, id: str, hashes: tuple[Hash, ...], grams: frozenset[tuple[str, ...]]) -> None:
        for key in _keys(hashes, grams):
            self.places[key].append(len(self.problems))
        self.problems.append((id, hashes, grams))

    def sharing(self, hashes: tuple[Hash, ...], grams: frozenset[tuple[str, ...]]) -> list[int]:
        return sorted({place for key in _keys(hashes, grams) for place in self.places.get(key, ())})


def near_duplicates(tests: Iterable[Problem], training: Iterable[Problem]) -> Iterator[NearDuplicate]:
    """For each test problem the closest training problem, if one is close.

    Args:
        tests: of a benchmark; those whose images cannot be read are compared with nothing.
        training: problems, or prompts of pairs as problems.

    Yields:
        At most one per test problem, in their order; `same_question` tells near-duplicates from close images alone.
    """
    hashes_of = _hasher()
    index = _Index()
    seen: set[Hashable] = set()
    for problem in training:
        hashes, grams = hashes_of(problem), ngrams(problem.question)
        if hashes is not None and (hashes, grams) not in seen:  # of many responses to one question, one
            seen.add((hashes, grams))
            index.add(problem.id, hashes, grams)
    for problem in tests:
        hashes, grams = hashes_of(problem), ngrams(problem.question)
        if hashes is not None and (found := _closest(problem.id, hashes, grams, index)) is not None:
            yield found


def with_like_questions(tests: Sequence[Problem], training: Sequence[Problem]) -> tuple[list[Problem], list[Problem]]:
    """The problems of both sides whose questions come near one of the other side's: only their images need be opened.

    Example:
        >>> ours = [Problem("a", "Which bar is the longest?"), Problem("b", "How many cats are there?")]
        >>> [[p.id for p in side] for side in with_like_questions(ours, [Problem("c", "which bar is the longest")])]
        [['a'], ['c']]
    """
    sides = [{grams: None for problem in some if (grams := ngrams(problem.question))} for some in (tests, training)]
    holding: defaultdict[tuple[str, ...], list[frozenset[tuple[str, ...]]]] = defaultdict(list)
    for grams in sides[1]:
        for gram in grams:
            holding[gram].append(grams)
    near: list[set[frozenset[tuple[str, ...]]]] = [set(), set()]
    for grams in sides[0]:
        for other in {other for gram in grams for other in holding.get(gram, ())}:
            if overlap(grams, other, with_images=True) >= MIN_OVERLAP:
                near[0].add(grams)
                near[1].add(other)
    found = [[p for p in some if ngrams(p.question) in own] for some, own in zip((tests, training), near, strict=True)]
    return found[0], found[1]


def _closest(
    id: str, hashes: tuple[Hash, ...], grams: frozenset[tuple[str, ...]], index: _Index
) -> NearDuplicate | None:
    best: tuple[float, int, str] | None = None
    for place in index.sharing(hashes, grams):
        other, other_hashes, other_grams = index.problems[place]
        apart = _apart(hashes, other_hashes)
        if apart is None or apart > MAX_DISTANCE:
            continue
        shared = overlap(grams, other_grams, with_images=bool(hashes))
        if (hashes or shared >= MIN_OVERLAP) and (best is None or (shared, -apart) > best[:2]):
            best = (shared, -apart, other)
    if best is None:
        return None
    shared, nearness, other = best
    return NearDuplicate(id, other, round(shared, 4), -nearness if hashes else None, shared >= MIN_OVERLAP)


def _apart(a: Sequence[Hash], b: Sequence[Hash]) -> int | None:
    """The largest distance of two images in the same place; None where the numbers of images differ."""
    return max(map(distance, a, b), default=0) if len(a) == len(b) else None


def _keys(hashes: tuple[Hash, ...], grams: frozenset[tuple[str, ...]]) -> Iterator[Hashable]:
    """What two close problems have in common at least once: a band of the first image, or without images an n-gram."""
    if not hashes:
        yield from grams
        return
    size = BAND // 8
    for start in range(0, len(hashes[0]), size):
        band = hashes[0][start : start + size]
        if any(band):  # white paper tells nothing
            yield (len(hashes), start, band)
    if int.from_bytes(hashes[0]).bit_count() <= 2 * MAX_DISTANCE:  # so little is drawn that bands may not meet
        yield (len(hashes), "sparse")


def _hasher() -> Callable[[Problem], tuple[Hash, ...] | None]:
    """Hashes of a problem's images, each file read once; None where one cannot be read."""
    by_path: Callable[[str], Hash] = cache(lambda path: difference_hash(load_image(path)))

    def hashes(problem: Problem) -> tuple[Hash, ...] | None:
        try:
            return tuple(
                difference_hash(load_image(image)) if isinstance(image, Image.Image) else by_path(str(image))
                for image in problem.images
            )
        except ImageError:
            return None

    return hashes
