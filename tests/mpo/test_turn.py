"""y is what the chat template itself writes behind the generation prompt, whatever stands in between."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import pytest
from trl.data_utils import apply_chat_template

from mpo.collator import PreferenceCollator
from mpo.doctor.seam import ShownSeam, seam_of_row
from mpo.multimodal.errors import DataError
from mpo.multimodal.messages import assistant_message, end_of_turn_id, prompt_text, response_ids, user_message
from mpo.multimodal.text_processor import TextProcessor
from mpo.multimodal.turn import NO_BLOCKS, OTHER_PROMPT, REFUSED, REWRITTEN, Turn, seam_of, turn_of
from mpo.rows import check_row
from recipes.training.warm_start import DemonstrationCollator
from recipes.worlds.digits.policy import build_processor
from rewards.types import Problem

END = "<|im_end|>"
TEXT = "{% for b in m['content'] %}{% if b['type'] == 'text' %}{{ b['text'] }}{% endif %}{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
THOUGHT = (  # Qwen3's reading of an assistant's turn: its own thought, or an empty one
    "{% set ns = namespace(text='') %}{% for b in m['content'] %}{% set ns.text = ns.text + b['text'] %}{% endfor %}"
    "{% set said = ns.text.split('</think>')[-1].lstrip('\n') %}"
    "{% set thought = '' %}{% if '</think>' in ns.text %}"
    "{% set thought = ns.text.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}{% endif %}"
)


def template(assistant: str, prompt: str = PROMPT) -> str:
    """A conversation with `assistant` as its form of an assistant's turn."""
    user = "<|im_start|>user\n" + TEXT + "<|im_end|>\n"
    return (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}" + assistant + "{% else %}" + user + "{% endif %}"
        "{% endfor %}" + prompt
    )  # fmt: skip


# The forms of published templates: name → (template, what it writes before "Two cats.")
FORMS = {
    "qwen2.5": (template("<|im_start|>assistant\n" + TEXT + END + "\n"), ""),
    "gemma3": (template("<|im_start|>assistant\n{{ m['content'][0]['text'] | trim }}" + END + "\n"), ""),
    "idefics3": (
        template("Assistant: " + TEXT + END + "\n", "{% if add_generation_prompt %}Assistant:{% endif %}"),
        " ",
    ),
    "llava-next": (template(" {{ m['content'][0]['text'] | trim }}" + END, ""), " "),
    "qwen3": (
        template(THOUGHT + "<|im_start|>assistant\n<think>\n{{ thought }}\n</think>\n\n{{ said }}" + END + "\n"),
        "<think>\n\n</think>\n\n",
    ),
    "qwen3.5": (
        template(
            THOUGHT + "<|im_start|>assistant\n<think>\n{{ thought }}\n</think>\n\n{{ said }}" + END + "\n",
            "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}",
        ),
        "\n</think>\n\n",
    ),
    "glm": (
        template(
            THOUGHT + "<|im_start|>assistant\n<think>{{ thought }}</think>\n{{ said }}",
            "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}",
        ),
        "\n<think></think>\n",
    ),
}
SAMPLED = {  # what such a policy writes itself behind its generation prompt
    "idefics3": " Two cats.",
    "llava-next": " Two cats.",
    "qwen3": "<think>\nI count.\n</think>\n\nTwo cats.",
    "qwen3.5": "I count.\n</think>\n\nTwo cats.",
    "glm": "\n<think>I count.</think>\nTwo cats.",
}


def processor_of(text: str) -> Any:
    processor = build_processor()
    processor.chat_template = text
    return processor


def row(**columns: Any) -> dict[str, Any]:
    return {"prompt": [{"role": "user", "content": "What?"}], "chosen": "Two cats.", "rejected": "A dog.", **columns}


@pytest.mark.parametrize("name", FORMS)
def test_y_is_what_the_template_writes(name: str) -> None:
    """Prompt ⊕ y is the template's whole conversation; what may follow y is white space, which no policy samples."""
    text, before = FORMS[name]
    processor = processor_of(text)
    assert seam_of(processor).before == before
    pair = check_row(processor, row())
    written = prompt_text(
        processor, [user_message("What?"), assistant_message("Two cats.")], add_generation_prompt=False
    )
    said = processor.tokenizer.decode(pair.chosen[:-1])
    assert pair.prompt + said == written.removesuffix("\n").removesuffix(END)
    assert pair.chosen[-1] == end_of_turn_id(processor)
    assert pair.chosen == response_ids(processor, "Two cats.", before=before)
    assert (pair.before, pair.notes) == (before, ())


