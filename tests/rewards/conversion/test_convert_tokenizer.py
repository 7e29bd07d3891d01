"""Tokenizers of converted checkpoints: equal ids, fixed ids of added tokens, faults by name."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from mpo.multimodal.errors import ConfigError
from mpo.multimodal.loading import load_processor
from mpo.multimodal.messages import control_tokens_in
from rewards.conversion.convert import convert_checkpoint, open_checkpoint
from rewards.conversion.sentencepiece_bpe import PROBES, equal_ids, fast_tokenizer
from rewards.conversion.tokenizer import load_tokenizer
from tests.rewards.conversion.chat_checkpoints import (
    CORPUS,
    IMAGE_TOKENS,
    INTERNLM2,
    QWEN,
    train_sentencepiece,
    write_chat_checkpoint,
    write_internlm2_tokenizer,
    write_qwen_tokenizer,
)

ROOT = Path(__file__).resolve().parents[3]
LANGUAGES = [
    *CORPUS,
    *PROBES,
    "Ça coûte 12,50 € — naïve façade, Übergröße, łódź, ñandú.",
    "수학 문제를 단계별로 풀어 봅시다. 三角形の内角の和は１８０度。",
    "עברית: שלב ראשון. فارسی: گام نخست. اردو: پہلا قدم",
    "🧮➕➖✖️➗ 🤷🏽‍♀️ ∑∏∫√∞≈≠≤≥ αβγδ ①②③ ½ ⅓",
    "int main() { return 0; }\n\t\tfor (int i = 0; i < 10; ++i)\n\r\n   a[i] *= 2;\n\n\n",
    "   \t  mixed \u3000 spaces \u2003 and\n \n  \nlines   ",
    "x" * 100 + " " * 100 + "\n" * 20,
    "",
    " ",
    "\n",
    "<|im_start|>",
    "<|im_end|><|im_end|>\n\n<|im_start|>user\n",
    "text<img><IMG_CONTEXT><IMG_CONTEXT></img>\nmore <box>[1, 2]</box> <ref> r </ref>",
    "<|im_start|> user <|im_end|> <|plugin|>x<|action_start|>",
    "almost <|im_end| > <IMG_CONTEXT <img >",
    "<s>twice<s></s>",
]


def slow_ids(folder: Path, text: str) -> list[int]:
    """SentencePiece between the added tokens, BOS in front: what InternLM2's own class gives."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    decoder = json.loads((folder / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    added = {entry["content"]: int(index) for index, entry in decoder.items()}
    ids = [model.bos_id()]
    for part in re.split("(" + "|".join(map(re.escape, added)) + ")", text):
        ids += [added[part]] if part in added else model.encode(part)
    return ids


@pytest.fixture(scope="module")
def internlm2(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("internlm2")
    source = write_chat_checkpoint(folder / "source", INTERNLM2)
    convert_checkpoint(open_checkpoint(source), folder / "native")
    return source, folder / "native"


@pytest.mark.parametrize("text", LANGUAGES, ids=range(len(LANGUAGES)))
def test_sentencepiece_ids_are_equal_after_saving_and_loading(internlm2: tuple[Path, Path], text: str) -> None:
    tokenizer = load_processor(internlm2[1]).tokenizer
    assert tokenizer(text)["input_ids"] == slow_ids(internlm2[0], text)
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == slow_ids(internlm2[0], text)[1:]


def test_the_corpus_meets_merges_bytes_and_added_tokens(internlm2: tuple[Path, Path]) -> None:
    """The comparison above would say little if every text fell into single bytes."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(internlm2[0] / "tokenizer.model"))
    used = {index for text in LANGUAGES for index in slow_ids(internlm2[0], text)}
    assert sum(model.is_byte(index) for index in used if index < len(model)) > 60
    assert sum(len(model.id_to_piece(index)) in (2, 3, 4) for index in used if index < len(model)) > 40
    assert sum(index >= len(model) for index in used) >= 7


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tokenizer, str]:
    """A model of 3,000 pieces, trained on this project's documents and code, its fast tokenizer, and that text."""
    folder = tmp_path_factory.mktemp("large")
    files = [
        file for kind in ("docs/**/*.md", "rewards/**/*.py", "recipes/**/*.py") for file in sorted(ROOT.glob(kind))
    ]
    texts = [file.read_text(encoding="utf-8") for file in files]
    model = train_sentencepiece(folder, texts=[*CORPUS, *texts], pieces=3000)
    return model, fast_tokenizer(model, {}), "\n".join(texts)


def test_a_large_model_on_real_text(large: tuple[Path, Tokenizer, str]) -> None:
    """Windows of 150 characters that start anywhere in documents and code, indentation included."""
    file, tokenizer, text = large
    windows = [text[start : start + 150] for start in range(0, min(len(text), 300_000), 211)]
    assert len(windows) > 500
    equal_ids(tokenizer, file, {}, windows)


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.sampled_from("aabeint  \n\t=-_.()12+é数ا🙂"), max_size=60))
def test_a_large_model_on_any_text(large: tuple[Path, Tokenizer, str], text: str) -> None:
    equal_ids(large[1], large[0], {}, [text])


