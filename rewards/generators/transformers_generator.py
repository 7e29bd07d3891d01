"""Sampling in this process with `transformers.generate`: any image-text-to-text model, CPU or GPU."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from mpo.multimodal.errors import ConfigError
from mpo.multimodal.images import load_image
from mpo.multimodal.messages import end_of_turn_id, prompt_text, user_message
from mpo.multimodal.prefix import EncodedPrompt, encode_prompt, stack_rows
from rewards.types import Completion, FinishReason, Problem

# A checkpoint's generation_config.json must not bend the distribution (Qwen2.5-VL ships repetition_penalty 1.05).
# A trainer may have switched the cache off in the model's config.
NEUTRAL = {
    "use_cache": True,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_p": None,
    "typical_p": 1.0,
}

# Cache layers that hold keys and values only. Layers that mix attention with a recurrent state inherit
# `batch_repeat_interleave` and would copy the keys without the state.
COPYABLE: tuple[type, ...] = (DynamicLayer, DynamicSlidingWindowLayer)


@dataclass(frozen=True)
class SamplingParams:
    """How to draw: `temperature` 0 is greedy; `top_p` 1 and `top_k` 0 sample from the whole distribution."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 512


class TransformersGenerator:
    """Draws n completions a problem; the prompt and its images go through the model once for all n.

    Args:
        model: an image-text-to-text model, already on its device.
        processor: its processor.
        params: sampling settings.
        batch_rows: rows a `generate` call; a call takes `batch_rows // n` problems, at least one.
        describe: text of the progress bar; empty for none.

    The random state of a call is derived from `seed` and the ids of its problems, so that a rerun with the same
    problems in the same order and the same `batch_rows` draws the same text.
    """

    def __init__(
        self, model: Any, processor: Any, params: SamplingParams, *, batch_rows: int = 64, describe: str = ""
    ) -> None:
        self.model, self.processor, self.params = model, processor, params
        self.batch_rows, self.describe = batch_rows, describe
        self._end = end_of_turn_id(processor)
        self._cache_can_be_copied = True  # until the first prompt shows otherwise

    def generate(
        self, problems: Sequence[Problem], n: int, *, prefixes: Sequence[str] | None = None, seed: int
    ) -> list[list[Completion]]:
        """n completions for each problem, in order.

        Args:
            problems: what to ask; a problem may occur more than once (with different prefixes).
            n: completions a problem, at least 1.
            prefixes: text that each answer starts with (same length as `problems`); completions continue it and
                do not repeat it.
            seed: changes the draw.

        Raises:
            ConfigError: n is below 1, or above 1 with `temperature` 0, which would give one text n times.
        """
        if n < 1 or (n > 1 and self.params.temperature == 0):
            raise ConfigError(f"cannot draw {n} completions at temperature {self.params.temperature}: greedy takes n=1")
        starts = list(prefixes) if prefixes is not None else [""] * len(problems)
        out: list[list[Completion]] = []
        with tqdm(total=len(problems) * n, desc=self.describe, unit="sample", disable=not self.describe) as bar:
            for batch in _batches(list(zip(problems, starts, strict=True)), max(1, self.batch_rows // n)):
                out.extend(self._generate_batch(batch, n, seed))
                bar.update(len(batch) * n)
        return out

    def _generate_batch(self, batch: list[tuple[Problem, str]], n: int, seed: int) -> list[list[Completion]]:
        encode = self.processor.tokenizer
        prompts = [self._encode(problem) for problem, _ in batch]
        prefix_ids = [encode(start, add_special_tokens=False)["input_ids"] if start else [] for _, start in batch]
        rows = stack_rows(prompts, prefix_ids, pad_token_id=encode.pad_token_id, side="left")
        inputs: dict[str, Any] = {key: value.to(self.model.device) for key, value in rows.items() if key != "labels"}
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.inference_mode():
            torch.manual_seed(_derived_seed(seed, batch))
            copied = self._prefilled(inputs, n) if n > 1 and self._cache_can_be_copied else None
            generated = self.model.generate(**(copied or inputs), **self._settings(1 if copied else n))
        texts = generated[:, inputs["input_ids"].shape[1] :].tolist()
        completions = [self._completion(ids) for ids in texts]
        return [completions[i : i + n] for i in range(0, len(completions), n)]

    def _prefilled(self, inputs: dict[str, Any], n: int) -> dict[str, Any] | None:
        """Run B prompts without their last token through the model, and copy their cache n times.

        Returns:
            What `generate` needs to go on from there, B·n rows; None where a layer of the cache holds more than keys
            and values (a recurrent state): then `generate` expands the prompts itself, now and from now on.
        """
        shape = inputs["input_ids"].shape
        shorter = {key: value[:, :-1] if value.shape == shape else value for key, value in inputs.items()}
        once = {**NEUTRAL, "do_sample": False, "max_new_tokens": 1, "return_dict_in_generate": True}
        cache = self.model.generate(
            **shorter, **once, pad_token_id=self.processor.tokenizer.pad_token_id
        ).past_key_values
        self._cache_can_be_copied = all(type(layer) in COPYABLE for layer in getattr(cache, "layers", [None]))
        if not self._cache_can_be_copied:
            return None
        cache.batch_repeat_interleave(n)
        rows = {key: inputs[key].repeat_interleave(n, dim=0) for key in ("input_ids", "attention_mask")}
        return {**rows, "past_key_values": cache}

    def _encode(self, problem: Problem) -> EncodedPrompt:
        text = prompt_text(self.processor, [user_message(problem.question, len(problem.images))])
        return encode_prompt(self.processor, text, [load_image(image) for image in problem.images])

    def _settings(self, n: int) -> dict[str, Any]:
        params = self.params
        common = {
            **NEUTRAL,
            "num_return_sequences": n,
            "max_new_tokens": params.max_new_tokens,
            "eos_token_id": self._end,
            "pad_token_id": self.processor.tokenizer.pad_token_id,
        }
        if params.temperature == 0:
            return {**common, "do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        return {
            **common,
            "do_sample": True,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "top_k": params.top_k,
        }

    def _completion(self, ids: list[int]) -> Completion:
        """Cut at the end of the turn; any other control token stays in the text, to be rejected by name later."""
        stopped = self._end in ids
        content = ids[: ids.index(self._end)] if stopped else ids
        text = self.processor.tokenizer.decode(content, skip_special_tokens=False)
        return Completion(text, FinishReason.STOP if stopped else FinishReason.LENGTH, len(content) + stopped)


def _batches(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _derived_seed(seed: int, batch: Sequence[tuple[Problem, str]]) -> int:
    key = "\0".join([str(seed), *(f"{problem.id}\1{start}" for problem, start in batch)])
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1
