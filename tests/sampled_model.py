"""A real model's samples as a server gives them: `ModelServer(reply=SampledModel(…))`, with log-probabilities."""

from __future__ import annotations

import base64
import io
import threading
from typing import Any

from PIL import Image

from mpo.multimodal.loading import load_for_inference, load_processor
from rewards.sampling.generator import SamplingParams
from rewards.sampling.transformers_generator import TransformersGenerator
from rewards.types import Problem


class SampledModel:
    """Called with a request's body, gives its `n` sampled choices."""

    def __init__(self, folder: Any) -> None:
        self.model, self.processor = load_for_inference(folder), load_processor(folder)
        self.lock = threading.Lock()

    def __call__(self, body: dict[str, Any]) -> dict[str, Any]:
        params = SamplingParams(body.get("temperature", 1.0), body.get("top_p", 1.0), 0, body["max_tokens"])
        with self.lock:
            generator = TransformersGenerator(self.model, self.processor, params, keep_logprobs=True)
            (drawn,) = generator.generate([_problem(body)], body["n"], seed=body["seed"] % 2**31)
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": one.text},
                "finish_reason": one.finish_reason.value,
                "logprobs": {"content": [{"token": "x", "logprob": value} for value in one.token_logprobs or ()]},
            }
            for index, one in enumerate(drawn)
        ]
        tokens = sum(one.num_tokens for one in drawn)
        return {"id": "x", "object": "chat.completion", "choices": choices, "usage": {"completion_tokens": tokens}}


def _problem(body: dict[str, Any]) -> Problem:
    blocks = body["messages"][-1]["content"]
    text = "".join(block["text"] for block in blocks if block["type"] == "text")
    urls = [block["image_url"]["url"] for block in blocks if block["type"] == "image_url"]
    images = tuple(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) for url in urls)
    return Problem("asked", text, images)
