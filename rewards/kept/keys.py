"""The unit of work of sampling, one (problem, sample index): its content key and its seed.

Both are functions of content alone, never of order, batch or clock. So a unit that was drawn is recognised whatever
run asks for it, and its random numbers are the same whoever its neighbours are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from rewards.types import Problem

SCHEMA = 1  # of keys and stored rows; a change makes all stored samples foreign


def digest(*parts: Any) -> str:
    """SHA-256 of JSON values, as 64 hexadecimal digits.

    Example:
        >>> digest("a", 1) == digest("a", 1) != digest("a1")
        True
    """
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def seed_of(*parts: Any, bits: int = 64) -> int:
    """A seed made of names: the leading bits of the SHA-256 of the parts, 0 <= seed < 2^bits.

    Half surrogates, which JSON can hold and UTF-8 cannot, are escaped instead of refused.

    Example:
        >>> seed_of("p1", 4) == seed_of("p1", 4) != seed_of("p1", 8)
        True
        >>> seed_of("p1", bits=8) < 256
        True
    """
    text = "\x00".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "backslashreplace")).digest(), "big") >> (256 - bits)


def derived_seed(seed: int, problem: Problem, index: int, prefix: str = "") -> int:
    """The unit's own seed, 0 <= seed < 2^63.

    The image takes no part: a problem asked with another image, or of another policy, gets the same random
    numbers, so what differs is due to the image or the policy.

    Args:
        seed: of the run.
        problem: what is asked; its id tells apart two problems with one text.
        index: of the sample, from 0.
        prefix: what the completion continues.
    """
    return int(digest(seed, problem.id, problem.question, index, prefix)[:16], 16) >> 1


def problem_key(problem: Problem, image_digests: Sequence[str]) -> str:
    """Content key of a problem: id, question and decoded pixels; not its answer, which no sample depends on.

    Args:
        problem: what is asked.
        image_digests: `mpo.multimodal.images.image_sha256` of each of its images, in order.
    """
    placed = ["placed"] if problem.placed else []
    return digest(problem.id, problem.question, list(image_digests), *placed)


def unit_key(segment: str, problem: str, index: int, prefix: str = "") -> str:
    """Content key of one (problem, sample index).

    Args:
        segment: digest of all that the samples depend on besides (policy, template, sampling settings, seed).
        problem: its `problem_key`.
        index: of the sample, from 0.
        prefix: what the completion continues.
    """
    return digest(SCHEMA, segment, problem, index, prefix)
