"""Any combination of dresses keeps a right answer right and a wrong one wrong: hypothesis draws the dresses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rewards.types import Problem, Verdict
from rewards.verifying.dress import DRESSES, undress
from rewards.verifying.equality import equality_of
from rewards.verifying.reading import answer_of, find_answer
from rewards.verifying.verification import VERIFIERS


@pytest.fixture(autouse=True, scope="module")
def no_workers_left() -> Iterator[None]:
    """Tests of the worker pool count this process's children."""
    yield
    VERIFIERS["math"].close()  # type: ignore[attr-defined]


C, W, U = Verdict.CORRECT, Verdict.WRONG, Verdict.UNPARSABLE

DRESS: dict[str, Callable[[str], str]] = {
    "inline": lambda text: rf"\({text}\)",
    "display": lambda text: rf"\[ {text} \]",
    "dollars": lambda text: f"$ {text} $",
    "double dollars": lambda text: f"$${text}$$",
    "text": lambda text: rf"\text{{{text}}}",
    "mathrm": lambda text: rf"\mathrm{{{text}}}",
    "bold": lambda text: f"**{text}**",
    "italic": lambda text: f"*{text}*",
    "code": lambda text: f"`{text}`",
    "quotes": lambda text: f'"{text}"',
    "curly quotes": lambda text: f"“{text}”",
    "corner quotes": lambda text: f"「{text}」",
    "html": lambda text: f"<b>{text}</b>",
    "braces": lambda text: f"{{{text}}}",
    "stop": lambda text: f"{text}.",
    "blanks": lambda text: f"  {text} ",
    "box": lambda text: rf"\boxed{{{text}}}",
}
PLACE: dict[str, Callable[[str], str]] = {
    "final": lambda text: f"We see it.\n\nFinal answer: {text}",
    "bold final": lambda text: f"**Final answer:** {text}",
    "answer": lambda text: f"Step 1 of 3.\nAnswer: {text}",
    "next line": lambda text: f"### Final answer\n\n{text}",
    "chinese": lambda text: f"答案：{text}",
    "tag": lambda text: f"<think>Is it \\boxed{{99}}? No.</think><answer>{text}</answer>",
    "box": lambda text: rf"So \boxed{{{text}}}",
    "token box": lambda text: f"The answer is <|begin_of_box|>{text}<|end_of_box|>",
    "hashes": lambda text: f"It adds up.\n#### {text}",
}
dresses = st.lists(st.sampled_from(sorted(DRESS)), max_size=4, unique=True)
places = st.sampled_from(sorted(PLACE))


def dressed(text: str, names: list[str], place: str) -> str:
    for name in names:
        text = DRESS[name](text)
    return PLACE[place](text)


CASES = [
    ("choice", "B", None, "C"),
    ("choice", "light blue", ["red", "light blue", "blue"], "blue"),
    ("number", "17", None, "18"),
    ("number", "-2.5", None, "2.5"),
    ("number", "12 cm", None, "12 kg"),
    ("relaxed", "1995", None, "1996"),
    ("short", "Eiffel Tower", None, "Big Ben"),
    ("exact", "New York", None, "New Jersey"),
    ("anls", "Williamsburg", None, "Hamburg"),
    ("yes_no", "Yes", None, "No"),
    ("vqa", "red", None, "blue"),
]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(CASES), dresses, places)
@example(CASES[0], ["bold", "braces", "blanks", "italic"], "answer")
@example(CASES[0], ["blanks", "bold", "code", "italic"], "answer")
def test_a_dressed_answer_keeps_its_verdict(
    case: tuple[str, str, list[str] | None, str], names: list[str], place: str
) -> None:
    name, right, choices, wrong = case
    problem = Problem("p", "?", answer=right, meta={"choices": choices} if choices else {})
    verifier = VERIFIERS[name]
    assert verifier(problem, dressed(right, names, place)) is C
    assert verifier(problem, dressed(wrong, names, place)) is W