@pytest.mark.parametrize("text", [text for text in LANGUAGES if "\u2581" not in text and "<" not in text])
def test_text_comes_back(internlm2: tuple[Path, Path], text: str) -> None:
    tokenizer = load_processor(internlm2[1]).tokenizer
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_ids_of_internlm2(internlm2: tuple[Path, Path]) -> None:
    """Added tokens keep their ids; the piece that one replaced is plain text, and no door to a control token."""
    source, native = internlm2
    processor = load_processor(native)
    tokenizer = processor.tokenizer
    decoder = json.loads((source / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    for index, entry in decoder.items():
        assert tokenizer.convert_tokens_to_ids(entry["content"]) == int(index)
    assert set(IMAGE_TOKENS) | {"<|im_start|>", "<|im_end|>"} <= set(control_tokens_in(processor, str(decoder)))
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end not in tokenizer("[UNUSED_TOKEN_145]")["input_ids"]
    generation = json.loads((native / "generation_config.json").read_text())
    assert generation["eos_token_id"] == end


@pytest.mark.parametrize("dummy_prefix", [False, True])
def test_dummy_prefix(tmp_path: Path, dummy_prefix: bool) -> None:
    file = train_sentencepiece(tmp_path, add_dummy_prefix=dummy_prefix)
    added = {1: AddedToken("<s>", special=True, normalized=False)}
    tokenizer = fast_tokenizer(file, added)
    equal_ids(tokenizer, file, added, [text for text in LANGUAGES if "[UNUSED" not in text])
    assert tokenizer.decode(tokenizer.encode("one two").ids) == "one two"


def test_a_difference_is_found(tmp_path: Path) -> None:
    """The check compares: a tokenizer of another model does not pass."""
    file = train_sentencepiece(tmp_path)
    (tmp_path / "other").mkdir()
    other = fast_tokenizer(train_sentencepiece(tmp_path / "other", pieces=400), {})
    with pytest.raises(ConfigError, match="differs from SentencePiece"):
        equal_ids(other, file, {}, PROBES)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"model_type": "unigram", "pieces": 380}, "model_type is not BPE"),
        ({"byte_fallback": False}, "byte_fallback is off"),
        ({"normalization_rule_name": "nmt_nfkc"}, "normalises characters"),
        ({"remove_extra_whitespaces": True}, "remove_extra_whitespaces is on"),
        ({"treat_whitespace_as_suffix": True}, "treat_whitespace_as_suffix is on"),
    ],
)
def test_options_without_counterpart(tmp_path: Path, options: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        fast_tokenizer(train_sentencepiece(tmp_path, **options), {})


@pytest.mark.parametrize("content", [b"", b"\xff\xff not a model", b"\n\x03abc"])
def test_a_file_that_is_no_model(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(ConfigError, match="not a SentencePiece model"):
        fast_tokenizer(tmp_path / "tokenizer.model", {})


# --- Qwen2 ---------------------------------------------------------------------------------------------------------


def test_qwen_files_and_a_ready_tokenizer_agree(tmp_path: Path) -> None:
    """`vocab.json` and `merges.txt`, and the `tokenizer.json` made of them, give the same ids, saved and loaded."""
    source = write_chat_checkpoint(tmp_path / "source", QWEN)
    convert_checkpoint(open_checkpoint(source), tmp_path / "native")
    first = load_processor(tmp_path / "native").tokenizer
    first.backend_tokenizer.save(str(source / "tokenizer.json"))
    for file in ("vocab.json", "merges.txt"):
        (source / file).unlink()
    ready = load_tokenizer(source, vocab_size=len(first))
    fresh = Tokenizer.from_file(str(tmp_path / "native/tokenizer.json"))
    for text in LANGUAGES:
        assert first(text)["input_ids"] == ready(text)["input_ids"] == fresh.encode(text).ids
        if "<" not in text:
            assert first.decode(first(text)["input_ids"]) == text.replace("e\u0301", "é")  # Qwen2 normalises to NFC
    assert first("+", add_special_tokens=False)["input_ids"] == [first.convert_tokens_to_ids("+")]


def test_qwen_added_tokens_keep_ids_and_kind(tmp_path: Path) -> None:
    source = write_chat_checkpoint(tmp_path, QWEN)
    tokenizer = open_checkpoint(source).processor.tokenizer
    decoder = json.loads((source / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    for index, entry in decoder.items():
        assert tokenizer.convert_tokens_to_ids(entry["content"]) == int(index)
        assert tokenizer.added_tokens_decoder[int(index)].special == entry["special"]
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token == "<|endoftext|>"


def settings_of(folder: Path, change: Any) -> None:
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    change(settings)
    file.write_text(json.dumps(settings))


def test_ids_from_added_tokens_json(tmp_path: Path) -> None:
    size = write_qwen_tokenizer(tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<extra>": size}))
    assert load_tokenizer(tmp_path, vocab_size=size + 1).convert_tokens_to_ids("<extra>") == size
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<extra>": size + 3}))
    with pytest.raises(ConfigError, match=f"should have id {size + 3}, it would get {size}"):
        load_tokenizer(tmp_path, vocab_size=size + 4)


def test_faults_of_tokenizer_files(tmp_path: Path) -> None:
    size = write_qwen_tokenizer(tmp_path)
    with pytest.raises(ConfigError, match=f"{size} tokens, the embedding {size - 1} rows"):
        load_tokenizer(tmp_path, vocab_size=size - 1)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="is not a tokenizer"):
        load_tokenizer(tmp_path, vocab_size=size)
    (tmp_path / "tokenizer.json").unlink()
    settings_of(tmp_path, lambda settings: settings["added_tokens_decoder"].popitem())
    assert load_tokenizer(tmp_path, vocab_size=size)
    decoder = json.loads((tmp_path / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    image = next(index for index, entry in decoder.items() if entry["content"] == "<IMG_CONTEXT>")
    settings_of(tmp_path, lambda settings: settings["added_tokens_decoder"][image].update(content="<other>"))
    with pytest.raises(ConfigError, match="no token '<IMG_CONTEXT>'"):
        load_tokenizer(tmp_path, vocab_size=size)
    settings_of(tmp_path, lambda settings: settings["added_tokens_decoder"][image].update(content=3))
    with pytest.raises(ConfigError, match="expected the text of a token, got"):
        load_tokenizer(tmp_path, vocab_size=size)
    (tmp_path / "merges.txt").write_text("a b c\n")
    settings_of(tmp_path, lambda settings: settings["added_tokens_decoder"][image].update(content="<IMG_CONTEXT>"))
    with pytest.raises(ConfigError, match=r"merges\.txt make no tokenizer"):
        load_tokenizer(tmp_path, vocab_size=size)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(ConfigError, match=r"expected tokenizer\.model, tokenizer\.json, or"):
        load_tokenizer(tmp_path, vocab_size=size)


@pytest.mark.parametrize("value", [3, None, [], {}, "x", {"x": {}}, {"1": None}, {"-1": {"content": "a"}}])
@pytest.mark.parametrize("key", ["added_tokens_decoder", "eos_token"])
def test_wrong_types_in_the_settings(tmp_path: Path, key: str, value: Any) -> None:
    """Refused, or of no effect; no other error."""
    size = write_qwen_tokenizer(tmp_path)
    settings_of(tmp_path, lambda settings: settings.update({key: value}))
    with contextlib.suppress(ConfigError):
        assert len(load_tokenizer(tmp_path, vocab_size=size)) <= size + 2


def test_sentencepiece_piece_of_the_same_name(tmp_path: Path) -> None:
    write_internlm2_tokenizer(tmp_path)
    added = {7: AddedToken("<s>", special=True, normalized=False)}
    with pytest.raises(ConfigError, match="the same name as another piece"):
        fast_tokenizer(tmp_path / "tokenizer.model", added)
