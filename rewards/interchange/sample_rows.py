"""Rollout groups as one Parquet row per problem, with its images' bytes: samples to look at, to share, to load
anywhere.

As in every file that we hand out, images are PNG bytes that we decoded and encoded again, never paths.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpo.multimodal.images import load_image, png_bytes
from rewards.interchange.parquet import write_parquet
from rewards.types import RolloutGroup

if TYPE_CHECKING:
    import datasets


def write_sample_parquet(groups: Iterable[RolloutGroup], path: str | Path) -> int:
    """Write one row per problem: `problem_id`, `images`, `question`, `answer`, `completions` in order of their index.

    The file appears whole or not at all, and the same groups give the same bytes.

    Returns:
        The number of rows.

    Raises:
        ImageError: an image cannot be decoded; nothing is written.
    """
    return write_parquet(_rows(groups), path, schema=sample_features().arrow_schema)


def sample_features() -> datasets.Features:
    """The columns with their types."""
    from datasets import Features, Image, List, Value

    return Features(
        {
            "problem_id": Value("string"),
            "images": List(Image()),
            "question": Value("string"),
            "answer": Value("string"),
            "completions": List(
                {
                    "text": Value("string"),
                    "finish_reason": Value("string"),
                    "num_tokens": Value("int64"),
                    "token_logprobs": List(Value("float64")),
                }
            ),
        }
    )


def _rows(groups: Iterable[RolloutGroup]) -> Iterator[dict[str, Any]]:
    for group in groups:
        completions = [rollout.completion for rollout in group.rollouts]
        yield {
            "problem_id": group.problem.id,
            "images": [{"bytes": png_bytes(load_image(image)), "path": None} for image in group.problem.images],
            "question": group.problem.question,
            "answer": group.problem.answer,
            "completions": [
                {
                    "text": completion.text,
                    "finish_reason": completion.finish_reason.value,
                    "num_tokens": completion.num_tokens,
                    "token_logprobs": completion.token_logprobs,
                }
                for completion in completions
            ],
        }
