"""`OpenAIGenerator` on a real vLLM: n, seeds, images, prefixes, finish reasons, counts, log-probabilities."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from PIL import Image

from mpo.multimodal.errors import DataError
from mpo.multimodal.loading import load_model, load_processor
from mpo.multimodal.messages import prompt_text, user_message
from mpo.multimodal.prefix import encode_prompt, stack_rows
from rewards.sampling.generator import SamplingParams
from rewards.sampling.openai_generator import OpenAIGenerator
from rewards.types import Completion, FinishReason, Problem
from tests.with_vllm.vllm_server import MODEL, Served

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1200)]  # the first waits for the server

RED, BLUE = (Image.new("RGB", (64, 32), colour) for colour in ("red", "blue"))
PROBLEMS = [Problem(f"p{i}", f"Which colour is {i}?", (picture,)) for i, picture in enumerate((RED, BLUE) * 3)]


def generator(
    served: Served, *, max_new_tokens: int = 24, temperature: float = 1.0, **settings: Any
) -> OpenAIGenerator:
    params = SamplingParams(temperature=temperature, max_new_tokens=max_new_tokens)
    return OpenAIGenerator(served.base_url, MODEL, params, timeout_s=120.0, **settings)


def texts(rows: list[list[Completion]]) -> list[list[str]]:
    return [[completion.text for completion in row] for row in rows]


def test_n_samples_a_problem_and_a_seed_that_repeats_them(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    started = time.perf_counter()
    drawn = generator(served, concurrency=8).generate(PROBLEMS, 4, seed=3)
    seconds = time.perf_counter() - started
    with capsys.disabled():
        print(f"\n{len(PROBLEMS)} requests of n=4, 24 tokens, concurrency 8: {len(PROBLEMS) / seconds:.1f} requests/s")
    assert [len(set(row)) for row in texts(drawn)] == [4] * 6
    assert texts(generator(served, concurrency=1).generate(PROBLEMS, 4, seed=3)) == texts(drawn)
    assert texts(generator(served).generate(PROBLEMS, 4, seed=4)) != texts(drawn)
    alone = generator(served, samples_a_request=1).generate(PROBLEMS[:1], 2, seed=3)
    assert texts(alone)[0][0] == texts(generator(served, samples_a_request=1).generate(PROBLEMS[:1], 1, seed=3))[0][0]


def test_the_picture_is_used(served: Served) -> None:
    same = [Problem("a", "Which?", (RED,)), Problem("b", "Which?", (BLUE,)), Problem("c", "Which?", (RED,))]
    ((red,), (blue,), (again,)) = texts(generator(served, temperature=0.0).generate(same, 1, seed=0))
    assert red == again != blue


def test_a_prefix_is_continued_exactly_where_it_ends(served: Served) -> None:
    """Greedy: the rest of an answer, given its beginning, is the rest. Only where the text shows every token."""
    greedy = generator(served, temperature=0.0, max_new_tokens=12)
    whole = [completion for (completion,) in greedy.generate(PROBLEMS, 1, seed=0)]
    shown = [place for place, completion in enumerate(whole) if len(completion.text) == completion.num_tokens == 12]
    assert shown
    for cut in (1, 5, 9):
        beginnings = [whole[place].text[:cut] for place in shown]
        rest = greedy.generate([PROBLEMS[place] for place in shown], 1, prefixes=beginnings, seed=0)
        assert all(new.text.startswith(whole[place].text[cut:]) for (new,), place in zip(rest, shown, strict=True))


def test_finish_reasons_and_token_counts(served: Served) -> None:
    rows = generator(served, max_new_tokens=120, samples_a_request=1).generate(PROBLEMS, 4, seed=1)
    every = [completion for row in rows for completion in row]
    assert {completion.finish_reason for completion in every} == {FinishReason.STOP, FinishReason.LENGTH}
    for completion in every:
        cut = completion.finish_reason is FinishReason.LENGTH
        assert completion.num_tokens == 120 if cut else 1 <= completion.num_tokens < 120


def test_logprobs_are_the_policys_own(served: Served) -> None:
    """Of the sampled text at temperature 0.5 they are those at temperature 1, in this process and on the server."""
    drawn = generator(served, temperature=0.5, logprobs=True, max_new_tokens=12).generate(PROBLEMS[:2], 3, seed=0)
    processor, model = load_processor(served.folder), load_model(served.folder).eval()
    compared = 0
    for problem, row in zip(PROBLEMS, drawn, strict=False):
        prompt = encode_prompt(processor, prompt_text(processor, [user_message(problem.question, 1)]), problem.images)
        for completion in row:
            assert len(completion.token_logprobs) == completion.num_tokens
            ids = processor.tokenizer(completion.text, add_special_tokens=False)["input_ids"]
            if completion.finish_reason is FinishReason.STOP or len(ids) != completion.num_tokens:
                continue  # the text does not show every token
            inputs = stack_rows([prompt], [ids], pad_token_id=processor.tokenizer.pad_token_id)
            with torch.inference_mode():
                logits = model(**{**inputs, **prompt.image_features, "labels": None}).logits[0, -len(ids) - 1 : -1]
            expected = logits.log_softmax(dim=-1)[range(len(ids)), ids].tolist()
            assert completion.token_logprobs == pytest.approx(expected, abs=1e-4)
            compared += 1
    assert compared > 0


def test_what_the_server_refuses_is_a_sample_without_completion(served: Served) -> None:
    too_long, too_many = Problem("long", "why? " * 200), Problem("many", "Which?", (RED,) * 5)
    problems = [too_long, PROBLEMS[0], too_many]
    samples = {s.problem: s for some in generator(served).draw(problems, 1, seed=0) for s in some}
    assert samples[1].completion is not None
    for place in (0, 2):
        assert samples[place].completion is None
        assert samples[place].reason.startswith("the server: HTTP 400")
    with pytest.raises(DataError, match="HTTP 400"):
        generator(served).generate([too_long], 1, seed=0)
