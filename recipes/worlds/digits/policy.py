"""A tiny native InternVL, built from a config: real processor, real chat template, random weights.

Vision tower, pixel shuffle, projector and a Qwen2 text model are transformers' own `InternVLForConditionalGeneration`;
only the sizes are small. The image processor cuts an image into 32x32 tiles plus a thumbnail as InternVL does
(dynamic resolution, arXiv 2404.16821 §3.2), four image tokens per tile.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.pre_tokenizers import Split
from transformers import (
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    PreTrainedTokenizerFast,
)

from recipes.worlds.digits.world import INKS, KINDS, QUESTIONS, TILE, solution

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>"]
IMAGE_TOKENS_A_TILE = 4
EMBEDDING_STD = 1.0
FRAME = [*["system\nuser\nassistant\n"] * 100, "### Question:\n", "\n\n### Solution Process:\n", "+ -"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for block in message['content'] %}"
    "{% if block['type'] == 'image' %}<IMG_CONTEXT>\n{% else %}{{ block['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class PolicySize:
    """Width and depth of the tiny model."""

    vision_hidden: int = 48
    vision_layers: int = 2
    text_hidden: int = 96
    text_layers: int = 3
    heads: int = 4


def build_policy(
    directory: str | Path, *, seed: int, size: PolicySize | None = None, corpus: Sequence[str] = ()
) -> Path:
    """Write an untrained policy (model and processor) to `directory`, loadable by `AutoModelForImageTextToText`.

    The tokenizer learns its words from `corpus`; without one, from the digits world's text.
    """
    size = size or PolicySize()
    processor = build_processor(corpus)
    torch.manual_seed(seed)
    model = InternVLForConditionalGeneration(_config(processor, size))
    # So that a token stays recognisable in the residual stream (norm 43 at the top, 10 for an embedding of std 1).
    torch.nn.init.normal_(model.model.language_model.embed_tokens.weight, std=EMBEDDING_STD)
    directory = Path(directory)
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory


def build_processor(corpus: Sequence[str] = ()) -> InternVLProcessor:
    """The real InternVL processor with 32-pixel tiles and a byte-level BPE; `corpus` as for `build_policy`."""
    image_processor = GotOcr2ImageProcessor(
        size={"height": TILE, "width": TILE},
        crop_to_patches=True,
        min_patches=1,
        max_patches=6,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return InternVLProcessor(
        image_processor=image_processor,
        tokenizer=_tokenizer([*FRAME, *(corpus or digits_text())]),
        video_processor=InternVLVideoProcessor(size={"height": TILE, "width": TILE}),
        image_seq_length=IMAGE_TOKENS_A_TILE,
        chat_template=CHAT_TEMPLATE,
    )


def _tokenizer(corpus: Sequence[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE: any text round-trips; each digit and each word of the corpus is one token."""
    tokenizer = Tokenizer(models.BPE())
    words = Split(Regex(r" ?[^\s\d]+ ?|\d|\n+|\s"), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return with_roles(tokenizer)


def with_roles(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """A tokenizer that knows `SPECIAL`, with what each of them is for."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        extra_special_tokens={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        clean_up_tokenization_spaces=False,
    )


def digits_text(kinds: Sequence[str] = KINDS) -> list[str]:
    """The digits world's questions of these kinds, and answers to them: what a tokenizer learns its words from."""
    rng = random.Random(0)
    texts = [QUESTIONS[kind] for kind in kinds]
    for _ in range(300):
        inks = rng.sample(list(INKS), rng.randint(2, 5))
        texts.append(solution(rng.choice(list(kinds)), {ink: rng.randrange(10) for ink in inks}, rng))
    return texts


def _config(processor: InternVLProcessor, size: PolicySize) -> InternVLConfig:
    tokenizer = processor.tokenizer
    return InternVLConfig(
        vision_config={
            "hidden_size": size.vision_hidden,
            "num_hidden_layers": size.vision_layers,
            "num_attention_heads": size.heads,
            "intermediate_size": 4 * size.vision_hidden,
            "image_size": [TILE, TILE],
            "patch_size": [8, 8],
            "initializer_range": size.vision_hidden**-0.5,
            "use_absolute_position_embeddings": True,
        },
        text_config={
            "model_type": "qwen2",
            "vocab_size": len(tokenizer),
            "hidden_size": size.text_hidden,
            "num_hidden_layers": size.text_layers,
            "num_attention_heads": size.heads,
            "num_key_value_heads": size.heads,
            "intermediate_size": 3 * size.text_hidden,
            "max_position_embeddings": 1024,
            "initializer_range": size.text_hidden**-0.5,  # 0.02 is meant for widths near 2,500
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        tie_word_embeddings=False,
        image_token_id=processor.image_token_id,
        image_seq_length=IMAGE_TOKENS_A_TILE,
        downsample_ratio=0.5,
    )
