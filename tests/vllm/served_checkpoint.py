"""A tiny InternVL that vLLM can serve and whose answers mean something: the digits world's processor, other weights.

vLLM's CPU attention wants a head of 32 dimensions. An ASCII alphabet makes every sampled text round-trip through a
continued prefix. A larger head makes seeds, pictures and labels matter: random weights are flat otherwise.
"""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from recipes.digits import policy
from recipes.digits.policy import PolicySize, build_policy
from rewards.prm.formats import VISUALPRM, PRMFormat
from rewards.prm.model_prm import save_format

SIZE = PolicySize(vision_hidden=128, vision_layers=1, text_hidden=128, text_layers=2, heads=4)
SHARPER = 3.0


def build_checkpoint(folder: Path, prm_format: PRMFormat = VISUALPRM) -> Path:
    """Model, processor and `prm.json`; it serves as a policy and as a PRM."""
    from mpo.multimodal.loading import load_model

    with_alphabet = policy._tokenizer
    policy._tokenizer = ascii_tokenizer
    try:
        build_policy(folder, seed=0, size=SIZE)
    finally:
        policy._tokenizer = with_alphabet
    model: Any = load_model(folder)
    with torch.no_grad():
        model.lm_head.weight *= SHARPER
    model.save_pretrained(folder)
    save_format(folder, prm_format)
    return folder


def ascii_tokenizer() -> PreTrainedTokenizerFast:
    """One token a printable ASCII character or newline, and the special ones."""
    alphabet = sorted(set(string.printable) - set("\t\r\x0b\x0c"))
    spelled = [
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(c)[0][0] for c in alphabet
    ]
    vocabulary = {token: id for id, token in enumerate([*policy.SPECIAL, *spelled])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(policy.SPECIAL)
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
