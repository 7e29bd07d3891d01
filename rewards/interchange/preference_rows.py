"""Preference rows as other projects publish them → pairs.

Each form is a row of `PREFERENCE_ROWS`, whose function says where it comes from. What they share: images are
embedded bytes, base64 or paths inside the file's folder; `<image>` in the question marks where one stands, in the order
of the images, and without any they precede it; one question and two responses, since a pair of ours holds no earlier
turns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mpo.multimodal.errors import DataError, ImageError
from mpo.multimodal.images import image_sha256, load_image
from mpo.multimodal.messages import PLACEHOLDER
from rewards.interchange.embedded import images_of
from rewards.interchange.json_rows import usable_text
from rewards.interchange.placeholders import placed_question
from rewards.interchange.tables import Row, folder_of, read_table
from rewards.interchange.turns import Asked, asked_by, text_of, turns_of
from rewards.types import Completion, PreferencePair, Problem, Prompt

OnReject = Callable[[str, str, str], None]  # (row id, kind of fault, detail)
OTHER_MEDIA = ("video", "videos", "audio", "audios", "objects")


class Said(NamedTuple):
    """What a row holds, whatever its form."""

    asked: Asked
    chosen: str
    rejected: str
    images: Any
    answer: Any = None


def read_preference_rows(
    form: str, source: str | Path, *, on_reject: OnReject, image_root: Path | None = None, limit: int = 0
) -> Iterator[PreferencePair]:
    """The pairs of a file, a folder or a dataset of the Hub, images decoded.

    Args:
        form: a key of `PREFERENCE_ROWS`.
        source: as `rewards.interchange.tables.read_table`.
        on_reject: called with (row id, kind, detail) for every row that gives no pair: `in = out + rejected`.
        image_root: folder that paths start at; the source's own if not given.
        limit: rows of each file to look at; 0 takes all.

    Raises:
        StageError, ConfigError, DataError: as `read_table`.
    """
    read = PREFERENCE_ROWS[form]
    root = image_root if image_root is not None else folder_of(source)
    for where, row in read_table(source, limit=limit):
        try:
            if isinstance(row, DataError):
                raise row
            if other := next((name for name in OTHER_MEDIA if row.get(name)), None):
                raise DataError(f"the row has {other}; expected images", reason="other media than images")
            yield _pair(read(row), form, root)
        except ImageError as error:
            on_reject(where, "unreadable image", str(error))
        except DataError as error:
            on_reject(where, error.reason, str(error))


def rlaif_v(row: Row) -> Said:
    """`image`, `question`, `chosen`, `rejected`, `idx`, `image_path` (embedded; the path is not opened).

    https://huggingface.co/datasets/openbmb/RLAIF-V-Dataset, "Data fields".
    """
    return Said(Asked("", _given(row, "question")), _given(row, "chosen"), _given(row, "rejected"), row.get("image"))


def llava(row: Row) -> Said:
    """LLaVA's JSON: `image`, and `conversations` or `prompt` with `<image>` in it; `chosen` and `rejected`.

    Or `output_1`, `output_2` and `preference` (1 or 2), as LLaVA-RLHF publishes its human preferences
    (https://huggingface.co/datasets/zhiqings/LLaVA-Human-Preference-10K). Fine-tuning projects around Qwen-VL take the
    form with `prompt` (https://github.com/2U1/Qwen-VL-Series-Finetune, "Dataset for DPO").
    """
    if "conversations" in row:
        turns = turns_of(row["conversations"], "conversations")
        asked = asked_by(turns[:-1] if turns[-1].role == "assistant" and len(turns) > 1 else turns, "conversations")
    else:
        asked = Asked("", _given(row, "prompt", "question"))
    images = row.get("images") if row.get("images") is not None else row.get("image")
    if "output_1" not in row:
        return Said(asked, text_of(row.get("chosen"), "chosen"), text_of(row.get("rejected"), "rejected"), images)
    preferred = row.get("preference")
    if preferred not in (1, 2):
        raise DataError(f"preference is {preferred!r:.40}; expected 1 or 2", reason="no preference")
    outputs = [text_of(row.get(name), name) for name in ("output_1", "output_2")]
    return Said(asked, outputs[preferred - 1], outputs[2 - preferred], images)


def swift(row: Row) -> Said:
    """ms-swift: `messages` that end with the chosen response, `rejected_response` or `rejected_messages`, `images`.

    https://swift.readthedocs.io, "Custom dataset", RLHF; its older rows have `query`, `response`, `system`, `history`.
    """
    if "messages" in row:
        turns = turns_of(row["messages"], "messages")
        if turns[-1].role != "assistant":
            raise DataError("messages do not end with the assistant's response", reason="no chosen response")
        asked, chosen = asked_by(turns[:-1] or turns, "messages"), turns[-1].text
    else:
        if row.get("history"):
            raise DataError("the row has a history; expected one question", reason="more than one turn")
        asked, chosen = Asked(str(row.get("system") or ""), _given(row, "query")), _given(row, "response")
    rejected = row.get("rejected_response")
    if rejected is None:
        rejected = row.get("rejected_messages")
    if row.get("rejected_images"):
        raise DataError("the row has other images for its rejected response", reason="rejected images")
    return Said(asked, chosen, text_of(rejected, "rejected_response"), row.get("images"))


def sharegpt(row: Row) -> Said:
    """LLaMA-Factory: `conversations` or `messages`, `chosen` and `rejected` (a turn, or a text), `images`.

    https://github.com/hiyouga/LLaMA-Factory, data/README.md, "Preference Dataset"; its alpaca rows have `instruction`
    and `input` instead.
    """
    if "instruction" in row:
        text = "\n".join(filter(None, (_given(row, "instruction"), str(row.get("input") or ""))))
        asked = Asked(str(row.get("system") or ""), text)
    else:
        name = "conversations" if "conversations" in row else "messages"
        asked = asked_by(turns_of(row.get(name), name), name)
        asked = asked._replace(system=asked.system or str(row.get("system") or ""))
    return Said(
        asked, text_of(row.get("chosen"), "chosen"), text_of(row.get("rejected"), "rejected"), row.get("images")
    )


def chat(row: Row) -> Said:
    """Chat messages, as Open-R1 and TRL publish pairs: `prompt`, `chosen`, `rejected`, of which each is a conversation.

    https://huggingface.co/docs/trl/dataset_formats, "Preference": without `prompt`, chosen and rejected begin with it;
    a `prompt` may be a text too.
    """
    prompt, chosen = row.get("prompt"), row.get("chosen")
    if isinstance(chosen, list) and (prompt is None or isinstance(prompt, str)) and len(chosen) > 1:
        asked = asked_by(turns_of(chosen, "chosen")[:-1], "chosen")
        rejected = turns_of(row.get("rejected"), "rejected")
        if asked_by(rejected[:-1] or rejected, "rejected") != asked:
            raise DataError("chosen and rejected answer different questions", reason="different questions")
    elif isinstance(prompt, str):
        asked = Asked("", prompt)
    else:
        asked = asked_by(turns_of(prompt, "prompt"), "prompt")
    images = row.get("images") if row.get("images") is not None else row.get("image")
    return Said(asked, text_of(chosen, "chosen"), text_of(row.get("rejected"), "rejected"), images, row.get("answer"))


PREFERENCE_ROWS: dict[str, Callable[[Row], Said]] = {
    "rlaif_v": rlaif_v,
    "llava": llava,
    "swift": swift,
    "sharegpt": sharegpt,
    "chat": chat,
}


def _pair(said: Said, form: str, root: Path | None) -> PreferencePair:
    images = tuple(load_image(image) for image in images_of(said.images, root=root))
    if any(PLACEHOLDER in text for text in (said.chosen, said.rejected)):
        raise DataError(f"a response holds {PLACEHOLDER}", reason="image placeholder in a response")
    question, placed = placed_question(usable_text(said.asked.question, "question"), len(images))
    identity = "\0".join([question, said.asked.system, *map(image_sha256, images)])
    id = f"{form}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    prompt = Prompt(system=said.asked.system)
    problem = Problem(id, usable_text(question, "question"), images, said.answer, prompt=prompt, placed=placed)
    chosen, rejected = (usable_text(text, "a response") for text in (said.chosen, said.rejected))
    return PreferencePair(problem, Completion(chosen), Completion(rejected), form)


def _given(row: Mapping[str, Any], *names: str) -> str:
    """The text of the first of these columns that a row has."""
    found = next((row[name] for name in names if row.get(name) is not None), None)
    if not isinstance(found, str):
        raise DataError(f"{' or '.join(names)} is {found!r:.40}; expected a text", reason=f"no {names[0]}")
    return found
