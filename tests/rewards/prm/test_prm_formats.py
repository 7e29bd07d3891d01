"""Rows of other PRMs on a tokenizer with their published special tokens: token sequences, scores, a user's own row."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from mpo.multimodal.errors import ConfigError, DataError
from mpo.multimodal.loading import load_processor
from mpo.multimodal.text_processor import TextProcessor
from rewards.errors import StepAlignmentError
from rewards.prm.formats import FORMATS, ORM, QWEN_MATH_PRM, STEP_END, STEP_TAG, VISUALPRM, PRMFormat, find_format
from rewards.prm.inverse import check_row
from rewards.prm.model_prm import ModelPRM, load_format, load_weights, save_format
from rewards.prm.rendering import _one_turn, _turns, render
from rewards.steps import merge_to_at_most, split_on_blank_lines, steps_of
from rewards.types import Problem
from tests.rewards.conversion.chat_checkpoints import write_qwen_tokenizer
from tests.rewards.prm.test_label_head import checkpoint, expected_logits  # noqa: F401  (a fixture)

PROBLEM = Problem("p7", "How many apples?")
STEPS = ["Step 1: we count 1 + 2 = 3 apples.", "3 - 2 = 1", "Answer: \\boxed{1}"]
QWEN_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe helpful.<|im_end|>\n{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
RLHFLOW = "name: rlhflow\nlayout: turns\nfirst_turn: '{question} {step}'\nmax_steps: 64\n"
MATH_SHEPHERD = 'name: math_shepherd\nlayout: tag\ntag: ки\nseparator: "\\n"\nmax_steps: 64\n'


def write_tokenizer(folder: Path, template: str, *tokens: str, bos: str | None = None) -> Any:
    """Qwen2's kind of tokenizer with more special tokens and another chat template."""
    folder.mkdir(exist_ok=True)
    write_qwen_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": [*tokens]}, replace_extra_special_tokens=False)
    if bos:
        tokenizer.add_special_tokens({"bos_token": bos})
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return tokenizer


