"""A SentencePiece BPE model → a fast tokenizer that gives the same ids; checked against SentencePiece itself.

InternLM2's tokenizer is such a model with byte fallback. Its remote class splits a text at the added tokens and hands
each piece of text to SentencePiece; `equal_ids` does the same and compares.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from mpo.multimodal.errors import ConfigError

SPACE = "▁"
BPE = 2  # TrainerSpec.ModelType
NORMAL, UNKNOWN, USER_DEFINED, UNUSED = 1, 2, 4, 5  # ModelProto.SentencePiece.Type

PROBES = (
    "The quick brown fox jumps over the lazy dog; it isn't 3.14159, it's 2,718!",
    "步骤一：先数一数图里的苹果，再减去两个。答案是７。",
    "الخطوة الأولى: نحسب مساحة المثلث ثم نقسمها على اثنين.",
    "Шаг 1. Пусть x² + y² = 25, тогда…",
    "ステップ１：図の中の点を数える。 한국어 문장도 있습니다.",
    "चरण एक: पहले कोण निकालें। ขั้นตอนที่หนึ่ง",
    "👩‍👩‍👧‍👦🏳️‍🌈 🙂🇩🇪 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 ﬁ e\u0301 \u200b|\u00a0|\ufeff",
    "def area(r):\n\treturn math.pi * r ** 2  # πr²\n\n\nif __name__ == '__main__':\r\n    print(area(3))",
    "\\frac{a+b}{2} \\le \\sqrt{\\tfrac{a^2+b^2}{2}} \\quad\\Rightarrow\\quad \\boxed{42}",
    "### Question:\nHow many?\n\n### Solution Process:\nStep 1: 1 + 1 = 2",
    " leading, trailing ",
    *(" " * count + "x" + " " * count for count in range(1, 34)),
    *("\n" * count + "+" for count in range(1, 9)),
    "aaaaaaaaaaaaaaaaaaaaaaa ababababab 1111111111 -------- ======== ........",
    "▁ is not a space, <s> </s> <unk> <0x0A> are text here",
    "<|im_start|>user\n### Question:\n<img><IMG_CONTEXT></img>\nq<|im_end|>\n<|im_start|>assistant\n+<|im_end|>\n",
    "a<|im_end|> b<|im_end|>\n <img> </img>  +",
)


def fast_tokenizer(file: Path, added: Mapping[int, AddedToken]) -> Tokenizer:
    """The fast tokenizer of a SentencePiece BPE model, with BOS in front as InternLM2's class puts it.

    Args:
        file: `tokenizer.model`.
        added: added tokens by id; an id of the model's own replaces that piece, which is then no text any more.

    Raises:
        ConfigError: not such a model, or one of its options has no counterpart in a fast tokenizer.
    """
    proto = _parsed(file)
    _refuse_unsupported(file, proto)
    pieces = [added[i].content if i in added else piece.piece for i, piece in enumerate(proto.pieces)]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    if len(vocabulary) != len(pieces):
        raise ConfigError(f"{file}: an added token has the same name as another piece; expected each name once")
    mergeable = {p.piece: p.score for i, p in enumerate(proto.pieces) if p.type == NORMAL and i not in added}
    unknown = next(piece.piece for piece in proto.pieces if piece.type == UNKNOWN)
    tokenizer = Tokenizer(
        models.BPE(vocabulary, _merges(mergeable), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    prefix = proto.normalizer_spec.add_dummy_prefix
    spaces = [normalizers.Replace(" ", SPACE)]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), *spaces] if prefix else spaces)
    to_text = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*to_text, decoders.Strip(" ", 1, 0)] if prefix else to_text)
    symbols = {i: AddedToken(p.piece, normalized=False) for i, p in enumerate(proto.pieces) if p.type == USER_DEFINED}
    add_tokens(tokenizer, {**symbols, **added})
    bos = pieces[proto.trainer_spec.bos_id]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, proto.trainer_spec.bos_id)]
    )
    return tokenizer


def add_tokens(tokenizer: Tokenizer, added: Mapping[int, AddedToken]) -> None:
    """Add tokens in the order of their ids and see that each got its own.

    Raises:
        ConfigError: the ids leave a gap after the vocabulary, or a name has another id there.
    """
    tokenizer.add_tokens([added[index] for index in sorted(added)])
    for index, token in added.items():
        if tokenizer.token_to_id(token.content) != index:
            raise ConfigError(
                f"added token {token.content!r} should have id {index}, it would get "
                f"{tokenizer.token_to_id(token.content)}; the tokenizer files and the vocabulary do not belong together"
            )


def equal_ids(tokenizer: Tokenizer, file: Path, added: Mapping[int, AddedToken], texts: Sequence[str]) -> None:
    """Compare with SentencePiece, text by text.

    Raises:
        ConfigError: a text whose ids differ.
    """
    slow = _module("sentencepiece").SentencePieceProcessor(model_file=str(file))
    ids = {token.content: index for index, token in added.items()}
    longest_first = sorted(map(re.escape, ids), key=len, reverse=True)
    at_added = re.compile("(" + "|".join(longest_first) + ")") if ids else re.compile("(?!)")
    for text in texts:
        expected = [slow.bos_id()]
        for part in at_added.split(text):
            expected += [ids[part]] if part in ids else slow.encode(part)
        came = tokenizer.encode(text).ids
        if came != expected:
            raise ConfigError(
                f"the fast tokenizer made of {file} differs from SentencePiece on {text!r}: expected ids {expected}, "
                f"got {came}; this model cannot be converted"
            )


def _merges(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Every way to build a piece from two others, best piece first, as SentencePiece's BPE picks them."""
    merges = []
    for piece in sorted(scores, key=lambda piece: -scores[piece]):
        pairs = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        merges += [(left, right) for left, right in pairs if left in scores and right in scores]
    return merges


def _parsed(file: Path) -> Any:
    from google.protobuf.message import DecodeError

    proto = _module("sentencepiece.sentencepiece_model_pb2").ModelProto()
    try:
        proto.ParseFromString(file.read_bytes())
    except DecodeError as error:
        raise ConfigError(f"{file} is not a SentencePiece model: {error}") from error
    if not any(piece.type == UNKNOWN for piece in proto.pieces):
        raise ConfigError(f"{file} is not a SentencePiece model: it has no piece for unknown characters")
    return proto


def _refuse_unsupported(file: Path, proto: Any) -> None:
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    wrong = {
        "model_type is not BPE": trainer.model_type != BPE,
        "byte_fallback is off": not trainer.byte_fallback,
        "treat_whitespace_as_suffix is on": trainer.treat_whitespace_as_suffix,
        f"it normalises characters ({normalizer.name})": bool(normalizer.precompiled_charsmap),
        "remove_extra_whitespaces is on": normalizer.remove_extra_whitespaces,
        "escape_whitespaces is off": not normalizer.escape_whitespaces,
        "it has unused pieces": any(piece.type == UNUSED for piece in proto.pieces),
        "it has no BOS": not 0 <= trainer.bos_id < len(proto.pieces),
    }
    if found := [reason for reason, applies in wrong.items() if applies]:
        raise ConfigError(f"{file} cannot become a fast tokenizer with equal ids: {'; '.join(found)}")


def _module(name: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"a SentencePiece tokenizer needs the packages sentencepiece and protobuf ({error}); "
            "install them with: pip install -e '.[convert]'"
        ) from error
