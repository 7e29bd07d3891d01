"""A policy whose first error is known, as a server: from a sound beginning it is right in 6 of 10 continuations.

A beginning is unsound from a step on that contains the word "wrong"; no continuation of it is right. The text is a
function of the messages, the seed and the index, as from a server that keeps to its seed.
"""

from __future__ import annotations

import hashlib
import json
import random
from typing import Any

RIGHT = 0.6
STEP_WORDS = 7  # tokens of a step


def response(steps: int, first_error: int | None) -> str:
    """A response of so many steps, the last one its answer; it is wrong from `first_error` on."""
    lines = [f"step {i} is {'sound' if first_error is None or i < first_error else 'wrong'}" for i in range(steps - 1)]
    return "\n\n".join([*lines, f"Final answer: {6 if first_error is None else 5}"])


def reply(body: dict[str, Any]) -> dict[str, Any]:
    """As many continuations of the last message as the request asks for, with vLLM's count of their tokens."""
    asked = json.dumps([body["model"], body["messages"]], sort_keys=True)
    beginning = body["messages"][-1]["content"][0]["text"] if body["messages"][-1]["role"] == "assistant" else ""
    choices, total = [], 0
    for index in range(body["n"]):
        rng = random.Random(hashlib.sha256(f"{asked} {body['seed']} {index}".encode()).hexdigest())
        right = "wrong" not in beginning and rng.random() < RIGHT
        text = "\n\n".join(["some further step"] * rng.randint(0, 2) + [f"Final answer: {6 if right else 5}"])
        total += STEP_WORDS * (1 + text.count("\n\n"))
        message = {"role": "assistant", "content": text}
        choices.append({"index": index, "message": message, "finish_reason": "stop"})
    return {"id": "x", "object": "chat.completion", "choices": choices, "usage": {"completion_tokens": total}}
