"""Help texts, errors, docstrings, comments and docs hold none of the forms that `docs/style.md` warns of.

Each form is a pattern with the words to write instead. `test_a_form_is_caught` plants lines for every pattern, so that
none can go quiet by itself; `test_plain_lines_pass` holds what must not be complained of.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CODE = ("mpo", "rewards", "recipes", "examples", "benchmarks", "docs")
PROSE = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "Makefile"]
QUOTES_THEM = {"docs/style.md", "docs/glossary.md"}  # name the words that are not to be written
COUNTED = (
    "one|two|once|twice|rows?|pairs?|tokens?|micro-batch(?:es)?|calls?|samples?|steps?|requests?|images?|answers|"
    "responses|problems?|counts?|labels?|checks?|continuations?|bytes?|characters?|points?|values?|files?|charts?|"
    "bools?|passes|generators?|questions|claims|nats?|copy|copies|windows?|folders?"
)
UNITS = (
    "step|row|pair|problem|response|call|rank|batch|image|token|seed|share|process|actor|GPU|server|second|set|line|"
    "micro-batch|device|prompt|question|half|position|group|side|selector|wave|task|worker|kind|tower|k|reply|"
    "gigabyte|weight|sample|continuation|arm|number|place|request"
)
# form → (pattern, what to write)
BANNED: dict[str, tuple[str, str]] = {
    "goes on": (r"\b(?:go|goes|went|going) on\b", "continues, resumes, keeps"),
    "stands in": (r"\bst(?:ands?|ood|anding) (?:in|at|beside|behind|there|in front|on no)\b", "is in, replaces"),
    "a step": (rf"\b(?:{COUNTED}) an? (?:{UNITS})\b(?!')", "per step"),
    "an other": (r"\ban other\b", "another"),
    "picture": (r"\bpictures?\b", "image"),
    "so many": (r"\b(?:at most|the first|else|on|up to) so (?:many|much)\b|\bso many times\b", "this many"),
    "solution": (  # but for the part of a response that follows a thinking model's thought
        r"\b(?:each|every|many|candidate|several|all|N|\d+) solutions?\b|\bsolutions (?:of|to|behind|for)\b|"
        r"\bsolution after solution\b|\bstep of a solution\b",
        "response",
    ),
    "candidate": (  # but for candidate settings, pairs and responses
        r"\b(?:draw|draws|drawn|scores?|distinct|more|n|of|\d+|each|no) candidates?\b(?! (?:responses?|pairs?|is|are))|"
        r"\bcandidate (?:solutions?|answers?)\b|\bper candidate\b",
        "response",
    ),
    "says not": (r"\bsays? not\b", "does not say"),
    "go without": (r"\b(?:go|goes) without\b", "cannot be combined with"),
    "read up": (r"\bread (?:it |them )?up\b", "check"),
    "not on an index": (r"pip install ['\"]?mpo-prm", "pip install -e '.[extra]'"),
}
PATTERNS = {form: re.compile(pattern, re.IGNORECASE) for form, (pattern, _) in BANNED.items()}
# Correct English that a pattern catches; (form, the words around).
ALLOWED = {
    ("a step", "How many tokens a prompt has"),
    ("a step", "How many continuations a step gets"),
    ("a step", "how many continuations a step gets"),
    ("a step", "which rows a line saw"),
    ("a step", "rows a number"),
    ("a step", "calls a step wrong"),
    ("a step", "calls a response correct"),
    ("read up", "to be read up to the first error"),
    ("picture", "consistent with the picture above"),  # a response that a benchmark quotes
    ("picture", 'the words "picture" and "image"'),
}


def complaints(text: str) -> list[tuple[str, str]]:
    """(form, words around it) of every banned form in prose; code spans and doctest lines are not prose."""
    prose = re.sub(r"`[^`]*`", "`…`", text)
    prose = "\n".join(line for line in prose.splitlines() if not line.lstrip().startswith((">>>", "...")))
    prose = re.sub(r"^\s*\*{0,2}\w+(?:, \w+)*: ", "", prose, flags=re.MULTILINE)  # the names of arguments
    prose = re.sub(r"\s+", " ", prose)
    found = []
    for form, pattern in PATTERNS.items():
        for match in pattern.finditer(prose):
            around = prose[max(0, match.start() - 40) : match.end() + 40].strip()
            if not any(form == name and words in around for name, words in ALLOWED):
                found.append((form, around))
    return found


def python_texts(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of every docstring, comment, and string with a space in it that is no regular expression."""
    source = path.read_text(encoding="utf-8")
    inside: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            inside |= {id(part) for part in ast.walk(node) if part is not node}
            parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
            yield node.lineno, "".join(str(part) for part in parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.lineno, node.value if " " in node.value and "(?" not in node.value else ""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string.lstrip("# ")


@cache
def written() -> list[tuple[str, int, str]]:
    """(file, line, text) of everything that a person reads."""
    found = []
    for folder in CODE:
        for path in sorted((ROOT / folder).rglob("*.py")):
            found += [(str(path.relative_to(ROOT)), line, text) for line, text in python_texts(path)]
    for path in [*(ROOT / name for name in PROSE), *sorted((ROOT / "docs").rglob("*.md"))]:
        name = str(path.relative_to(ROOT))
        if name not in QUOTES_THEM:
            text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
            found += [(name, 0, paragraph) for paragraph in re.split(r"\n\s*\n|\n(?=[-|>])", text)]
    for path in sorted((ROOT / "recipes").rglob("*.yaml")):
        found += [
            (str(path.relative_to(ROOT)), number, line.partition("#")[2])
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        ]
    return found


def test_nothing_that_a_person_reads_holds_a_banned_form() -> None:
    bad = [
        f"{file}:{line}: {form!r} in “{around}”: write {BANNED[form][1]}"
        for file, line, text in written()
        for form, around in complaints(text)
    ]
    assert not bad, "\n" + "\n".join(bad)


def test_something_is_read() -> None:
    files = {file for file, *_ in written()}
    assert len(files) > 150
    assert {"README.md", "docs/losses.md", "recipes/config.py", "mpo/trainer.py"} <= files


@pytest.mark.parametrize(
    ("form", "line"),
    [
        ("goes on", "A killed run goes on with the same command."),
        ("goes on", "Run the same command again to go on: it draws what is missing."),
        ("goes on", "the mean reward went\non rising"),
        ("stands in", "The shape stands in a comment."),
        ("stands in", "All numbers stand at 0.5 too."),
        ("stands in", "rollouts that could stand on no side"),
        ("a step", "pairs a step"),
        ("a step", "a packed row instead of a row a response"),
        ("a step", "expected at least 1 continuation a step, got 0"),
        ("a step", "one `logps-RANK.sqlite` a rank: one file a rank"),
        ("a step", "`tokens` a second, i.e. tokens a second"),
        ("an other", "an other image's digits"),
        ("picture", "a problem without pictures"),
        ("so many", "with `error`, at most so many."),
        ("so many", "it has at most so many times the characters"),
        ("solution", "Step scores of each solution, in order."),
        ("solution", "N solutions behind one prompt"),
        ("candidate", "Draw n candidates and choose one."),
        ("candidate", "the number of candidates"),
        ("says not", "they say not what is right"),
        ("go without", "advantage labels go without class_weights"),
        ("read up", "we have not read it up"),
        ("not on an index", "pip install 'mpo-prm[server]'"),
    ],
)
def test_a_form_is_caught(form: str, line: str) -> None:
    assert form in {name for name, _ in complaints(line)}
    assert BANNED[form][1]


def test_every_form_is_planted() -> None:
    (planted,) = (mark.args[1] for mark in test_a_form_is_caught.pytestmark)  # type: ignore[attr-defined]
    assert {form for form, _ in planted} == set(BANNED)


@pytest.mark.parametrize(
    "line",
    [
        "A pair is two responses to one problem; each gets a row.",
        "The score of a step is P(+) against P(−).",
        "### Question:\n{question}\n\n### Solution Process:\n{step}",
        "`picture_of` and `without_other_picture` are names, not prose",
        "solutions: the steps of each response.",
        ">>> solutions = picture",
        "scores the steps of candidate responses to one problem",
        "the resolution of bfloat16",
        "A settings file may give an arm candidates, of which the best is kept.",
        "A thinking model writes its thought and then its solution.",
        "There are so many ways to write it.",
        "one seed per row, 4 bytes per weight",
    ],
)
def test_plain_lines_pass(line: str) -> None:
    assert complaints(line) == []
