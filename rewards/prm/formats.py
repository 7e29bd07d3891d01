"""How a process reward model is prompted: one class, one row per model, no subclasses.

`VISUALPRM` is the multi-turn layout of VisualPRM (arXiv 2503.10291 §3.1): each step is a user turn, a sign is the
assistant's turn, and P(+) is read at the position that *predicts* the sign. `STEP_TAG` keeps the policy's own
single-turn layout and reads at a tag token after each step, as Math-Shepherd does (arXiv 2312.08935). `STEP_END` adds
no token at all: it reads at the last token of each step. `QWEN_MATH_PRM` reads a label head at `<extra_0>` after each
step (arXiv 2501.07301). `ORM` judges the whole response in VisualPRM's layout: one step, read at the last position.
A user's own row is a YAML file of the fields of `PRMFormat`.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml
from pydantic import TypeAdapter, ValidationError

from mpo.multimodal.errors import ConfigError

CONTRACT = "prm.json"  # beside a PRM's weights: its format
FIRST_TURN = r"[^{}]*(\{images\}[^{}]*)?\{question\}[^{}]*\{step\}"
HEAD_COLUMNS = (1, 0)  # of a label head, in the order positive, negative


@dataclass(frozen=True)
class PRMFormat:
    """The contract between a PRM's training and every later use of it; saved beside its weights.

    Attributes:
        name: for messages only.
        layout: `turns` (a user turn per step), `tag` (steps inside one assistant turn, a tag after each) or `end`
            (steps inside one assistant turn, nothing between them but their separator).
        positive, negative: the two label tokens, single tokens of the PRM's vocabulary (`tokens` readout).
        tag: text of the tag token (`tag` layout), one token.
        system: system prompt, or empty.
        first_turn: template of the first user turn (`turns` layout); images precede it, or take the place of
            `{images}`.
        max_steps: steps beyond this many are merged, ceil(n / max_steps) neighbours at a time. 1 makes an outcome
            reward model: the whole response is one step.
        separator: text between two steps (`tag` and `end` layouts), behind the tag; may be empty.
        neutral: a third label token, for PRMs that judge a step's advantage: + raises the expected accuracy, = keeps
            it, - lowers it; empty for two labels.
        readout: `tokens` (the label tokens' logits) or `head` (two logits of a label head, wrong and right).
    """

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    name: str
    layout: Literal["turns", "tag", "end"]
    positive: str = "+"
    negative: str = "-"
    tag: str = "+"
    system: str = ""
    first_turn: str = "### Question:\n{question}\n\n### Solution Process:\n{step}"
    max_steps: int = 12
    separator: str = "\n\n"
    readout: Literal["tokens", "head"] = "tokens"
    neutral: str = ""

    def __post_init__(self) -> None:
        if self.layout not in ("turns", "tag", "end"):
            raise ConfigError(f"PRM format {self.name!r}: layout must be turns, tag or end, got {self.layout!r}")
        if self.readout not in ("tokens", "head"):
            raise ConfigError(f"PRM format {self.name!r}: readout must be tokens or head, got {self.readout!r}")
        if self.neutral and self.readout == "head":
            raise ConfigError(f"PRM format {self.name!r}: a label head has two labels, so leave neutral out")
        if self.layout == "turns" and self.readout == "head":
            raise ConfigError(f"PRM format {self.name!r}: a label head is read at a step: use the tag or end layout")
        if self.layout == "turns" and not re.fullmatch(FIRST_TURN, self.first_turn, re.DOTALL):
            raise ConfigError(
                f"PRM format {self.name!r}: first_turn must hold {{question}} and end with {{step}}, besides at most "
                f"{{images}} before both; got {self.first_turn!r}"
            )
        if self.max_steps < 1:
            raise ConfigError(f"PRM format {self.name!r}: max_steps must be at least 1, got {self.max_steps}")

    def label_ids(self, tokenizer: Any) -> tuple[int, ...]:
        """Ids of the positive, the negative and, if there is one, the neutral token, or columns of the label head.

        Raises:
            ConfigError: a label is not exactly one token of this tokenizer.
        """
        if self.readout == "head":
            return HEAD_COLUMNS
        return tuple(single_token_id(tokenizer, text) for text in self.label_texts)

    def check_tokens(self, tokenizer: Any) -> None:
        """Whether a tokenizer has what this format reads and writes.

        Raises:
            ConfigError: a label, or the tag of the `tag` layout, is not exactly one token.
        """
        self.label_ids(tokenizer)
        if self.layout == "tag":
            single_token_id(tokenizer, self.tag)

    @property
    def label_texts(self) -> tuple[str, ...]:
        """The positive, the negative and, if there is one, the neutral token's text."""
        return (self.positive, self.negative, *([self.neutral] if self.neutral else []))

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)


def single_token_id(tokenizer: Any, text: str) -> int:
    """The id of a text that must be one token."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise ConfigError(
            f"{text!r} must be one token of the PRM's tokenizer, but it is {len(ids)}: {ids}; choose another"
        )
    return int(ids[0])


def find_format(name: str) -> PRMFormat:
    """A row of `FORMATS` by its name, or a user's own row from a YAML file.

    Raises:
        ConfigError: no such row or file, or a file that is not one.

    Example:
        >>> find_format("orm").max_steps
        1
    """
    if name in FORMATS:
        return FORMATS[name]
    if not format_files(name):
        raise ConfigError(f"unknown prm_format {name!r}: expected one of {', '.join(FORMATS)}, or a YAML file")
    try:
        text = Path(name).read_text(encoding="utf-8")
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):  # nested, they multiply without end
            raise ConfigError(f"PRM format {name} uses a YAML alias (*name); write the value out")
        fields = yaml.safe_load(text)
    except ConfigError:
        raise
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"PRM format {name} cannot be read as YAML: {error}") from error
    return validated(fields, name)


def format_files(name: str | None) -> list[Path]:
    """The file that a `prm_format` names, for a stage's inputs; none for a row of `FORMATS`.

    Example:
        >>> format_files("orm"), [path.name for path in format_files("my_prm.yaml")]
        ([], ['my_prm.yaml'])
    """
    return [Path(name)] if name and Path(name).suffix in (".yaml", ".yml") else []


def validated(fields: Any, where: str) -> PRMFormat:
    """The row with these fields, from outside: types are checked, unknown keys refused.

    Raises:
        ConfigError: it is none; names `where`.
    """
    try:
        return TypeAdapter(PRMFormat).validate_python(fields)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the whole"
        said = f"{field[:80]}: {first['msg']} (got {first['input']!r:.80})"
        raise ConfigError(f"{where} is not a PRM contract: {said}; {error.error_count()} errors in all") from error


VISUALPRM = PRMFormat("visualprm", "turns")
STEP_TAG = PRMFormat("step_tag", "tag", max_steps=64)
STEP_END = PRMFormat("step_end", "end", max_steps=64)
QWEN_MATH_PRM = PRMFormat(
    "qwen_math_prm",
    "tag",
    tag="<extra_0>",
    system="Please reason step by step, and put your final answer within \\boxed{}.",
    max_steps=64,
    separator="",
    readout="head",
)
ORM = PRMFormat("orm", "turns", max_steps=1)
VISUALPRM_ADVANTAGE = PRMFormat("visualprm_advantage", "turns", neutral="=")
ROWS = (VISUALPRM, VISUALPRM_ADVANTAGE, STEP_TAG, STEP_END, QWEN_MATH_PRM, ORM)
FORMATS = {prm_format.name: prm_format for prm_format in ROWS}