@pytest.fixture(scope="module")
def qwen(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """A Qwen2.5-Math-PRM folder, tokenizer included; no `prm.json`."""
    folder = tmp_path_factory.mktemp("qwen") / "prm"
    vocab_size = len(write_tokenizer(folder, QWEN_TEMPLATE, "<extra_0>"))
    tensors = load_file(checkpoint / "model.safetensors")
    old = tensors["model.embed_tokens.weight"]
    tensors["model.embed_tokens.weight"] = torch.cat([old, old[: vocab_size - len(old)].flip(1)])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((checkpoint / "config.json").read_text()) | {"vocab_size": vocab_size}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def published_ids(tokenizer: Any, question: str, steps: list[str]) -> list[int]:
    """Qwen2.5-Math-PRM's model card: the steps joined by the marker as one assistant turn."""
    messages = [
        {"role": "system", "content": QWEN_MATH_PRM.system},
        {"role": "user", "content": question},
        {"role": "assistant", "content": "".join(step + "<extra_0>" for step in steps)},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def row_of(processor: Any, prm_format: PRMFormat, steps: list[str], problem: Problem = PROBLEM) -> Any:
    (row,) = render(processor, prm_format, problem, [steps_of(steps)], [])
    return [*row.prompt.input_ids.tolist(), *row.continuation], list(row.read_positions)


# ---- Qwen2.5-Math-PRM ----


def test_qwen_math_prm_golden(qwen: Path) -> None:
    """The ids of the published usage up to the last marker, read at each marker."""
    processor = load_processor(qwen)
    ids, positions = row_of(processor, QWEN_MATH_PRM, STEPS)
    published = published_ids(processor.tokenizer, PROBLEM.question, STEPS)
    marker = processor.tokenizer.convert_tokens_to_ids("<extra_0>")
    assert ids == published[: len(ids)]
    assert processor.tokenizer.decode(published[len(ids) :]) == "<|im_end|>\n"
    assert positions == [i for i, token in enumerate(published) if token == marker]
    assert len(positions) == 3


def test_qwen_math_prm_scores_by_hand(qwen: Path) -> None:
    """Softmax of the head's two logits at each marker, the second column; N solutions share the prompt; in float32."""
    prm = ModelPRM(load_weights(qwen, QWEN_MATH_PRM).eval(), load_processor(qwen), QWEN_MATH_PRM)
    solutions = ["\n\n".join(STEPS), "\n\n".join([*STEPS[:1], "3 - 2 = 2", "so 2"]), "0"]
    found = prm.score(PROBLEM, solutions)
    marker = prm.processor.tokenizer.convert_tokens_to_ids("<extra_0>")
    for solution, scores in zip(solutions, found, strict=True):
        ids = torch.tensor(published_ids(prm.processor.tokenizer, PROBLEM.question, solution.split("\n\n")))
        expected = expected_logits(qwen, ids).softmax(-1)[ids == marker, 1]
        assert scores.values == pytest.approx(expected.tolist(), abs=1e-5)
    assert len({round(value, 4) for scores in found for value in scores.values}) > 4


def test_the_marker_in_a_text_is_refused_or_broken_up(qwen: Path) -> None:
    """A marker of the text's own would be read by the model as the end of a step, special token or not."""
    prm = ModelPRM.load(qwen, prm_format="qwen_math_prm")
    marker = prm.processor.tokenizer.convert_tokens_to_ids("<extra_0>")
    ids, positions = row_of(prm.processor, QWEN_MATH_PRM, STEPS, replace(PROBLEM, question="How<extra_0> many?"))
    assert ids.count(marker) == len(positions) == 3
    assert prm.unscorable("one<extra_0>two") == "control token"
    with pytest.raises(StepAlignmentError, match="problem 'p7', rollout 0, step 1: contains the control token"):
        row_of(prm.processor, QWEN_MATH_PRM, ["one", "two<extra_0>"])


def test_pictures_are_refused_by_a_text_model(qwen: Path) -> None:
    """Never dropped in silence: a PRM that sees no image would judge the text alone."""
    prm = ModelPRM.load(qwen, prm_format="qwen_math_prm")
    with pytest.raises(DataError, match="has images, but the model is text-only"):
        prm.score(replace(PROBLEM, images=(Image.new("RGB", (32, 32)),)), ["one"])


def test_a_probability_of_zero_keeps_its_step(qwen: Path) -> None:
    """P(right) that underflows to 0 is the score 0 of its own step; filtering zeros would shift the scores."""
    prm = ModelPRM.load(qwen, prm_format="qwen_math_prm")
    with torch.no_grad():
        prm.model.score[2].bias.copy_(torch.tensor([1e4, -1e4]))
    (scores,) = prm.score(PROBLEM, ["\n\n".join(STEPS)])
    assert scores.values == (0.0, 0.0, 0.0)


def test_both_paddings_give_the_same_scores(qwen: Path) -> None:
    """A tokenizer that pads on the left changes nothing: rows are padded by us, and positions are absolute."""
    prm = ModelPRM.load(qwen, prm_format="qwen_math_prm")
    items = [(Problem("a", "How many?"), "one"), (Problem("b", "How many apples are in the box?"), "\n\n".join(STEPS))]
    found = {}
    for side in ("right", "left"):
        prm.processor.tokenizer.padding_side, prm.shares = side, False
        found[side] = [value for scores in prm.score_many(items) for value in scores.values]
    alone = [value for problem, text in items for value in prm.score(problem, [text])[0].values]
    assert found["left"] == found["right"] == pytest.approx(alone, abs=1e-5)


# ---- ORM ----


def test_orm_reads_the_last_position_only(processor: Any, policy: Any) -> None:
    """VisualPRM's outcome row: the whole response in the first turn, one read position, the row's last."""
    (row,) = render(processor, ORM, PROBLEM, [merge_to_at_most(steps_of(STEPS), max_steps=1)], [])
    ids = [*row.prompt.input_ids.tolist(), *row.continuation]
    assert row.read_positions == (len(ids) - 1,)
    text = processor.tokenizer.decode(ids)
    assert text == (
        "<|im_start|>user\n### Question:\nHow many apples?\n\n### Solution Process:\n"
        + "\n\n".join(STEPS)
        + "<|im_end|>\n<|im_start|>assistant\n"
    )
    prm = ModelPRM(policy, processor, ORM)
    (scores,) = prm.score(PROBLEM, ["\n\n".join(STEPS)])
    plus, minus = ORM.label_ids(processor.tokenizer)
    with torch.no_grad():
        logits = policy(input_ids=torch.tensor([ids])).logits[0, -1]
    assert scores.values == pytest.approx([torch.sigmoid(logits[plus] - logits[minus]).item()], abs=1e-5)
    (given,) = prm.score_steps([(PROBLEM, STEPS)])
    assert given.values == scores.values * 3


# ---- a user's own row ----


@pytest.fixture(scope="module")
def rlhflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with Llama 3's special tokens, as RLHFlow's PRMs have them, and its row as YAML."""
    folder = tmp_path_factory.mktemp("rlhflow") / "prm"
    special = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer = write_tokenizer(folder, LLAMA_TEMPLATE, *special, bos="<|begin_of_text|>")
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **size, initializer_range=0.3)).save_pretrained(folder)
    (folder / "row.yaml").write_text(RLHFLOW)
    return folder


def test_rlhflow_row_golden_and_scores(rlhflow: Path) -> None:
    """A user turn per step, `+` as each assistant turn; read at the token before it: RLHFlow's position −3."""
    prm = ModelPRM.load(rlhflow, prm_format=str(rlhflow / "row.yaml"))
    tokenizer = prm.processor.tokenizer
    plus, minus = prm.format.label_ids(tokenizer)
    conversation: list[dict[str, str]] = []
    expected = []
    for index, step in enumerate(STEPS):
        content = f"{PROBLEM.question} {step}" if index == 0 else step
        conversation += [{"role": "user", "content": content}, {"role": "assistant", "content": "+"}]
        text = tokenizer.apply_chat_template(conversation, tokenize=False)
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            logits = prm.model(input_ids=ids).logits[0, -3]
        expected.append(logits[[plus, minus]].softmax(-1)[0].item())
    (scores,) = prm.score(PROBLEM, ["\n\n".join(STEPS)])
    assert scores.values == pytest.approx(expected, abs=1e-5)
    row, positions = row_of(prm.processor, prm.format, STEPS)
    assert [*row, *ids[0, -2:].tolist()] == ids[0].tolist()
    assert row.count(tokenizer.bos_token_id) == 1
    assert [row[position + 1] for position in positions[:-1]] == [plus, plus]


def test_math_shepherd_row_golden(tmp_path: Path) -> None:
    """Question, space, steps with ` ки` behind each, newline between; the bare template stands in the tokenizer."""
    bare = "{% for m in messages %}{{ m['content'] }}{% endfor %} "
    processor = TextProcessor(write_tokenizer(tmp_path / "prm", bare, "ки"))
    (tmp_path / "my_prm.yaml").write_text(MATH_SHEPHERD)
    row = find_format(str(tmp_path / "my_prm.yaml"))
    ids, positions = row_of(processor, row, STEPS)
    assert processor.tokenizer.decode(ids[: positions[-1] + 1]) == "How many apples? " + "\n".join(
        f"{step}ки" for step in STEPS
    )
    assert {ids[position] for position in positions} == {processor.tokenizer.convert_tokens_to_ids("ки")}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: x\nlayout: tag\nseperator: '\n'", "seperator"),
        ("name: x\nlayout: columns", "layout"),
        ("name: x\nlayout: tag\nmax_steps: many", "max_steps"),
        ("name: x\nlayout: turns\nreadout: head", "a label head is read at a step"),
        ("name: x\nlayout: turns\nfirst_turn: '{step} {question}'", "first_turn must hold"),
        ("name: x\nlayout: turns\nfirst_turn: '{question.__class__} {step}'", "first_turn must hold"),
        ("layout: tag", "name"),
        ("- tag", "is not a PRM contract"),
        ("!!python/object/apply:os.system ['true']", "cannot be read as YAML"),
    ],
)
def test_a_row_that_cannot_work_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=expected):
        find_format(str(file))


