"""The tokenizer files of an InternVL chat checkpoint → a native fast tokenizer with the same ids; no remote code.

Qwen2 checkpoints bring `vocab.json` and `merges.txt` (or a ready `tokenizer.json`), InternLM2 ones `tokenizer.model`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

from mpo.multimodal.errors import ConfigError
from rewards.conversion.sentencepiece_bpe import PROBES, add_tokens, equal_ids, fast_tokenizer
from rewards.conversion.shards import read_json

IMAGE, IMAGE_START, IMAGE_END = "<IMG_CONTEXT>", "<img>", "</img>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
REQUIRED = (IMAGE, IMAGE_START, IMAGE_END, TURN_START, TURN_END)
NAMED = ("bos_token", "eos_token", "pad_token", "unk_token")
SETTINGS, SENTENCEPIECE, READY, VOCABULARY, MERGES = (
    *("tokenizer_config.json", "tokenizer.model", "tokenizer.json", "vocab.json", "merges.txt"),
)


def load_tokenizer(folder: Path, *, vocab_size: int) -> Any:
    """The native tokenizer of a checkpoint folder.

    Args:
        folder: with the tokenizer's files.
        vocab_size: rows of the embedding; no token may lie beyond.

    Raises:
        ConfigError: files missing or inconsistent, a required token missing, or ids that would differ.
    """
    settings = read_json(folder / SETTINGS)
    added = _added_tokens(folder, settings)
    backend = _backend(folder, added)
    for token in REQUIRED:
        if backend.token_to_id(token) is None:
            raise ConfigError(f"{folder / SETTINGS}: the tokenizer has no token {token!r}; expected InternVL's tokens")
    if (size := backend.get_vocab_size(with_added_tokens=True)) > vocab_size:
        raise ConfigError(f"{folder}: the tokenizer has {size} tokens, the embedding {vocab_size} rows")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **{name: _content(settings[name]) for name in NAMED if settings.get(name)},
        clean_up_tokenization_spaces=False,
        extra_special_tokens={
            "start_image_token": IMAGE_START,
            "end_image_token": IMAGE_END,
            "context_image_token": IMAGE,
            # The native processor asks for one. As in transformers' own InternVL checkpoints its id lies one beyond the
            # embedding: the processor replaces it, `mpo.multimodal.messages` breaks it up, and no text can reach it.
            "video_token": "<video>",
        },
    )


def _backend(folder: Path, added: Mapping[int, AddedToken]) -> Tokenizer:
    if (folder / SENTENCEPIECE).exists():  # what the checkpoint's own class reads, whatever else lies beside it
        backend = fast_tokenizer(folder / SENTENCEPIECE, added)
        equal_ids(backend, folder / SENTENCEPIECE, added, PROBES)
        return backend
    backend = _ready(folder / READY) if (folder / READY).exists() else _byte_level(folder)
    add_tokens(backend, added)
    return backend


def _ready(file: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library has no class of its own for a file that it cannot read
        raise ConfigError(f"{file} is not a tokenizer: {error}") from error


def _byte_level(folder: Path) -> Tokenizer:
    if not (folder / MERGES).exists():
        raise ConfigError(f"{folder}: expected {SENTENCEPIECE}, {READY}, or {VOCABULARY} and {MERGES}; fetch them")
    vocabulary = read_json(folder / VOCABULARY)
    try:
        lines = (folder / MERGES).read_text(encoding="utf-8").splitlines()
        merges: Any = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
        return Qwen2Tokenizer(vocab=vocabulary, merges=merges).backend_tokenizer
    except Exception as error:  # as above; e.g. a merge of three tokens, or of one that the vocabulary lacks
        raise ConfigError(f"{folder}: {VOCABULARY} and {MERGES} make no tokenizer: {error}") from error


def _added_tokens(folder: Path, settings: Mapping[str, Any]) -> dict[int, AddedToken]:
    """Added tokens by id: those of `tokenizer_config.json`, and of `added_tokens.json` where it has more."""
    added = {}
    try:
        for index, entry in settings.get("added_tokens_decoder", {}).items():
            flags = {key: bool(entry.get(key, False)) for key in ("lstrip", "rstrip", "single_word", "special")}
            added[int(index)] = AddedToken(_content(entry), normalized=False, **flags)
        if (folder / "added_tokens.json").exists():
            for content, index in read_json(folder / "added_tokens.json").items():
                added.setdefault(int(index), AddedToken(content, normalized=False, special=True))
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"{folder}: expected added tokens by id, {error}") from error
    return added


def _content(token: Any) -> str:
    content = token.get("content") if isinstance(token, Mapping) else token
    if not isinstance(content, str) or not content:
        raise ConfigError(f"{SETTINGS}: expected the text of a token, got {token!r}")
    return content
