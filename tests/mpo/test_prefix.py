"""Rows as readable matrices; log-probs and logits against a plain forward pass of the same model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import CLIPImageProcessor, LlavaProcessor

from mpo.multimodal import scoring
from mpo.multimodal.errors import DataError
from mpo.multimodal.loading import load_model
from mpo.multimodal.logps import enable_chunked_logps, sum_logps
from mpo.multimodal.messages import prompt_text, response_ids, user_message
from mpo.multimodal.prefix import IGNORED, EncodedPrompt, encode_prompt, encode_prompts, stack_rows
from mpo.multimodal.scoring import logits_and_text_logps, logits_at, response_logps
from recipes.worlds.digits.policy import build_processor
from recipes.worlds.digits.world import scenes, to_problem

X = -100


def prompt(ids: Sequence[int], features: dict[str, list[int]] | None = None, **images: Tensor) -> EncodedPrompt:
    per_token = {key: torch.tensor(value) for key, value in (features or {}).items()}
    return EncodedPrompt(torch.tensor(ids), per_token, images)


def matrices(batch: dict[str, Tensor], *names: str) -> list[list[list[int]]]:
    return [batch[name].tolist() for name in names]


# ---- layout, as matrices ----


def test_right_padding() -> None:
    batch = stack_rows([prompt([1, 2, 3]), prompt([4])], [[5], [6, 7, 8, 9]], pad_token_id=0)
    ids, mask, labels = matrices(batch, "input_ids", "attention_mask", "labels")
    assert ids == [[1, 2, 3, 5, 0], [4, 6, 7, 8, 9]]
    assert mask == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert labels == [[X, X, X, 5, X], [X, 6, 7, 8, 9]]


def test_left_padding() -> None:
    batch = stack_rows([prompt([1, 2, 3]), prompt([4])], [[5], [6]], pad_token_id=0, side="left")
    ids, mask, labels = matrices(batch, "input_ids", "attention_mask", "labels")
    assert ids == [[1, 2, 3, 5], [0, 0, 4, 6]]
    assert mask == [[1, 1, 1, 1], [0, 0, 1, 1]]
    assert labels == [[X, X, X, 5], [X, X, X, 6]]


def test_pad_token_inside_a_row_is_attended_and_scored() -> None:
    """The mask comes from lengths, never from `ids != pad`."""
    batch = stack_rows([prompt([7, 1]), prompt([1, 1, 1])], [[7, 7], [2]], pad_token_id=7)
    ids, mask, labels = matrices(batch, "input_ids", "attention_mask", "labels")
    assert ids == [[7, 1, 7, 7], [1, 1, 1, 2]]
    assert mask == [[1, 1, 1, 1], [1, 1, 1, 1]]
    assert labels == [[X, X, 7, 7], [X, X, X, 2]]


def test_empty_continuations() -> None:
    batch = stack_rows([prompt([1, 2]), prompt([3])], [[], []], pad_token_id=0, side="left")
    ids, labels = matrices(batch, "input_ids", "labels")
    assert ids == [[1, 2], [0, 3]]
    assert labels == [[X, X], [X, X]]


@pytest.mark.parametrize(
    ("side", "expected"), [("right", [[0, 1, 0, 0], [0, 0, 0, 0]]), ("left", [[0, 1, 0, 0], [0] * 4])]
)
def test_token_features_are_zero_on_continuation_and_padding(side: Any, expected: list[list[int]]) -> None:
    rows = [prompt([1, 2], {"token_type_ids": [0, 1]}), prompt([3], {"token_type_ids": [0]})]
    batch = stack_rows(rows, [[4, 5], [6]], pad_token_id=9, side=side)
    assert batch["token_type_ids"].tolist() == expected


@pytest.mark.parametrize("image_first", [True, False])
def test_token_features_that_only_image_prompts_have(image_first: bool) -> None:
    rows = [prompt([1, 2], {"token_type_ids": [0, 1]}), prompt([3])]
    order = [0, 1] if image_first else [1, 0]
    batch = stack_rows([rows[i] for i in order], [[4], [5]], pad_token_id=9)
    assert [batch["token_type_ids"].tolist()[i] for i in order] == [[0, 1, 0], [0, 0, 0]]


def test_image_features_are_concatenated_in_row_order() -> None:
    one, two = torch.ones(1, 3), 2 * torch.ones(2, 3)
    rows = [prompt([1], pixel_values=two), prompt([2]), prompt([3], pixel_values=one)]
    batch = stack_rows(rows, [[5], [6], [7]], pad_token_id=0)
    assert batch["pixel_values"][:, 0].tolist() == [2, 2, 1]
    assert "pixel_values" not in stack_rows([prompt([2])], [[6]], pad_token_id=0)


def test_one_continuation_a_prompt() -> None:
    with pytest.raises(DataError, match="got 1 prompts, 2 continuations"):
        stack_rows([prompt([1])], [[2], [3]], pad_token_id=0)


def test_sum_logps_shifts_the_labels() -> None:
    """Column t of the log-probs belongs to label t+1; a label at position 0 has no log-prob."""
    labels = torch.tensor([[X, X, 5, 6], [X, 7, X, X], [X, X, X, X], [5, X, X, 6]])
    logps = torch.tensor([[0.0, -1.0, -2.0], [-4.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, -8.0]])
    sums, lengths = sum_logps(logps, labels)
    assert (sums.tolist(), lengths.tolist()) == ([-3.0, -4.0, 0.0, -8.0], [2, 1, 0, 1])


# ---- encoding with the real processor ----


def test_encoded_prompt_holds_four_tokens_a_tile(processor: Any) -> None:
    """A 96x32 image becomes three tiles and a thumbnail."""
    text = prompt_text(processor, [user_message("How many?", 1)])
    encoded = encode_prompt(processor, text, [Image.new("RGB", (96, 32))])
    image_tokens = (encoded.input_ids == processor.image_token_id).sum().item()
    assert encoded.image_features["pixel_values"].shape == (4, 3, 32, 32)
    assert image_tokens == 4 * 4
    assert encoded.input_ids.ndim == 1
    assert "attention_mask" not in {*encoded.token_features, *encoded.image_features}


@pytest.mark.parametrize(("placeholders", "images"), [(1, 2), (2, 1), (0, 1), (1, 0)])
def test_images_and_placeholders_must_agree(processor: Any, placeholders: int, images: int) -> None:
    text = prompt_text(processor, [user_message("How many?", placeholders)])
    with pytest.raises(DataError, match=rf"refused a prompt with {images} image\(s\)"):
        encode_prompt(processor, text, [Image.new("RGB", (32, 32))] * images)


@pytest.mark.parametrize("template_writes_it", [True, False])
def test_exactly_one_bos(template_writes_it: bool) -> None:
    """A tokenizer that adds BOS by itself, under a template that may write it too (Llama, Gemma)."""
    processor = build_processor()
    tokenizer = processor.tokenizer
    tokenizer.bos_token = "<|endoftext|>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", tokenizer.bos_token_id)]
    )
    text = ("<|endoftext|>" if template_writes_it else "") + prompt_text(processor, [user_message("How many?")])
    ids = encode_prompt(processor, text).input_ids.tolist()
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1


# ---- scoring against a plain forward pass ----


@pytest.fixture(scope="module")
def rows(processor: Any) -> list[tuple[EncodedPrompt, list[int]]]:
    """Images of different widths, a prompt without an image, answers of different lengths."""
    answers = [
        "Final answer: 3",
        "Red is 3\n\nBlue is 9\n\n3 + 9 = 12\n\nFinal answer: 12",
        "7",
        "Even: none\n\nCount 0",
    ]
    problems = [to_problem(scene, "p") for scene in scenes("test", 3, 5)]
    encoded = [
        encode_prompt(processor, prompt_text(processor, [user_message(p.question, 1)]), p.images) for p in problems
    ]
    assert len({len(prompt.input_ids) for prompt in encoded}) > 1
    encoded.insert(1, encode_prompt(processor, prompt_text(processor, [user_message("What is 5 + 7?")])))
    return [(p, response_ids(processor, a)) for p, a in zip(encoded, answers, strict=True)]


@pytest.fixture(scope="module")
def chunked(policy_folder: Path) -> Any:
    model = load_model(policy_folder).eval()
    enable_chunked_logps(model)
    enable_chunked_logps(model)  # a second call does nothing
    return model


def plain_logits(policy: Any, row: tuple[EncodedPrompt, list[int]]) -> Tensor:
    """(T, V) of one row, without padding, mask or patch."""
    encoded, continuation = row
    ids = torch.cat([encoded.input_ids, torch.tensor(continuation)])[None]
    with torch.no_grad():
        return policy(input_ids=ids, **encoded.image_features).logits[0]


def plain_logp(policy: Any, row: tuple[EncodedPrompt, list[int]]) -> float:
    logps = plain_logits(policy, row).log_softmax(dim=-1)
    start = len(row[0].input_ids)
    return sum(logps[start + i - 1, token].item() for i, token in enumerate(row[1]))


@pytest.mark.parametrize("side", ["right", "left"])
def test_response_logps_equal_plain_log_softmax(policy: Any, chunked: Any, rows: Any, side: Any) -> None:
    batch = stack_rows([p for p, _ in rows], [c for _, c in rows], pad_token_id=0, side=side)
    with torch.no_grad():
        sums, lengths = response_logps(chunked, batch)
    assert lengths.tolist() == [len(continuation) for _, continuation in rows]
    assert sums.dtype == torch.float32
    expected = [plain_logp(policy, row) for row in rows]
    torch.testing.assert_close(sums, torch.tensor(expected), atol=1e-5, rtol=1e-6)


def test_padding_does_not_change_a_row(chunked: Any, rows: Any) -> None:
    with torch.no_grad():
        together, _ = response_logps(chunked, stack_rows([p for p, _ in rows], [c for _, c in rows], pad_token_id=0))
        alone = [response_logps(chunked, stack_rows([p], [c], pad_token_id=0))[0] for p, c in rows]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-6)


def test_the_picture_matters(chunked: Any, rows: Any) -> None:
    encoded, continuation = rows[0]
    blank = EncodedPrompt(encoded.input_ids, {}, {k: torch.ones_like(v) for k, v in encoded.image_features.items()})
    with torch.no_grad():
        sums, _ = response_logps(chunked, stack_rows([encoded, blank], [continuation] * 2, pad_token_id=0))
    assert abs(sums[0] - sums[1]) > 1e-3


def test_logits_at_equal_plain_logits(policy: Any, rows: Any) -> None:
    """Rows read at different numbers of positions; their union goes through the head."""
    positions = [[0, len(p.input_ids) - 1, len(p.input_ids) + len(c) - 1][i % 2 :] for i, (p, c) in enumerate(rows)]
    batch = stack_rows([p for p, _ in rows], [c for _, c in rows], pad_token_id=0)
    tokens = [11, 3, 5]
    with torch.no_grad():
        found = logits_at(policy, batch, positions, tokens)
    for row, where, logits in zip(rows, positions, found, strict=True):
        expected = plain_logits(policy, row)[where][:, tokens]
        assert logits.shape == (len(where), 3)
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_text_logps_leave_the_read_tokens_out(policy: Any, rows: Any) -> None:
    """Softmax over every token but the read ones; a label that is one of them is not scored."""
    batch = stack_rows([p for p, _ in rows], [c for _, c in rows], pad_token_id=0)
    batch["labels"][0] = IGNORED  # a row whose text is not learned from
    tokens = [rows[1][1][0], 3]
    positions = [[len(p.input_ids) - 1] for p, _ in rows]
    with torch.no_grad():
        read, text = logits_and_text_logps(policy, batch, positions, tokens)
        expected_read = logits_at(policy, batch, positions, tokens)
    torch.testing.assert_close(read, expected_read)
    expected = []
    for prompt, continuation in rows[1:]:
        logits = plain_logits(policy, (prompt, continuation))
        logits[:, tokens] = -torch.inf
        logps = logits.log_softmax(-1)
        start = len(prompt.input_ids)
        expected += [logps[start - 1 + i, t] for i, t in enumerate(continuation) if t not in tokens]
    torch.testing.assert_close(text, torch.stack(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("at_a_time", [1, 400])
def test_text_logps_in_parts_are_those_of_whole_logits(
    monkeypatch: pytest.MonkeyPatch, policy_folder: Path, rows: Any, at_a_time: int
) -> None:
    """The same values and gradients, and never the logits of all tokens at a time."""
    batch = stack_rows([p for p, _ in rows], [c for _, c in rows], pad_token_id=0)
    positions = [[len(p.input_ids) - 1] for p, _ in rows]
    sizes: list[int] = []
    masked = scoring._masked_logps
    monkeypatch.setattr(
        scoring, "_masked_logps", lambda logits, *rest: sizes.append(len(logits)) or masked(logits, *rest)
    )
    monkeypatch.setattr(scoring, "LOGITS_AT_A_TIME", at_a_time)
    found = []
    for whole in (False, True):
        model = load_model(policy_folder)
        monkeypatch.setattr(scoring, "_is_sharded", lambda model, whole=whole: whole)
        read, text = logits_and_text_logps(model, batch, positions, [3, 5])
        (torch.cat(read).sin().sum() + (text * torch.arange(len(text))).sum()).backward()
        found.append(
            [text.detach(), torch.cat(read).detach(), *(p.grad for p in model.parameters() if p.grad is not None)]
        )
        vocabulary = model.get_output_embeddings().out_features
        assert max(sizes) == (len(text) if whole else max(1, at_a_time // vocabulary))
        sizes.clear()
    for ours, theirs in zip(*found, strict=True):
        assert (ours - theirs).norm() <= 1e-6 * (1 + theirs.norm())


def test_log_probs_have_gradients(policy_folder: Path, rows: Any) -> None:
    model = load_model(policy_folder)
    enable_chunked_logps(model)
    sums, _ = response_logps(model, stack_rows([rows[0][0]], [rows[0][1]], pad_token_id=0))
    sums.sum().backward()
    vision = [p.grad for name, p in model.named_parameters() if "vision_tower" in name and p.grad is not None]
    assert any(gradient.abs().sum() > 0 for gradient in vision)


@pytest.mark.parametrize("reads_pixels", [False, True])
def test_prompts_about_the_same_images_are_those_encoded_alone(processor: Any, reads_pixels: bool) -> None:
    """LLaVA's processor turns the pixels into an array for every text; InternVL's only copies them."""
    image = Image.new("RGB", (28, 28), "red")
    if reads_pixels:
        token = processor.image_token
        processor = LlavaProcessor(
            image_processor=CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
            tokenizer=processor.tokenizer,
            patch_size=14,
            vision_feature_select_strategy="full",
            image_token=token,
        )
    texts = [f"{processor.image_token}\n{question}" for question in ("What is it?", "And this?", "Why?")]
    if not reads_pixels:
        texts = [prompt_text(processor, [user_message(text, 1)]) for text in ("What is it?", "And this?", "Why?")]
    alone = [encode_prompt(processor, text, [image]) for text in texts]
    for one, other in zip(encode_prompts(processor, texts, [image]), alone, strict=True):
        assert torch.equal(one.input_ids, other.input_ids)
        assert one.image_features.keys() == other.image_features.keys()
        for name, feature in other.image_features.items():
            assert torch.equal(one.image_features[name], feature)
