"""How a policy is asked: named templates around the bare question, and the chat messages that come of them.

A template is text with `{question}` in it. The process reward model never sees it: its own format asks the bare
question. What the templates ask for is what the rest reads: steps separated by blank lines (`rewards/steps.py`) and a
last line with the answer alone (`rewards/verifying/places.py`).
"""

from __future__ import annotations

from pathlib import Path

from mpo.multimodal.errors import ConfigError
from mpo.multimodal.messages import Message, system_message, user_message
from rewards.types import Problem, Prompt

QUESTION = "{question}"
DEFAULT = "cot"
MAX_TEMPLATE_BYTES = 64 << 10

_STEPS = "Solve the problem step by step and leave a blank line between the steps."
_LETTER = "If options are given, answer with the letter of one."

PROMPTS: dict[str, Prompt] = {
    "direct": Prompt(),
    "cot": Prompt(
        f"{QUESTION}\n\n{_STEPS} {_LETTER} Write the answer alone on the last line, in the form\nFinal answer: ..."
    ),
    "cot_boxed": Prompt(
        f"{QUESTION}\n\n{_STEPS} {_LETTER} Write the answer alone on the last line, inside \\boxed{{}}."
    ),
    "r1": Prompt(
        system=(
            "First think about the problem inside <think> and </think>. Then write the solution: short steps with a "
            f"blank line between them. {_LETTER} Write the answer alone on the last line, in the form\n"
            "Final answer: ..."
        )
    ),
}


def prompt_of(name: str, *, system: str = "") -> Prompt:
    """The template of a name or a file.

    Args:
        name: a row of `PROMPTS`, or a UTF-8 text file with `{question}` where the question goes.
        system: a system message, in place of the template's own.

    Raises:
        ConfigError: no such name or file, or a file without `{question}` (or with it twice).

    Example:
        >>> prompt_of("direct", system="Be brief.")
        Prompt(template='{question}', system='Be brief.')
    """
    prompt = PROMPTS.get(name)
    if prompt is None:
        prompt = Prompt(_template(Path(name)))
    return Prompt(prompt.template, system) if system else prompt


def prompt_files(name: str) -> list[Path]:
    """The file behind a template's name, if it is one."""
    return [] if name in PROMPTS else [Path(name)]


def messages_of(problem: Problem) -> list[Message]:
    """The chat messages that ask a problem, its images before the text or where the question places them.

    Example:
        >>> [message["role"] for message in messages_of(Problem("p", "2 + 2?", prompt=PROMPTS["r1"]))]
        ['system', 'user']
    """
    prompt = problem.prompt
    opening = [system_message(prompt.system)] if prompt.system else []
    before, _, after = prompt.template.partition(QUESTION)
    around = (before, after) if problem.placed else ("", "")
    text = problem.question if problem.placed else prompt.text(problem.question)
    turn = user_message(text, len(problem.images), before=around[0], after=around[1], placed=problem.placed)
    return [*opening, turn]


def _template(path: Path) -> str:
    if not path.is_file():
        raise ConfigError(f"unknown prompt {str(path)!r}: expected one of {', '.join(PROMPTS)}, or a text file")
    try:
        text = path.read_bytes()[: MAX_TEMPLATE_BYTES + 1].decode("utf-8-sig").strip("\n")
    except UnicodeDecodeError as error:
        raise ConfigError(f"prompt {path} is no UTF-8 text: {error}") from error
    if text.count(QUESTION) != 1 or len(text) > MAX_TEMPLATE_BYTES:
        raise ConfigError(
            f"prompt {path}: expected a text of at most {MAX_TEMPLATE_BYTES >> 10} KiB that holds {QUESTION} once, "
            f"where the question goes; it holds it {text.count(QUESTION)} times"
        )
    return text
