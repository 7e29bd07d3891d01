"""Sampling with a tiny real model, held against `model.generate` run plainly, row by row."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers.cache_utils import DynamicLayer

from mpo.multimodal.errors import ConfigError, DataError
from mpo.multimodal.loading import load_model
from mpo.multimodal.messages import control_tokens_in
from recipes.worlds.digits.world import scenes, to_problem
from rewards.sampling import transformers_generator
from rewards.sampling.block_cache import BLOCK, BlockLayer
from rewards.sampling.transformers_generator import SamplingParams, TransformersGenerator
from rewards.types import Completion, FinishReason, Problem

PROBLEMS = [
    *(to_problem(scene, f"p{i}") for i, scene in enumerate(scenes("test", 4, 1))),
    Problem("text", "What is 5?"),
]
GREEDY = SamplingParams(temperature=0, max_new_tokens=16)
SAMPLED = SamplingParams(max_new_tokens=16)
END = "<|im_end|>"


def texts(drawn: list[list[Completion]]) -> list[list[str]]:
    return [[completion.text for completion in row] for row in drawn]


def plainly(policy: Any, processor: Any, problem: Problem, prefix: str = "") -> str:
    """One row, no padding, whole prompt through the processor."""
    picture = "<IMG_CONTEXT>\n" if problem.images else ""
    text = f"<|im_start|>user\n{picture}{problem.question}<|im_end|>\n<|im_start|>assistant\n{prefix}"
    images = [list(problem.images)] if problem.images else None
    inputs = processor(text=[text], images=images, return_tensors="pt")
    out = policy.generate(**inputs, do_sample=False, max_new_tokens=16)[0, inputs["input_ids"].shape[1] :]
    return processor.tokenizer.decode(out).split(END)[0]


def ends_soon(policy_folder: Path, processor: Any, boost: float) -> Any:
    """The tiny model with a pull towards ending its turn: a larger head row for that token, read off the mean state."""
    model = load_model(policy_folder).eval()
    end = processor.tokenizer.convert_tokens_to_ids(END)
    head = torch.nn.Linear(model.lm_head.in_features, model.lm_head.out_features)
    head.weight.data.copy_(model.lm_head.weight.data)
    head.bias.data.zero_()
    head.bias.data[end] = boost
    model.lm_head = head
    return model


def test_greedy_equals_plain_generate(policy: Any, processor: Any) -> None:
    """Left padding, and images of different widths beside a prompt without one, change no token."""
    expected = [[plainly(policy, processor, problem)] for problem in PROBLEMS]
    assert texts(TransformersGenerator(policy, processor, GREEDY).generate(PROBLEMS, 1, seed=0)) == expected
    assert len({text for (text,) in expected}) > 1


def test_n_copies_of_a_prompt_see_the_same_picture(policy: Any, processor: Any) -> None:
    """top_k = 1 makes sampling greedy: each of n rows must continue as one row alone, all tiles in place."""
    forced = TransformersGenerator(policy, processor, replace(SAMPLED, top_k=1), batch_rows=12)
    expected = [[plainly(policy, processor, problem)] * 3 for problem in PROBLEMS]
    assert texts(forced.generate(PROBLEMS, 3, seed=0)) == expected


def test_the_picture_matters(policy: Any, processor: Any) -> None:
    generator = TransformersGenerator(policy, processor, GREEDY)
    blank = replace(PROBLEMS[0], images=(Image.new("RGB", PROBLEMS[0].images[0].size, "white"),))
    (seen,), (unseen,) = texts(generator.generate([PROBLEMS[0], blank], 1, seed=0))
    assert seen != unseen


def test_prefixes_are_continued_and_not_repeated(policy: Any, processor: Any) -> None:
    prefixes = ["Red is 3\n\n", "", "Red is 3\n\nBlue is 9\n\n", "3 + ", "Final answer: "]
    drawn = TransformersGenerator(policy, processor, GREEDY).generate(PROBLEMS, 1, prefixes=prefixes, seed=0)
    expected = [[plainly(policy, processor, p, prefix)] for p, prefix in zip(PROBLEMS, prefixes, strict=True)]
    assert texts(drawn) == expected
    assert not any(prefix and text.startswith(prefix) for prefix, (text,) in zip(prefixes, expected, strict=True))


def test_one_prefix_a_problem(policy: Any, processor: Any) -> None:
    with pytest.raises(ValueError, match="shorter"):
        TransformersGenerator(policy, processor, GREEDY).generate(PROBLEMS, 1, prefixes=["a"], seed=0)


def test_same_seed_same_text(policy: Any, processor: Any) -> None:
    generator = TransformersGenerator(policy, processor, SAMPLED)
    torch.manual_seed(1)
    first = texts(generator.generate(PROBLEMS, 3, seed=7))
    torch.manual_seed(2)  # the global random state plays no part
    assert texts(generator.generate(PROBLEMS, 3, seed=7)) == first
    assert texts(generator.generate(PROBLEMS, 3, seed=8)) != first
    assert all(len(set(row)) == 3 for row in first)


def test_drawing_leaves_the_global_random_state_alone(policy: Any, processor: Any) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    TransformersGenerator(policy, processor, SAMPLED).generate(PROBLEMS[:1], 2, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("prefix", ["", "Red is 3\n\n"])
def test_a_draw_depends_on_no_neighbour(policy: Any, processor: Any, prefix: str) -> None:
    """Alone, in company, in another order, with other batches and another n: the same texts for the same samples."""
    prefixes = [prefix] * len(PROBLEMS)
    drawn = TransformersGenerator(policy, processor, SAMPLED).generate(PROBLEMS, 3, prefixes=prefixes, seed=7)
    for generator, order, n in (
        (TransformersGenerator(policy, processor, SAMPLED, batch_rows=1), range(5), 3),
        (TransformersGenerator(policy, processor, SAMPLED, batch_rows=6), reversed(range(5)), 3),
        (TransformersGenerator(policy, processor, SAMPLED, rows_a_problem=2), range(5), 4),
        (TransformersGenerator(policy, processor, SAMPLED), [2], 1),
    ):
        places = list(order)
        other = generator.generate([PROBLEMS[i] for i in places], n, prefixes=[prefix] * len(places), seed=7)
        common = min(n, 3)
        assert [row[:common] for row in texts(other)] == [texts(drawn)[i][:common] for i in places]


def test_draw_leaves_out_what_is_done_and_skips_calls(policy: Any, processor: Any) -> None:
    """Two problems per call, two rows per problem; a call with nothing to do is skipped, the others give a part."""
    generator = TransformersGenerator(policy, processor, SAMPLED, batch_rows=4, rows_a_problem=2)
    every = {(s.problem, s.index): s for batch in generator.draw(PROBLEMS, 3, seed=0) for s in batch}
    assert sorted(every) == [(place, index) for place in range(5) for index in range(3)]
    done = {(0, 0), (1, 2), (2, 0), (2, 1), (3, 0), (3, 1)}
    batches = list(generator.draw(PROBLEMS, 3, seed=0, done=done))
    assert [[(s.problem, s.index) for s in batch] for batch in batches] == [
        [(0, 1), (1, 0), (1, 1)], [(0, 2)], [(2, 2), (3, 2)], [(4, 0), (4, 1)], [(4, 2)],
    ]  # fmt: skip
    assert all(s == every[s.problem, s.index] for batch in batches for s in batch)
    assert not list(generator.draw(PROBLEMS, 3, seed=0, done=set(every)))


def test_logprobs_are_those_of_a_forward_pass(policy: Any, processor: Any) -> None:
    """Kept values against a plain pass over prompt and text, for texts that go back to their tokens."""
    params = replace(SAMPLED, temperature=2.0, max_new_tokens=3)
    generator = TransformersGenerator(policy, processor, params, keep_logprobs=True)
    question = Problem("text", "What is 5?")
    (drawn,) = generator.generate([question], 64, seed=3)
    text = f"<|im_start|>user\n{question.question}<|im_end|>\n<|im_start|>assistant\n"
    prompt = processor(text=[text], return_tensors="pt")["input_ids"]
    compared = 0
    for completion in drawn:
        assert completion.token_logprobs is not None
        assert len(completion.token_logprobs) == completion.num_tokens
        ids = processor.tokenizer(completion.text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        if ids.shape[1] != 3 or "\N{REPLACEMENT CHARACTER}" in completion.text:
            continue
        with torch.inference_mode():
            logits = policy(input_ids=torch.cat([prompt, ids], dim=1)).logits[0, prompt.shape[1] - 1 : -1]
        expected = logits.log_softmax(dim=-1).gather(1, ids[0][:, None])[:, 0]
        assert completion.token_logprobs == pytest.approx(expected.tolist(), abs=1e-4)
        compared += 1
    assert compared >= 5


def test_two_batches_do_not_share_their_draw(policy: Any, processor: Any) -> None:
    """One problem asked twice under two ids, one batch each, gets two different texts."""
    twins = [PROBLEMS[0], replace(PROBLEMS[0], id="twin")]
    (first,), (second,) = texts(
        TransformersGenerator(policy, processor, SAMPLED, batch_rows=1).generate(twins, 1, seed=0)
    )
    assert first != second


@pytest.mark.parametrize(
    ("n", "batch_rows", "sizes"), [(1, 2, [2, 2, 1]), (2, 5, [2, 2, 1]), (3, 2, [1] * 5), (2, 64, [5])]
)
def test_batch_rows_and_n(policy: Any, processor: Any, n: int, batch_rows: int, sizes: list[int]) -> None:
    """A call takes batch_rows // n problems, at least one, and reads each prompt once, whatever n is."""
    rows: list[int] = []
    layer = policy.model.language_model.layers[0]
    hook = layer.register_forward_pre_hook(
        lambda module, args: rows.append(args[0].shape[0]) if args[0].shape[1] > 1 else None
    )
    try:
        drawn = TransformersGenerator(policy, processor, SAMPLED, batch_rows=batch_rows).generate(PROBLEMS, n, seed=0)
    finally:
        hook.remove()
    assert [len(row) for row in drawn] == [n] * len(PROBLEMS)
    assert rows == sizes