# Templates that TRL ships as published, and whether their models read text alone.
SHIPPED = {
    **dict.fromkeys(("idefics3", "smolvlm", "llava_next", "gemma3", "qwen2_5_vl", "qwen3_vl", "lfm2_2_5_vl"), False),
    **dict.fromkeys(("qwen3_5_think", "qwen3_5_nothink", "qwen3_6", "glm4moe"), False),
    **dict.fromkeys(("qwen2_5", "qwen3", "llama3_2", "gptoss"), True),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_prompt_and_y_are_what_trl_trains_on(name: str) -> None:
    """TRL's `apply_chat_template` with the published template, up to the end of the turn."""
    processor = processor_of((files("trl") / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8"))
    if SHIPPED[name]:
        processor.tokenizer.chat_template = processor.chat_template
        processor = TextProcessor(processor.tokenizer)
    sides = {"chosen": [assistant_message("Two cats.")], "rejected": [assistant_message("A dog.")]}
    theirs = apply_chat_template({"prompt": [user_message("What?")], **sides}, processor)
    pair = check_row(processor, row())
    assert pair.notes == ()
    ours = pair.prompt + processor.tokenizer.decode(pair.chosen[:-1])
    assert (theirs["prompt"] + theirs["chosen"]).startswith(ours)
    assert ours.endswith("Two cats.")
    assert pair.prompt.startswith(theirs["prompt"])


def test_a_template_that_takes_no_blocks_is_noted_or_refused() -> None:
    """A text model's template beside an image processor: it prints the block, or fails on it."""
    prints = processor_of("{% for m in messages %}{{ m['role'] ~ m['content'] | string }}{% endfor %}")
    assert check_row(prints, row()).notes == (NO_BLOCKS,)
    fails = processor_of("{% for m in messages %}{{ m['role'] + m['content'] }}{% endfor %}")
    with pytest.raises(DataError, match="prompt: the chat template refuses it") as caught:
        check_row(fails, row())
    assert caught.value.reason == "prompt that the chat template refuses"


@pytest.mark.parametrize("name", SAMPLED)
def test_a_policys_own_sample_stays_as_it_was_drawn(name: str) -> None:
    """It stood behind the generation prompt when it was drawn, so its tokens are y; also cut inside its thought."""
    processor = processor_of(FORMS[name][0])
    pair = check_row(processor, row(chosen=SAMPLED[name]))
    assert pair.chosen == response_ids(processor, SAMPLED[name])
    assert (pair.before, pair.notes) == ("", ())
    cut = SAMPLED[name][: SAMPLED[name].index("cou") if "cou" in SAMPLED[name] else -1]
    pair = check_row(processor, row(rejected=cut, rejected_truncated=True))
    assert pair.rejected == response_ids(processor, cut, truncated=True)


def test_white_space_that_a_template_removes_is_a_part_of_a_sample() -> None:
    processor = processor_of(FORMS["gemma3"][0])
    pair = check_row(processor, row(chosen="Two cats.\n"))
    assert pair.chosen == response_ids(processor, "Two cats.\n")
    assert pair.notes == ()


@pytest.mark.parametrize(
    ("assistant", "prompt", "why"),
    [
        ("<|im_start|>assistant\n{{ m['content'][0]['text'] | upper }}" + END, PROMPT, REWRITTEN),
        # DeepSeek-R1's form: the prompt opens a thought, and a conversation keeps none
        (
            "<|im_start|>assistant\n{{ m['content'][0]['text'].split('</think>')[-1] }}" + END,
            "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}",
            OTHER_PROMPT,
        ),
        ("{{ raise_exception('no answers here') }}", PROMPT, REFUSED),
    ],
)
def test_a_template_that_cannot_be_seen_through_is_noted(assistant: str, prompt: str, why: str) -> None:
    processor = processor_of(template(assistant, prompt))
    pair = check_row(processor, row())
    assert pair.chosen == response_ids(processor, "Two cats.")
    assert pair.notes == (why,)


def test_a_response_that_the_template_shortens_is_noted() -> None:
    """The template is plain for most responses; one with a thought loses it."""
    processor = processor_of(
        template("<|im_start|>assistant\n{{ m['content'][0]['text'].split('</think>')[-1] }}" + END)
    )
    pair = check_row(processor, row(chosen="<think>a</think>Two"))
    assert (pair.chosen, pair.notes) == (response_ids(processor, "<think>a</think>Two"), (REWRITTEN,))


def test_the_seam_is_seen_anew_for_another_template() -> None:
    processor = processor_of(FORMS["idefics3"][0])
    assert seam_of(processor).before == " "
    processor.chat_template = FORMS["qwen2.5"][0]
    assert seam_of(processor).before == ""
    prompt = prompt_text(processor, [user_message("q")])
    assert turn_of(processor, [user_message("q")], prompt, "Two") == Turn("", None)


def test_a_span_keeps_its_characters_behind_a_leading_space() -> None:
    """The first word with the space before it, or the second alone."""
    processor = processor_of(FORMS["idefics3"][0])
    collator = PreferenceCollator(processor)

    def counted(span: list[int] | None) -> str:
        batch = collator([row(rejected_span=span)])
        labels = batch["labels"][int(batch["pair_index"][0, 1])]
        return processor.tokenizer.decode([i for i in labels.tolist() if i >= 0])

    assert (counted(None), counted([0, 1]), counted([2, 5])) == (f" A dog.{END}", " A", "dog")


def test_demonstrations_are_written_like_any_response() -> None:
    """The warm start teaches the tokens that the template would write, too."""
    processor = processor_of(FORMS["idefics3"][0])
    batch = DemonstrationCollator(processor, [Problem("p", "What?")])([{"problem": 0, "response": "Two cats."}])
    assert processor.tokenizer.decode([i for i in batch["labels"][0].tolist() if i >= 0]) == f" Two cats.{END}"


def test_the_doctor_shows_the_seam() -> None:
    seam = seam_of_row(PreferenceCollator(processor_of(FORMS["idefics3"][0])), row())
    assert seam == ShownSeam("<|im_start|>user\nWhat?<|im_end|>\nAssistant:"[-40:], " ", "Two cats.", END, True)
    seam = seam_of_row(PreferenceCollator(processor_of(FORMS["glm"][0])), row())
    assert (seam.before, seam.template_ends) == ("\n<think></think>\n", False)
    seam = seam_of_row(PreferenceCollator(processor_of(FORMS["qwen2.5"][0])), row(chosen_truncated=True))
    assert (seam.response, seam.end) == ("Two cats.", "")
