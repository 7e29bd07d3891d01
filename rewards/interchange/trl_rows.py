"""PreferencePair → TRL's conversational vision-preference row, and back from Parquet: the hand-over to training.

TRL finds vision data by its `images` column and expects `prompt`, `chosen` and `rejected` as chat messages
with typed content. Files hold PNG bytes that we decoded and re-encoded ourselves, never paths: a path in an
`Image` column would let `datasets` embed any local file that a row names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpo.multimodal.errors import DataError, StageError
from mpo.multimodal.messages import PLACEHOLDER
from rewards.interchange.json_rows import usable_text
from rewards.interchange.parquet import parquet_tables, read_parquet, write_parquet
from rewards.sampling.prompts import messages_of
from rewards.types import Completion, FinishReason, PreferencePair, Problem, Prompt

if TYPE_CHECKING:
    import datasets

    from rewards.types import ImageLike

Row = dict[str, Any]


def to_trl_row(pair: PreferencePair) -> Row:
    """One pair as a TRL row (vision, conversational, explicit prompt; TRL docs "Dataset formats").

    Returns:
        `images` (as the problem holds them, in order), `prompt` (as the policy was asked: the question in its
        template, behind a system message if there was one), `chosen`, `rejected`; `chosen_truncated` and
        `rejected_truncated`, which mark a response that gets no end-of-turn token; `rejected_span`, [start, end] of the
        rejected response's characters that count in L_p and L_q, or None for all (`mpo/spans.py`; TRL ignores it);
        `problem_id`, `source`, and `data_augment`, which asks the trainer to compress the images at random
        (`mpo/multimodal/jpeg.py`).

    Example:
        >>> from rewards.types import Completion, Problem
        >>> pair = PreferencePair(Problem("p", "2 + 2?"), Completion("4"), Completion("5"), "correctness")
        >>> row = to_trl_row(pair)
        >>> row["prompt"]
        [{'role': 'user', 'content': [{'type': 'text', 'text': '2 + 2?'}]}]
        >>> row["chosen"], row["images"]
        ([{'role': 'assistant', 'content': [{'type': 'text', 'text': '4'}]}], [])
    """
    problem = pair.problem
    return {
        "images": list(problem.images),
        "prompt": messages_of(problem),
        "chosen": _assistant(pair.chosen.text),
        "rejected": _assistant(pair.rejected.text),
        "chosen_truncated": pair.chosen.finish_reason is FinishReason.LENGTH,
        "rejected_truncated": pair.rejected.finish_reason is FinishReason.LENGTH,
        "rejected_span": None if pair.rejected_span is None else list(pair.rejected_span),
        "problem_id": problem.id,
        "source": pair.source,
        "data_augment": bool(pair.meta.get("data_augment")),
    }


def from_trl_row(row: Row) -> PreferencePair:
    """The pair of one row of `read_trl_parquet`, its images decoded: the inverse of `to_trl_row`.

    TRL's format allows more than a pair of ours holds: a system turn or none, one user turn of images and texts, one
    assistant turn. The question comes back as it was asked, template and all.

    Raises:
        DataError: the row holds something else, an image cannot be decoded, a side is empty, both are equal, or
            `rejected_span` lies outside the rejected response.
    """
    from mpo.multimodal.images import load_image

    prompt, turns = _system_of(row["prompt"])
    stored = row["images"] or []
    question, placed = _question_of(turns, len(stored))
    if not isinstance(row["problem_id"], str):
        raise DataError(f"problem_id is {row['problem_id']!r:.40}; expected a text")
    images = tuple(load_image(image) for image in stored)
    sides = []
    for side in ("chosen", "rejected"):
        blocks = _only_turn(row[side], "assistant")
        if [_of(block, "type") for block in blocks] != ["text"]:
            raise DataError(f"{side} holds an image or several texts; expected one text")
        text = usable_text(blocks[0]["text"] or "", "a turn")
        truncated = row.get(f"{side}_truncated")
        sides.append(Completion(text, FinishReason.LENGTH if truncated else FinishReason.STOP))
    given = row.get("rejected_span")
    if given is not None and len(given) != 2:
        raise DataError(f"rejected_span {given}; expected [start, end] or null")
    span = None if given is None else (given[0], given[1])
    problem = Problem(row["problem_id"], question, images, prompt=prompt, placed=placed)
    meta = {"data_augment": True} if row.get("data_augment") else {}
    return PreferencePair(problem, sides[0], sides[1], row["source"] or "", meta, rejected_span=span)


def write_trl_parquet(pairs: Iterable[PreferencePair], path: str | Path) -> int:
    """Write pairs as a Parquet file that `datasets`, the Hub's viewer and TRL read with images decoded.

    The file appears whole or not at all, and the same pairs give the same bytes. Pairs of one problem that
    follow each other decode its images once; the pairs may be a generator, memory holds a row group at a time.

    Returns:
        The number of rows written; zero rows give a valid, empty file.

    Raises:
        ImageError: an image cannot be decoded; nothing is written.
    """
    return write_parquet(_rows_with_bytes(pairs), path, schema=trl_features().arrow_schema)


def read_trl_parquet(
    path: str | Path, *, columns: Sequence[str] | None = None, kept_in: Path | None = None
) -> datasets.Dataset:
    """The rows of a file in TRL's format; `images` come back undecoded, for `mpo.multimodal.images.load_image`.

    The file may be anyone's: neither `datasets` nor Pillow decodes its images or opens a path that it names.

    Arrow gives every content entry the same keys, so an image placeholder reads `{"type": "image", "text": None}`,
    as in TRL's own vision datasets. A column that the file lacks is null in every row.

    Args:
        path: of the file.
        columns: those to read, of `trl_features`; None is all.
        kept_in: folder for a copy that is mapped into memory, for sets that do not fit; its owner removes it.

    Raises:
        StageError: the file does not exist.
        DataError: it is damaged, or a column is of another type.
    """
    return read_parquet(_existing(path), features=trl_features(decode=False), columns=columns, kept_in=kept_in)


def iter_trl_parquet(path: str | Path) -> Iterator[Row]:
    """The rows of `read_trl_parquet`, some in memory at a time; its errors are raised where they are met."""
    for table in parquet_tables(_existing(path), schema=trl_features(decode=False).arrow_schema):
        yield from table.to_pylist()


def _existing(path: str | Path) -> Path:
    if not Path(path).is_file():
        raise StageError(f"no preference pairs at {path}: expected a Parquet file; run `mpo pairs` first")
    return Path(path)


def problems_in_rows(rows: Iterable[Mapping[str, Any]], limit: int) -> list[Problem]:
    """The first `limit` problems of `prompts_in_rows`, images decoded.

    Example:
        >>> from rewards.types import Completion
        >>> pair = PreferencePair(Problem("p", "2 + 2?"), Completion("4"), Completion("5"), "correctness")
        >>> [problem.question for problem in problems_in_rows([to_trl_row(pair)] * 3, limit=2)]
        ['2 + 2?']
    """
    from mpo.multimodal.images import load_image

    some = islice(prompts_in_rows(rows), limit)
    return [replace(one, images=tuple(load_image(image) for image in one.images)) for one in some]


def prompts_in_rows(rows: Iterable[Mapping[str, Any]]) -> Iterator[Problem]:
    """The different problems of TRL rows, in order, as they were asked: template and all, images as the row has them.

    Rows whose prompt is not one user turn (and a system turn before it) are passed over: a `Problem` cannot hold them.
    """
    found: set[tuple[str, str]] = set()
    for index, row in enumerate(rows):
        if not row.get("prompt"):  # an implicit one
            continue
        prompt, turns = _system_of(row["prompt"])
        given = row.get("images") or ()
        try:
            question, placed = _question_of(turns, len(given))
        except DataError:
            continue
        identity = (row.get("problem_id") or f"row {index}", question)
        if identity not in found:
            found.add(identity)
            yield Problem(identity[0], question, tuple(given), prompt=prompt, placed=placed)


def trl_features(*, decode: bool = True) -> datasets.Features:
    """The columns of a TRL row with their types; `images` is a list of `datasets.Image`, decoded or not."""
    from datasets import Features, Image, List, Value

    message = {"role": Value("string"), "content": List({"type": Value("string"), "text": Value("string")})}
    return Features(
        {
            "images": List(Image(decode=decode)),
            "prompt": List(message),
            "chosen": List(message),
            "rejected": List(message),
            "chosen_truncated": Value("bool"),
            "rejected_truncated": Value("bool"),
            "rejected_span": List(Value("int32")),
            "problem_id": Value("string"),
            "source": Value("string"),
            "data_augment": Value("bool"),
        }
    )


def _assistant(text: str) -> list[Row]:
    return [{"role": "assistant", "content": [{"type": "text", "text": text}]}]


def _system_of(messages: Any) -> tuple[Prompt, Any]:
    """The prompt of a conversation that begins with a system turn, and the turns after it."""
    if not isinstance(messages, list) or not messages or _of(messages[0], "role") != "system":
        return Prompt(), messages
    content = _of(messages[0], "content")
    entries = content if isinstance(content, list) else []
    text = "".join(_of(entry, "text") or "" for entry in entries if _of(entry, "type") == "text")
    return Prompt(system=text), messages[1:]


def _only_turn(messages: Any, role: str) -> list[Any]:
    """The content of the one message that there is."""
    roles = [_of(message, "role") for message in messages] if isinstance(messages, list) else None
    if roles != [role]:
        raise DataError(f"turns {roles!r:.80}; expected one of the {role}")
    content = _of(messages[0], "content")
    return content if isinstance(content, list) else []


def _question_of(turns: Any, num_images: int) -> tuple[str, bool]:
    """The text of the user's turn, and whether its images are inside it rather than before it."""
    blocks = _only_turn(turns, "user")
    kinds = [_of(block, "type") for block in blocks]
    if not {*kinds} <= {"image", "text"} or "text" not in kinds or ("text", "text") in pairwise(kinds):
        raise DataError(f"content {kinds!r:.80}; expected images, and a text before, between or after them")
    if kinds.count("image") != num_images:
        raise DataError(f"{kinds.count('image')} image placeholders for {num_images} images; expected as many")
    if kinds == ["image"] * num_images + ["text"]:
        return usable_text(blocks[-1]["text"] or "", "a turn"), False
    texts = [block["text"] or "" for block in blocks if block["type"] == "text"]
    if any(PLACEHOLDER in text for text in texts):
        raise DataError(f"a text between images holds {PLACEHOLDER}")
    joined = "".join(PLACEHOLDER if block["type"] == "image" else block["text"] or "" for block in blocks)
    return usable_text(joined, "a turn"), num_images > 0


def _of(row: Any, key: str) -> Any:
    return row.get(key) if isinstance(row, Mapping) else None


def _rows_with_bytes(pairs: Iterable[PreferencePair]) -> Iterator[Row]:
    from mpo.multimodal.images import load_image, png_bytes

    images: tuple[ImageLike, ...] | None = None
    encoded: list[Row] = []
    for pair in pairs:
        if pair.problem.images is not images:
            images = pair.problem.images
            encoded = [{"bytes": png_bytes(load_image(image)), "path": None} for image in images]
        yield to_trl_row(pair) | {"images": encoded}
