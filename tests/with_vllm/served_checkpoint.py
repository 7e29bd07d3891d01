"""A tiny InternVL that vLLM can serve and whose answers mean something: the digits world's processor, other weights.

vLLM's CPU attention wants a head of 32 dimensions. An ASCII alphabet, and special tokens that are not sampled, make a
text round-trip through a continued prefix. A larger head makes seeds, images and labels matter: random weights are
flat otherwise.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mpo.multimodal.images import load_image
from mpo.multimodal.loading import load_model, load_processor
from mpo.multimodal.prefix import stack_rows
from recipes.worlds.digits import policy
from recipes.worlds.digits.policy import PolicySize, build_policy
from recipes.worlds.digits.world import scenes, to_problem
from rewards.prm.formats import VISUALPRM
from rewards.prm.model_prm import save_format
from rewards.prm.rendering import render
from rewards.steps import split_on_blank_lines

SIZE = PolicySize(vision_hidden=128, vision_layers=1, text_hidden=128, text_layers=2, heads=4)
SHARPER = 3.0
RANKS = (8, 17)  # of + and - among the likeliest tokens


def build_checkpoint(folder: Path) -> Path:
    """Model, processor and `prm.json`; it serves as a policy and as a PRM."""
    with patch.object(policy, "_tokenizer", ascii_tokenizer):
        build_policy(folder, seed=0, size=SIZE)
    model: Any = load_model(folder).eval()
    processor = load_processor(folder)
    with torch.no_grad():
        head = model.lm_head.weight
        head *= SHARPER
        head[[id for id in processor.tokenizer.all_special_ids if id != processor.tokenizer.eos_token_id]] = 0.0
        even_labels(model, processor)
    model.save_pretrained(folder)
    save_format(folder, VISUALPRM)
    return folder


def even_labels(model: Any, processor: Any) -> None:
    """Turn the head's rows of + and - so that where steps are read they are on average as likely as `RANKS` says.

    Else the scores hardly differ from step to step, since a read position always follows the same few tokens; and now -
    is among the 20 likeliest at some steps and not at others.
    """
    problem = to_problem(scenes("test", 1, 7)[0], "x")
    steps = [
        split_on_blank_lines(text) for text in ("Red is 3\n\nBlue is 9\n\nFinal answer: 12", "Even: none\n\nCount 0")
    ]
    rows = render(processor, VISUALPRM, problem, steps, [load_image(image) for image in problem.images])
    given: list[torch.Tensor] = []
    hook = model.lm_head.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    for row in rows:
        inputs = stack_rows([row.prompt], [row.continuation], pad_token_id=processor.tokenizer.pad_token_id)
        model(**{**inputs, **row.prompt.image_features, "labels": None})
    hook.remove()
    hidden = torch.cat([one[0, list(row.read_positions)] for one, row in zip(given, rows, strict=True)])
    mean = hidden.mean(dim=0) / hidden.mean(dim=0).square().sum()
    levels = (hidden @ model.lm_head.weight.T).sort(descending=True).values.mean(dim=0)
    for token_id, rank in zip(VISUALPRM.label_ids(processor.tokenizer), RANKS, strict=True):
        row = model.lm_head.weight[token_id]
        row += mean * (levels[rank - 1] - hidden.mean(dim=0) @ row)


def ascii_tokenizer(corpus: Sequence[str]) -> PreTrainedTokenizerFast:
    """One token a printable ASCII character or newline, and the special ones, whatever the corpus."""
    del corpus
    alphabet = sorted(set(string.printable) - set("\t\r\x0b\x0c"))
    spelled = [
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(c)[0][0] for c in alphabet
    ]
    vocabulary = {token: id for id, token in enumerate([*policy.SPECIAL, *spelled])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(policy.SPECIAL)
    return policy.with_roles(tokenizer)