def test_where_a_row_comes_from(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown prm_format 'visual_prm': expected one of visualprm, .*, or a YAML"):
        find_format("visual_prm")
    with pytest.raises(ConfigError, match="cannot be read as YAML"):
        find_format(str(tmp_path / "missing.yaml"))
    save_format(tmp_path, STEP_TAG)
    assert load_format(tmp_path, "step_tag") == load_format(tmp_path) == STEP_TAG
    with pytest.raises(ConfigError, match="prm_format=orm differs from it"):
        load_format(tmp_path, "orm")
    old = {key: value for key, value in STEP_TAG.to_dict().items() if key not in ("separator", "readout")}
    (tmp_path / "prm.json").write_text(json.dumps(old))  # as written before the two fields were there
    assert load_format(tmp_path) == STEP_TAG


def test_names_are_unique() -> None:
    assert all(name == row.name for name, row in FORMATS.items())


# ---- the checked inverse ----


@pytest.mark.parametrize("prm_format", [VISUALPRM, STEP_TAG, STEP_END], ids=lambda row: row.name)
def test_every_wrong_position_is_an_error(processor: Any, prm_format: PRMFormat) -> None:
    """Read back, a row gives its steps; with any position one off in either direction, or one missing, an error."""
    steps = steps_of(["+", "3 + 4\n+ -\nuser", "Final answer: 7"])
    layout = _turns if prm_format.layout == "turns" else _one_turn
    frame, (row,) = layout(processor, prm_format, PROBLEM, [steps], [])
    ids = [*row.prompt.input_ids.tolist(), *row.continuation]
    texts = [step.text for step in steps]
    good = list(row.read_positions)
    read = frame.read_back(processor.tokenizer, ids, good, where="here")
    assert read == ["".join(text.split()) for text in texts]
    check_row(processor.tokenizer, frame, ids, good, texts, where="here")
    for marker in range(3):
        for off in (-1, 1):
            wrong = [position + off * (i == marker) for i, position in enumerate(good)]
            with pytest.raises(StepAlignmentError, match=r"here, marker \d"):
                check_row(processor.tokenizer, frame, ids, wrong, texts, where="here")
    with pytest.raises(StepAlignmentError, match="here: 3 steps, 2 read positions"):
        check_row(processor.tokenizer, frame, ids, good[:2], texts, where="here")


def test_a_template_that_changes_a_step_is_an_error() -> None:
    """A chat template that lowers or cuts text would score something else than what was asked."""
    from recipes.worlds.digits.policy import build_processor

    processor = build_processor()
    processor.chat_template = processor.chat_template.replace("{{ block['text'] }}", "{{ block['text'] | lower }}")
    with pytest.raises(StepAlignmentError, match="PRM format 'visualprm', problem 'p7', rollout 0, marker 0"):
        render(processor, VISUALPRM, PROBLEM, [split_on_blank_lines("Red is 3\n\nBlue is 4")], [])


def test_an_empty_step_is_refused(processor: Any) -> None:
    steps = steps_of(["one", "two"])
    with pytest.raises(StepAlignmentError, match="problem 'p7', rollout 0, step 1: is empty"):
        render(processor, STEP_TAG, PROBLEM, [(steps[0], replace(steps[1], text=" \n"))], [])
