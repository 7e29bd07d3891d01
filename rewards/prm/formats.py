"""How a process reward model wants to be asked: one class, one row a model, no subclasses.

`VISUALPRM` is the multi-turn layout of VisualPRM (arXiv 2503.10291 §3.1): each step is a user turn, a sign is the
assistant's turn, and P(+) is read at the position that *predicts* the sign. `STEP_TAG` keeps the policy's own
single-turn layout and reads at a tag token after each step, as Math-Shepherd does (arXiv 2312.08935). `STEP_END` adds
no token at all: it reads at the last token of each step.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from mpo.multimodal.errors import ConfigError


@dataclass(frozen=True)
class PRMFormat:
    """The contract between a PRM's training and every later use of it; saved beside its weights.

    Attributes:
        name: for messages only.
        layout: `turns` (a user turn a step), `tag` (steps inside one assistant turn, a tag after each) or `end`
            (steps inside one assistant turn, nothing between them but their separator).
        positive, negative: the two label tokens, single tokens of the PRM's vocabulary.
        tag: text of the tag token (`tag` layout), one token.
        system: system prompt, or empty.
        first_turn: template of the first user turn (`turns` layout); images stand in front of it, or where it says
            `{images}`.
        max_steps: steps beyond this many are merged, ceil(n / max_steps) neighbours at a time.
    """

    name: str
    layout: Literal["turns", "tag", "end"]
    positive: str = "+"
    negative: str = "-"
    tag: str = "+"
    system: str = ""
    first_turn: str = "### Question:\n{question}\n\n### Solution Process:\n{step}"
    max_steps: int = 12

    def __post_init__(self) -> None:
        if self.layout not in ("turns", "tag", "end"):
            raise ConfigError(f"PRM format {self.name!r}: layout must be turns, tag or end, got {self.layout!r}")
        if self.max_steps < 1:
            raise ConfigError(f"PRM format {self.name!r}: max_steps must be at least 1, got {self.max_steps}")

    def label_ids(self, tokenizer: Any) -> tuple[int, int]:
        """Ids of the positive and the negative token.

        Raises:
            ConfigError: a label is not exactly one token of this tokenizer.
        """
        return single_token_id(tokenizer, self.positive), single_token_id(tokenizer, self.negative)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)


def single_token_id(tokenizer: Any, text: str) -> int:
    """The id of a text that must be one token."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise ConfigError(f"{text!r} must be one token of the PRM's tokenizer, it is {len(ids)}: {ids}; choose another")
    return int(ids[0])


VISUALPRM = PRMFormat("visualprm", "turns")
STEP_TAG = PRMFormat("step_tag", "tag", max_steps=64)
STEP_END = PRMFormat("step_end", "end", max_steps=64)
FORMATS = {prm_format.name: prm_format for prm_format in (VISUALPRM, STEP_TAG, STEP_END)}
