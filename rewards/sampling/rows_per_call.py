"""How many rows one sampling call may hold, from the memory of the accelerator that it runs on.

    row  = 2 · layers · key heads · head size · bytes of a number · (prompt + new tokens)  +  3 · 4 · vocabulary
    rows = the largest power of two ≤ 256 with rows · row ≤ 0.6 · (memory − weights)

A row's keys and values, and its logits in float32, three times while a token is drawn. The other 0.4 is for the prefill
of the call's prompts, for prompts longer than assumed, and for the allocator. A decode step reads the weights once for
all rows, so it is worth having many; beyond 256 rows the keys and values weigh as much as they.

The whole memory of the device counts and not what is free, so one card gives one number, and a resumed run its bytes.
"""

from __future__ import annotations

from typing import Any

ROWS = 64  # on a CPU, and where the memory is not known
MOST_ROWS = 256
PROMPT_TOKENS = 2048  # assumed of a prompt: 7 InternVL tiles and a question
SHARE = 0.6


def row_bytes(text_config: Any, *, number_bytes: int, new_tokens: int) -> int:
    """Bytes of one row at its longest.

    Args:
        text_config: of the language model, as `config.get_text_config()` gives it.
        number_bytes: of the number type that the model runs in, 2 or 4.
        new_tokens: most tokens of a response.

    Example:
        >>> from types import SimpleNamespace
        >>> sizes = SimpleNamespace(num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4,
        ...                         hidden_size=3584, vocab_size=151_936)
        >>> row_bytes(sizes, number_bytes=2, new_tokens=512) / 2**20  # of a 7B model: 56 KiB per token
        141.73...
    """
    heads = getattr(text_config, "num_key_value_heads", None) or text_config.num_attention_heads
    size = getattr(text_config, "head_dim", None) or text_config.hidden_size // text_config.num_attention_heads
    token = 2 * text_config.num_hidden_layers * heads * size * number_bytes
    return token * (PROMPT_TOKENS + new_tokens) + 3 * 4 * text_config.vocab_size


def rows_per_call(*, memory: int, weights: int, row: int) -> int:
    """The largest power of two that fits, at least 1 and at most 256.

    Args:
        memory: of the device, bytes.
        weights: of the model, bytes.
        row: of `row_bytes`.

    Example:
        >>> [rows_per_call(memory=gib * 2**30, weights=15 * 2**30, row=142 * 2**20) for gib in (24, 48, 80, 141)]
        [32, 128, 256, 256]
    """
    rows = MOST_ROWS
    while rows > 1 and rows * row > SHARE * (memory - weights):
        rows //= 2
    return rows
