"""A real model's next token, as a server with vLLM's extensions tells it: `ModelServer(reply=ServedModel(…))`.

It renders the conversation with the processor's own chat template and reads one plain forward pass, and shares no code
with what it is compared with. A field that is in `ignores` is not looked at, as by a server that does not know it.
"""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Container
from typing import Any

import torch
from PIL import Image

MAX_TOP = 20


class ServedModel:
    """Called with a request's body, gives a reply of one token with the log-probabilities that were asked for."""

    def __init__(self, model: Any, processor: Any, *, ignores: Container[str] = (), usage: bool = True) -> None:
        self.model, self.processor, self.ignores, self.usage = model, processor, ignores, usage
        self.lock = threading.Lock()

    def __call__(self, body: dict[str, Any]) -> dict[str, Any]:
        assert body["max_tokens"] == body["n"] == 1
        ids, logits = self._next(body)
        if "structured_outputs" in body and "structured_outputs" not in self.ignores:
            allowed = [self.tokenize(text)[0] for text in body["structured_outputs"]["choice"]]
            masked = torch.full_like(logits, -torch.inf)
            masked[allowed] = logits[allowed]
            logits = masked
        logps = logits.log_softmax(-1).clamp(min=-9999.0)
        sampled = int(logps.argmax())
        listed = [sampled]
        if "logprob_token_ids" in body and "logprob_token_ids" not in self.ignores:
            listed += body["logprob_token_ids"]
        else:
            listed += logps.topk(min(body.get("top_logprobs", 0), MAX_TOP)).indices.tolist()
        as_ids = bool(body.get("return_tokens_as_token_ids")) and "logprob_token_ids" not in self.ignores
        names = {id: f"token_id:{id}" if as_ids else self.processor.tokenizer.decode([id]) for id in listed}
        top = [{"token": names[id], "logprob": float(logps[id]), "bytes": None} for id in names]
        asked_for_top = "top_logprobs" in body or as_ids
        token = {**top[0], "top_logprobs": top if asked_for_top else []}
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": self.processor.tokenizer.decode([sampled])},
            "finish_reason": "length",
            "logprobs": {"content": [token]} if body.get("logprobs") else None,
        }
        usage = {"usage": {"prompt_tokens": len(ids), "completion_tokens": 1, "total_tokens": len(ids) + 1}}
        return {"id": "x", "object": "chat.completion", "choices": [choice], **(usage if self.usage else {})}

    def tokenize(self, text: str) -> list[int]:
        return self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _next(self, body: dict[str, Any]) -> tuple[list[int], torch.Tensor]:
        messages, images = [], []
        for message in body["messages"]:
            content = []
            for block in message["content"]:
                if block["type"] == "image_url":
                    head, _, data = block["image_url"]["url"].partition(",")
                    assert head == "data:image/png;base64"
                    images.append(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
                    content.append({"type": "image"})
                else:
                    content.append(block)
            messages.append({**message, "content": content})
        text = self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        with self.lock, torch.inference_mode():
            inputs = self.processor(text=[text], images=[images] if images else None, return_tensors="pt")
            logits = self.model(**inputs).logits[0, -1].double()
        return inputs["input_ids"][0].tolist(), logits