@settings(max_examples=150, deadline=None)
@given(st.integers(-10_000, 10_000), st.integers(1, 10_000), dresses, places)
def test_a_dressed_number_of_mathematics_keeps_its_verdict(value: int, off: int, names: list[str], place: str) -> None:
    """Plain numbers never need the parser; `\\mathrm` and the rest come off before they are compared."""
    problem, verifier = Problem("p", "?", answer=str(value)), VERIFIERS["math"]
    assert verifier(problem, dressed(str(value), names, place)) is C
    assert verifier(problem, dressed(str(value + off), names, place)) is W


@settings(max_examples=150, deadline=None)
@given(st.fractions(-50, 50, max_denominator=40), st.fractions(-50, 50, max_denominator=40))
def test_fractions_are_exact(a: Fraction, b: Fraction) -> None:
    def written(value: Fraction) -> str:
        sign = "-" if value < 0 else ""
        return rf"{sign}\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"

    verdict = VERIFIERS["math"](Problem("p", "?", answer=f"{a.numerator}/{a.denominator}"), rf"\boxed{{{written(b)}}}")
    assert verdict is (C if a == b else W)


@given(st.text(max_size=60))
def test_undressing_ends_and_changes_nothing_twice(text: str) -> None:
    value, names = undress(text)
    assert undress(value)[0] == value or len(names) >= 16
    assert set(names) <= set(DRESSES)


@pytest.mark.parametrize(
    ("name", "text", "bare"),
    [
        ("tokens", "7</s>", "7"),
        ("tokens", "7<|im_end|>", "7"),
        ("html", "<b>7</b>", "7"),
        ("markdown", "**7**", "7"),
        ("markdown", "```\n7\n```", "7"),
        ("delimiters", r"\(7\)", "7"),
        ("delimiters", "$7$ cm", "7 cm"),
        ("delimiters", "$5 or $6", "$5 or $6"),
        ("macro", r"\text{B}", "B"),
        ("macro", r"\text{a}\text{b}", r"\text{a}\text{b}"),
        ("quotes", "«7»", "7"),
        ("quotes", "'a' or 'b'", "'a' or 'b'"),
        ("brackets", "[7]", "7"),
        ("brackets", "[0, 1]", "[0, 1]"),
        ("stop", "7。", "7"),
        ("stop", "0.33...", "0.33..."),
        ("lead", "= 7", "7"),
        ("blanks", "New \u00a0 York", "New York"),
    ],
)
def test_each_dress_alone(name: str, text: str, bare: str) -> None:
    assert DRESSES[name](text).strip() == bare


@pytest.mark.parametrize(
    ("text", "where", "value"),
    [
        ("<answer>7</answer>", "answer tag", "7"),
        ("<|begin_of_box|>7<|end_of_box|>", "token box", "7"),
        ("Final answer: 7", "final answer", "7"),
        ("### Answer\n7", "answer line", "7"),
        ("so\n#### 7", "hashes", "7"),
        ('{"short answer": "7"}', "json", "7"),
        (r"\boxed{7}", "box", "7"),
        ("The answer is 7. It is odd.", "answer is", "7"),
        ("7", "bare", "7"),
        ("Answer: 5. No, wait.\nAnswer: 7", "answer line", "7"),
        (r"\boxed{5}" + "\n\nThe answer is 7.", "answer is", "7"),
        (r"The answer is \boxed{7}", "box", "7"),
    ],
)
def test_each_place_alone(text: str, where: str, value: str) -> None:
    found = find_answer(text)
    assert (found.where, found.value) == (where, value)


TEXTS = ["7", "7.0", "7 cm", "70 mm", "B", "(B)", "yes", "No", "seven", "x", "0.333", "1/3", "Paris"]


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["choice", "number", "relaxed", "short", "exact", "anls", "yes_no", "vqa", "auto", "math"]),
    st.lists(st.sampled_from(TEXTS), min_size=2, max_size=2),
)
def test_equality_is_symmetric_and_reflexive(name: str, texts: list[str]) -> None:
    equal, problem = equality_of(name), Problem("p", "?", answer="7")
    a, b = (answer_of(text, "bare") for text in texts)
    assert equal(problem, a, b) == equal(problem, b, a)
    assert equal(problem, a, a) in (True, None)
    other = Problem("p", "?", answer="8")
    assert equal(problem, a, b) == equal(other, a, b)  # the reference is not looked at