def test_a_cache_that_cannot_be_copied_is_found_out_once(
    policy: Any, processor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if every layer had a recurrent state: prompts are expanded instead, with one prompt pass too many in all."""
    forced = replace(SAMPLED, top_k=1)
    expected = texts(TransformersGenerator(policy, processor, forced, batch_rows=4).generate(PROBLEMS, 2, seed=0))
    monkeypatch.setattr("rewards.sampling.transformers_generator.COPYABLE", ())
    rows: list[int] = []
    hook = policy.model.language_model.layers[0].register_forward_pre_hook(
        lambda module, args: rows.append(args[0].shape[0]) if args[0].shape[1] > 1 else None
    )
    try:
        drawn = TransformersGenerator(policy, processor, forced, batch_rows=4).generate(PROBLEMS, 2, seed=0)
    finally:
        hook.remove()
    assert texts(drawn) == expected
    assert rows == [2, 4, 4, 2]


def test_finish_reasons(policy_folder: Path, policy: Any, processor: Any) -> None:
    (cut,) = TransformersGenerator(policy, processor, GREEDY).generate(PROBLEMS[:1], 1, seed=0)[0]
    assert (cut.finish_reason, cut.num_tokens) == (FinishReason.LENGTH, 16)

    eager = ends_soon(policy_folder, processor, boost=1e4)
    (ended,) = TransformersGenerator(eager, processor, GREEDY).generate(PROBLEMS[:1], 1, seed=0)[0]
    assert ended == Completion("", FinishReason.STOP, 1)


def test_rows_that_end_early_are_not_polluted_by_padding(policy_folder: Path, processor: Any) -> None:
    """In a batch some rows end while others go on; the padding behind the end is in neither text nor count."""
    model = ends_soon(policy_folder, processor, boost=3.0)
    drawn = [c for row in TransformersGenerator(model, processor, SAMPLED).generate(PROBLEMS, 8, seed=0) for c in row]
    assert {c.finish_reason for c in drawn} == {FinishReason.STOP, FinishReason.LENGTH}
    for completion in drawn:
        assert END not in completion.text
        if completion.finish_reason is FinishReason.LENGTH:
            assert completion.num_tokens == 16
        else:
            assert 1 <= completion.num_tokens <= 16
            assert not completion.text.endswith("<|endoftext|>" * 2)
    assert len({c.num_tokens for c in drawn if c.finish_reason is FinishReason.STOP}) > 2


def test_control_tokens_stay_visible(policy: Any, processor: Any) -> None:
    """A random model samples them now and then; hiding them would make such an answer look clean."""
    drawn = TransformersGenerator(policy, processor, replace(SAMPLED, max_new_tokens=48)).generate(PROBLEMS, 8, seed=0)
    found = {token for row in drawn for c in row for token in control_tokens_in(processor, c.text)}
    assert found
    assert END not in found


def test_the_checkpoints_generation_config_does_not_bend_the_draw(
    policy_folder: Path, policy: Any, processor: Any
) -> None:
    """Qwen2.5-VL ships repetition_penalty, top_k = 1 and a low temperature in generation_config.json."""
    bent = load_model(policy_folder).eval()
    settings = {
        "repetition_penalty": 5.0,
        "temperature": 0.1,
        "top_k": 1,
        "top_p": 0.001,
        "min_p": 0.5,
        "do_sample": True,
    }
    for key, value in settings.items():
        setattr(bent.generation_config, key, value)
    for params, n in ((GREEDY, 1), (SAMPLED, 2)):
        plain, other = (
            TransformersGenerator(m, processor, params).generate(PROBLEMS, n, seed=0) for m in (policy, bent)
        )
        assert other == plain


BENDING = {
    **{"bad_words_ids": [[5]], "suppress_tokens": [5, 6], "forced_eos_token_id": 7, "sequence_bias": [[[5], 5.0]]},
    **{"exponential_decay_length_penalty": [2, 1.5], "encoder_repetition_penalty": 3.0, "guidance_scale": 3.0},
    **{"max_time": 1e-9, "begin_suppress_tokens": [5], "forced_bos_token_id": 5, "no_repeat_ngram_size": 1},
    **{
        "typical_p": 0.1,
        "epsilon_cutoff": 0.1,
        "eta_cutoff": 0.1,
        "top_h": 0.1,
        "min_new_tokens": 9,
        "min_length": 9,
    },
    **{"num_beams": 2, "num_beam_groups": 2, "diversity_penalty": 1.0, "length_penalty": 3.0, "early_stopping": True},
    **{"remove_invalid_values": True, "renormalize_logits": True, "eos_token_id": [5, 6], "max_length": 3},
    **{"watermarking_config": {"bias": 5.0, "seeding_scheme": "lefthash", "greenlist_ratio": 0.25}},
}
CRASHING = {
    **{"stop_strings": ["a"], "num_return_sequences": 3, "penalty_alpha": 0.6, "prompt_lookup_num_tokens": 3},
    **{"token_healing": True, "return_dict_in_generate": True, "cache_implementation": "quantized", "constraints": [1]},
    **{"dola_layers": "high", "is_assistant": True, "compile_config": {"fullgraph": True}, "output_scores": True},
    **{"use_cache": False, "custom_generate": "evil/repo", "output_attentions": True, "output_logits": True},
}


@pytest.mark.parametrize("key", [*BENDING, *CRASHING])
def test_no_key_of_a_generation_config_counts(key: str, policy_folder: Path, policy: Any, processor: Any) -> None:
    """Whatever a checkpoint asks for; and afterwards the model holds what it held."""
    bent = load_model(policy_folder).eval()
    setattr(bent.generation_config, key, (BENDING | CRASHING)[key])
    for params, n in ((GREEDY, 1), (SAMPLED, 2)):
        plain, other = (
            TransformersGenerator(m, processor, params).generate(PROBLEMS[:1], n, seed=0) for m in (policy, bent)
        )
        assert other == plain
    assert getattr(bent.generation_config, key) == (BENDING | CRASHING)[key]


def test_greedy_takes_one_completion(policy: Any, processor: Any) -> None:
    for params, n in ((GREEDY, 2), (SAMPLED, 0)):
        with pytest.raises(ConfigError, match=f"cannot draw {n} completions at temperature"):
            TransformersGenerator(policy, processor, params).generate(PROBLEMS, n, seed=0)


def test_nothing_to_ask(policy: Any, processor: Any) -> None:
    assert TransformersGenerator(policy, processor, SAMPLED).generate([], 4, seed=0) == []


def test_an_unreadable_image_is_named(policy: Any, processor: Any, tmp_path: Path) -> None:
    problem = replace(PROBLEMS[0], images=(tmp_path / "gone.png",))
    with pytest.raises(DataError, match=r"gone\.png"):
        TransformersGenerator(policy, processor, SAMPLED).generate([problem], 1, seed=0)


def test_rows_that_have_ended_leave_the_batch(
    monkeypatch: pytest.MonkeyPatch, policy_folder: Path, processor: Any
) -> None:
    """The same texts and log-probabilities with fewer rows through the model."""
    model = ends_soon(policy_folder, processor, boost=3.0)
    rows: list[int] = []
    model.model.language_model.layers[0].register_forward_pre_hook(lambda module, args: rows.append(args[0].shape[0]))

    def drawn() -> tuple[list[list[Completion]], int]:
        rows.clear()
        found = TransformersGenerator(model, processor, SAMPLED, keep_logprobs=True).generate(PROBLEMS, 8, seed=0)
        return found, sum(rows)

    leaving, fewer = drawn()
    never = lambda self, ids, scores, **how: torch.zeros(len(ids), dtype=torch.bool)  # noqa: E731
    monkeypatch.setattr(transformers_generator._EnoughEnded, "__call__", never)
    staying, all_rows = drawn()
    assert texts(leaving) == texts(staying)
    for one, other in zip([c for own in leaving for c in own], [c for own in staying for c in own], strict=True):
        assert one.token_logprobs == pytest.approx(other.token_logprobs, abs=1e-4)
    assert fewer < 0.8 * all_rows


def test_a_prompt_is_encoded_once_for_all_its_prefixes(
    policy: Any, processor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    call = type(processor).__call__
    monkeypatch.setattr(type(processor), "__call__", lambda self, *a, **k: calls.append(1) or call(self, *a, **k))
    generator = TransformersGenerator(policy, processor, SAMPLED, batch_rows=4)
    generator.generate([PROBLEMS[0]] * 6, 2, prefixes=[f"Red is {i}" for i in range(6)], seed=0)
    assert len(calls) == 1


def test_a_cache_in_blocks_is_transformers_own(policy: Any) -> None:
    """Over several blocks, and with rows taken out in between."""
    draw = torch.Generator().manual_seed(0)
    plain = DynamicLayer()
    plain.update(*(torch.randn(4, 2, 3, 8, generator=draw) for _ in range(2)))
    blocks = BlockLayer(plain)
    for step in range(2 * BLOCK):
        new = [torch.randn(len(plain.keys), 2, 1, 8, generator=draw) for _ in range(2)]
        for one, other in zip(blocks.update(*new), plain.update(*new), strict=True):
            assert torch.equal(one, other)
        if step == BLOCK // 2:
            for layer in (plain, blocks):
                layer.batch_select_indices(torch.tensor([0, 3]))
    assert blocks.get_seq_length() == plain.get_seq_length() == 3 + 2 * BLOCK
