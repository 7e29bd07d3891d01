"""Sampling in this process with `transformers.generate`: any image-text-to-text model, CPU or GPU."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from mpo.multimodal.ahead import ahead
from mpo.multimodal.errors import DataError
from mpo.multimodal.images import load_image
from mpo.multimodal.memory_bound import Kept
from mpo.multimodal.messages import end_of_turn_id, prompt_text
from mpo.multimodal.prefix import EncodedPrompt, encode_prompt, stack_rows
from rewards.kept.keys import derived_seed
from rewards.sampling.block_cache import BlockLayer
from rewards.sampling.generator import Generator, Sample, SamplingParams, check_number
from rewards.sampling.prompts import messages_of
from rewards.sampling.row_sampler import RowSampler
from rewards.types import Completion, FinishReason, Problem

# All that is taken from a checkpoint's generation_config.json: another key may bend the distribution (Qwen2.5-VL ships
# repetition_penalty 1.05), let the clock decide, or ask for another way of decoding.
TAKEN = ("bos_token_id", "decoder_start_token_id")
CACHED = {"use_cache": True}  # a trainer may have switched the cache off in the model's config

# Cache layers that hold keys and values only. Layers that mix attention with a recurrent state inherit
# `batch_repeat_interleave` and would copy the keys without the state.
COPYABLE: tuple[type, ...] = (DynamicLayer, DynamicSlidingWindowLayer)

# What a model remembers of each row beside its cache: models with M-RoPE, how far their positions are from the count.
ROW_STATE = "rope_deltas"


PROMPT_BYTES = 2**28  # of encoded prompts that are kept: 256 MiB, some 15 problems of 7 InternVL tiles


class _EnoughEnded(StoppingCriteria):
    """Stops all rows together once a quarter of them has ended their turn, or all have.

    Args:
        end: the token that ends a turn.
        start: the place of the first new token.
    """

    def __init__(self, end: int, start: int) -> None:
        self._end, self._start = end, start

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **how: Any) -> Any:
        """(R,) bool, all equal; nothing waits for the device."""
        ended = (input_ids[:, self._start :] == self._end).any(dim=1)
        return (4 * ended.sum() >= len(ended)).expand(len(ended))


class TransformersGenerator(Generator):
    """Draws n completions per problem; the prompt and its images go through the model once for all rows of a call.

    Rows that have ended leave the batch: whenever a quarter of the rows has, the others continue without them.

    A call has `batch_rows // rows_a_problem` problems (at least one) with `rows_a_problem` rows each. Calls are cut
    from the whole list, and a call of which only some rows are wanted is drawn whole, the others as dummies. So a call
    has the same shapes and neighbours whether or not the run was interrupted (its rows leave it where their own texts
    end), and gives the same bits, on one machine with one number of threads and the same `batch_rows`. Each row's
    random numbers are its own (`RowSampler`), whatever the cut; with other neighbours only rounding differs, which
    moves a token where two are equally likely to the last bit.

    Args:
        model: an image-text-to-text model, already on its device.
        processor: its processor.
        params: sampling settings.
        batch_rows: rows per call.
        rows_a_problem: rows of a problem in one call; default is n. With fewer, a problem's samples take several calls.
        keep_logprobs: keep the log-probability of each token.
        describe: text of the progress bar of `generate`; empty for none.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        params: SamplingParams,
        *,
        batch_rows: int = 64,
        rows_a_problem: int | None = None,
        keep_logprobs: bool = False,
        describe: str = "",
    ) -> None:
        self.model, self.processor, self.params = model, processor, params
        self.batch_rows, self.rows_a_problem = batch_rows, rows_a_problem
        self.keep_logprobs, self.describe = keep_logprobs, describe
        self._end = end_of_turn_id(processor)
        self._cache_can_be_copied = True  # until the first prompt shows otherwise
        self._prompts: Kept[tuple[Problem, EncodedPrompt | str]] = Kept(PROMPT_BYTES, newest=True)

    def draw(
        self,
        problems: Sequence[Problem],
        n: int,
        *,
        prefixes: Sequence[str] | None = None,
        seed: int,
        done: Container[tuple[int, int]] = frozenset(),
    ) -> Iterator[list[Sample]]:
        """Samples 0 … n-1 of each problem, call by call; arguments are those of `Generator.draw`.

        Raises:
            ConfigError: n is below 1, or above 1 with `temperature` 0, which would give one text n times.
        """
        check_number(n, self.params)
        starts = list(prefixes) if prefixes is not None else [""] * len(problems)
        asked = list(enumerate(zip(problems, starts, strict=True)))
        rows = self.rows_a_problem or n
        calls = []
        for some in _cut(asked, max(1, self.batch_rows // rows)):
            for first in range(0, n, rows):
                units = [(place, index) for place, _ in some for index in range(first, first + rows)]
                wanted = [index < n and (place, index) not in done for place, index in units]
                if any(wanted):
                    calls.append(([pair for _, pair in some], range(first, first + rows), units, wanted))
        # prompts of a call are encoded while the model answers those of the one before
        prompts = ahead(lambda pairs: [self._kept(problem) for problem, _ in pairs], [call[0] for call in calls])
        for (pairs, indexes, units, wanted), encoded in zip(calls, prompts, strict=True):
            drawn = self._call(encoded, pairs, indexes, seed)
            yield [
                Sample(*unit, row_seed, completion, refusal)
                for unit, (row_seed, completion, refusal), is_wanted in zip(units, drawn, wanted, strict=True)
                if is_wanted
            ]

    def _call(
        self, encoded: list[EncodedPrompt | str], asked: list[tuple[Problem, str]], indexes: range, seed: int
    ) -> list[tuple[int, Completion | None, str]]:
        """Seed and completion of each (problem, index), problem by problem; or none, and why the processor refused."""
        usable = [
            (prompt, pair) for prompt, pair in zip(encoded, asked, strict=True) if isinstance(prompt, EncodedPrompt)
        ]
        drawn = iter(self._generate([prompt for prompt, _ in usable], [pair for _, pair in usable], indexes, seed))
        return [
            (*next(drawn), "")
            if isinstance(prompt, EncodedPrompt)
            else (derived_seed(seed, problem, index, start), None, prompt)
            for prompt, (problem, start) in zip(encoded, asked, strict=True)
            for index in indexes
        ]

    def _generate(
        self, prompts: list[EncodedPrompt], asked: list[tuple[Problem, str]], indexes: range, seed: int
    ) -> list[tuple[int, Completion]]:
        """One `generate` call: seed and completion of each (problem, index), problem by problem."""
        if not prompts:
            return []
        encode = self.processor.tokenizer
        prefix_ids = [encode(start, add_special_tokens=False)["input_ids"] if start else [] for _, start in asked]
        rows = stack_rows(prompts, prefix_ids, pad_token_id=encode.pad_token_id, side="left")
        device = self.model.device
        inputs: dict[str, Any] = {key: value.to(device) for key, value in rows.items() if key != "labels"}
        seeds = [derived_seed(seed, problem, index, start) for problem, start in asked for index in indexes]
        sampler = RowSampler(self.params, seeds, device=device, keep_logprobs=self.keep_logprobs)
        n = len(indexes)
        # Where `generate` expands the prompts itself it insists on do_sample, and takes the only token left by chance.
        with (
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            torch.inference_mode(),
            plain_generation(self.model),
            kernels_for_any_length(device),
        ):
            copied = self._prefilled(inputs, n) if self._cache_can_be_copied else None
            if copied is None:
                generated = self.model.generate(**inputs, **self._settings(n), logits_processor=[sampler])
                tokens = generated[:, inputs["input_ids"].shape[1] :].tolist()
            else:
                tokens = self._decoded(copied, sampler)
        logprobs: Sequence[list[float] | None] = sampler.logprobs() or [None] * len(tokens)
        return list(zip(seeds, map(self._completion, tokens, logprobs), strict=True))

    def _decoded(self, state: dict[str, Any], sampler: RowSampler) -> list[list[int]]:
        """The tokens of each row; whenever a quarter of the rows has ended, `generate` continues without them.

        Args:
            state: from `_prefilled`, of all rows.
            sampler: picks their tokens.
        """
        cache, alive = state["past_key_values"], [*range(len(state["input_ids"]))]
        tokens: list[list[int]] = [[] for _ in alive]
        left = self.params.max_new_tokens
        while True:
            start = state["input_ids"].shape[1]
            stop = StoppingCriteriaList([_EnoughEnded(self._end, start)])
            settings = self._settings(1) | {"max_new_tokens": left, "stopping_criteria": stop}
            generated = self.model.generate(**state, **settings, logits_processor=[sampler])
            new = generated[:, start:].tolist()
            for row, own in zip(alive, new, strict=True):
                tokens[row] += own
            going = [place for place, own in enumerate(new) if self._end not in own]
            left -= generated.shape[1] - start
            if not going or left <= 0:
                return tokens
            rows = torch.tensor(going, device=generated.device)
            cache.batch_select_indices(rows)
            sampler.keep(rows)
            self._on_row_state(lambda rows_state: rows_state[rows])  # noqa: B023
            alive = [alive[place] for place in going]
            mask = torch.nn.functional.pad(state["attention_mask"], (0, generated.shape[1] - start), value=1)
            state = {"input_ids": generated[rows], "attention_mask": mask[rows], "past_key_values": cache}

    def _prefilled(self, inputs: dict[str, Any], n: int) -> dict[str, Any] | None:
        """Run B prompts without their last token through the model, and copy their cache n times.

        Returns:
            What `generate` needs to continue from there, B·n rows; None where a layer of the cache holds more than keys
            and values (a recurrent state): then `generate` expands the prompts itself, now and from now on.
        """
        shape = inputs["input_ids"].shape
        shorter = {key: value[:, :-1] if value.shape == shape else value for key, value in inputs.items()}
        once = {**CACHED, "do_sample": False, "max_new_tokens": 1, "return_dict_in_generate": True}
        cache = self.model.generate(
            **shorter, **once, pad_token_id=self.processor.tokenizer.pad_token_id
        ).past_key_values
        self._cache_can_be_copied = all(type(layer) in COPYABLE for layer in getattr(cache, "layers", [None]))
        if not self._cache_can_be_copied:
            return None
        cache.batch_repeat_interleave(n)
        cache.layers = [BlockLayer(layer) if type(layer) is DynamicLayer else layer for layer in cache.layers]
        self._on_row_state(lambda state: state.repeat_interleave(n, dim=0))
        rows = {key: inputs[key].repeat_interleave(n, dim=0) for key in ("input_ids", "attention_mask")}
        return {**rows, "past_key_values": cache}

    def _on_row_state(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Change what the model remembers of each row beside its cache."""
        for module in self.model.modules():
            if isinstance(state := getattr(module, ROW_STATE, None), torch.Tensor):
                setattr(module, ROW_STATE, change(state))

    def _kept(self, problem: Problem) -> EncodedPrompt | str:
        """As `_encode`; the prompts that were asked last are kept, since steps of one problem are asked again."""
        # An image is what it is: a problem is found by identity, and stays alive while its prompt is kept.
        return self._prompts(id(problem), lambda: (problem, self._encode(problem)))[1]

    def _encode(self, problem: Problem) -> EncodedPrompt | str:
        """The prompt, or why the processor refused it: Qwen-VL's takes no image 200 times as long as wide."""
        text = prompt_text(self.processor, messages_of(problem))
        try:
            images = [load_image(image) for image in problem.images]
            return encode_prompt(self.processor, text, images)
        except DataError as error:
            return str(error)

    def _settings(self, n: int) -> dict[str, Any]:
        neutral = (
            {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
            if n > 1
            else dict.fromkeys(("temperature", "top_p", "top_k"))
        )
        return {
            **CACHED,
            **neutral,
            "do_sample": n > 1,
            "num_return_sequences": n,
            "max_new_tokens": self.params.max_new_tokens,
            "eos_token_id": self._end,
            "pad_token_id": self.processor.tokenizer.pad_token_id,
        }

    def _completion(self, ids: list[int], logprobs: list[float] | None) -> Completion:
        """Cut at the end of the turn; any other control token stays in the text, to be rejected by name later."""
        stopped = self._end in ids
        content = ids[: ids.index(self._end)] if stopped else ids
        text = self.processor.tokenizer.decode(content, skip_special_tokens=False)
        length = len(content) + stopped
        kept = None if logprobs is None else tuple(logprobs[:length])
        return Completion(text, FinishReason.STOP if stopped else FinishReason.LENGTH, length, kept)


def kernels_for_any_length(device: torch.device) -> AbstractContextManager[None]:
    """Attention without cuDNN's: it plans its kernel anew for every length of the cache, and each token is a new one.

    On an H200 the plans took half of the time: 50 ms a token for a Qwen2.5-7B (docs/performance.md).
    """
    kernels = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    return sdpa_kernel(kernels) if device.type == "cuda" else nullcontext()


@contextmanager
def plain_generation(model: Any) -> Iterator[None]:
    """The model without its checkpoint's way of generating: what is not said in the call is transformers' default."""
    wrapped = getattr(model, "get_base_model", None)  # of PEFT, which hands its own settings down
    models = [model] if wrapped is None else [model, wrapped()]
    given = [some.generation_config for some in models]
    for some, own in zip(models, given, strict=True):
        some.generation_config = GenerationConfig(**{name: getattr(own, name, None) for name in TAKEN})
    try:
        yield
    finally:
        for some, own in zip(models, given, strict=True):
            some.generation_config = own


def _cut(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
