"""A PRM as a reward for reinforcement learning: a callable with the signature of TRL's GRPO `reward_funcs`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mpo.multimodal.errors import ConfigError, DataError
from rewards.scoring.aggregation import AGGREGATIONS
from rewards.scoring.groups import score_groups
from rewards.scoring.process_reward_model import ProcessRewardModel
from rewards.types import Aggregator, Completion, Problem, Rollout, RolloutGroup

Prompt = str | Sequence[Mapping[str, Any]]


class PRMReward:
    """`GRPOTrainer(reward_funcs=PRMReward(prm))`: the aggregated step scores of every completion.

    The value equals the PRM's own `score` and `aggregate` on the same question, images and text. A completion that
    the PRM cannot read (empty, with a control token, or refused by its server) gets `None`: TRL then counts its other
    rewards alone, and without any its advantage is 0 (TRL 1.16).

    Args:
        prm: any, e.g. `ModelPRM.load(path)`, or `ServerPRM` for one behind a server.
        how: aggregation of step scores, a name of `rewards.scoring.aggregation.AGGREGATIONS` or a callable.
        problems: id → problem, for rows with a column `problem_id`: the PRM is then shown the problem's bare question
            and its own images, whatever template the policy's prompt was made with.

    Raises:
        ConfigError: `how` names no aggregation.
    """

    def __init__(
        self,
        prm: ProcessRewardModel,
        *,
        how: str | Aggregator = "mean",
        problems: Mapping[str, Problem] | None = None,
    ) -> None:
        if isinstance(how, str) and how not in AGGREGATIONS:
            raise ConfigError(f"unknown aggregation {how!r}: expected one of {', '.join(AGGREGATIONS)}, or a callable")
        self.prm, self.how, self.problems = prm, how, problems

    def __call__(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Prompt],
        *,
        images: Sequence[Any] | None = None,
        image: Sequence[Any] | None = None,
        problem_id: Sequence[str] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """One reward per completion, in order.

        Args:
            prompts: plain texts, or conversations with one user turn. TRL puts each image into its image block; a
                block without one takes the next image of the row's `images`.
            completions: plain texts, or conversations of one assistant turn.
            images: the data set's column, a list of decoded images per row.
            image: the same for data sets with one image per row.
            problem_id: the data set's column; read only if the object was given `problems`.
            **columns: TRL's other keywords; not read.

        Raises:
            DataError: a conversation of another shape, or images that do not match the image blocks.
        """
        if self.problems is not None and problem_id is not None:
            asked = [self.problems[id] for id in problem_id]
            return self.rewards_of(asked, [text_of(completion) for completion in completions])
        if images is None:
            images = [None if one is None else [one] for one in image] if image is not None else [None] * len(prompts)
        asked = [problem_of(prompt, own) for prompt, own in zip(prompts, images, strict=True)]
        return self.rewards_of(asked, [text_of(completion) for completion in completions])

    def rewards_of(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[float | None]:
        """One reward per response, in order; `None` for one that the PRM cannot read.

        Args:
            problems: what each response answers.
            texts: the responses.
        """
        groups = [
            RolloutGroup(problem, (Rollout(Completion(text)),)) for problem, text in zip(problems, texts, strict=True)
        ]
        scored, _ = score_groups(groups, self.prm, how=self.how)
        return [group.rollouts[0].reward for group in scored]


def problem_of(prompt: Prompt, images: Sequence[Any] | None = None) -> Problem:
    """The question and the images of a prompt in one of TRL's formats.

    System turns are left out: a PRM brings its own. Images come before the question, in their order.

    Raises:
        DataError: not exactly one user turn, an assistant turn, or images that do not match the image blocks.

    Example:
        >>> problem_of([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]).question
        '2 + 2?'
    """
    rest = list(images or ())
    if isinstance(prompt, str):
        return Problem("", prompt, tuple(_picture(one) for one in rest))
    turns = [message for message in prompt if message["role"] != "system"]
    if [message["role"] for message in turns] != ["user"]:
        roles = [message["role"] for message in prompt]
        raise DataError(
            f"expected a prompt of one user turn (and a system turn), got {roles}; a PRM reads one question"
        )
    content = turns[0]["content"]
    if isinstance(content, str):  # TRL puts all images before it
        return Problem("", content, tuple(_picture(one) for one in rest))
    blocks = [block for block in content if block["type"] == "image"]
    filled = [block["image"] for block in blocks if block.get("image") is not None]
    if filled:  # TRL has filled them from the row
        rest = []
    if len(filled) + len(rest) != len(blocks):
        raise DataError(f"a prompt has {len(blocks)} image blocks but {len(filled) + len(rest)} images")
    return Problem("", text_of(turns), tuple(_picture(one) for one in filled or rest))


def text_of(completion: Prompt) -> str:
    """The text of a completion, or of one turn, in one of TRL's formats.

    Raises:
        DataError: a conversation that is not one turn.

    Example:
        >>> text_of([{"role": "assistant", "content": [{"type": "text", "text": "4"}]}])
        '4'
    """
    if isinstance(completion, str):
        return completion
    if len(completion) != 1:
        raise DataError(f"expected one turn, got {len(completion)}; tool calls and multi-turn rollouts are not scored")
    content = completion[0].get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(block["text"] for block in content if block["type"] == "text")


def _picture(image: Any) -> Any:
    if isinstance(image, str):
        raise DataError(f"an image of a prompt is the path {image!r}; expected a decoded image: nothing is opened")
    return image
