"""Samples of the policy while it trains: the same few problems every k steps, and how many answers are degenerate."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.integrations import is_deepspeed_zero3_enabled

from mpo.multimodal.errors import ConfigError
from mpo.multimodal.files import write_atomic
from mpo.multimodal.images import load_image
from recipes.training.policy_samples import drawn_in_training
from rewards.sampling.generator import SamplingParams
from rewards.types import Completion, Problem
from rewards.verifying.degeneration import REASONS, degeneration_faults

DRAWS = {"greedy": 0.0, "sampled": 1.0}  # name → temperature
SAMPLES = "samples.jsonl"
TABLE = "samples/table"


@dataclass(frozen=True)
class Sample:
    """One line of `samples.jsonl`."""

    step: int
    draw: str
    problem_id: str
    question: str
    answer: str
    num_tokens: int
    faults: tuple[str, ...]


class SampleMonitor(TrainerCallback):
    """Before the first step and every `every` steps, answers each problem greedily and at temperature 1.

    Logs, for each draw, the mean number of tokens and the shares of answers that are truncated, have no final answer
    or repeat themselves: `samples/greedy/repetition` and so on. An answer can have all three faults. Texts go to
    `samples.jsonl` in the trainer's output folder and, where the trainer reports to wandb, into the table
    `samples/table` with their images.

    It does not change the run: the weights are, bit for bit, those of a run without it. Only the first rank samples,
    from the policy inside DDP and with its adapters; the others wait for it at the next step.

    Args:
        trainer: the `transformers.Trainer` that trains the policy; add the callback to it afterwards.
        problems: what to ask, at least one; a handful, all in one batch.
        every: optimizer steps from one sampling to the next, at least 1.
        max_new_tokens: limit of an answer.
        seed: of the draw at temperature 1, the same at every sampling: what differs is the policy.

    Raises:
        ConfigError: nothing to ask, `every` below 1, or weights that are sharded over ranks (FSDP, ZeRO-3).
    """

    def __init__(
        self, trainer: Any, problems: Sequence[Problem], *, every: int, max_new_tokens: int = 512, seed: int = 0
    ) -> None:
        if every < 1 or not problems:
            raise ConfigError(
                f"expected problems and every >= 1, got {len(problems)} and {every}: leave the monitor out"
            )
        if trainer.is_fsdp_enabled or is_deepspeed_zero3_enabled():
            kind = "FSDP" if trainer.is_fsdp_enabled else "DeepSpeed ZeRO-3"
            raise ConfigError(f"samples need whole weights on one rank, which {kind} shards: leave the monitor out")
        self.trainer, self.problems, self.every = trainer, list(problems), every
        self.max_new_tokens, self.seed = max_new_tokens, seed

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Drop lines of steps that a resumed run repeats; look at the policy before the first step."""
        if state.is_world_process_zero:
            _keep_until(Path(args.output_dir, SAMPLES), state.global_step)
            if state.global_step == 0:
                self._look(args, control, step=0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the policy every `every` steps."""
        if state.is_world_process_zero and state.global_step % self.every == 0:
            self._look(args, control, step=state.global_step)

    def _look(self, args: Any, control: Any, *, step: int) -> None:
        drawn = {draw: self._answers(temperature) for draw, temperature in DRAWS.items()}
        samples = [
            Sample(
                step, draw, problem.id, problem.question, answer.text, answer.num_tokens, degeneration_faults(answer)
            )
            for draw, answers in drawn.items()
            for problem, answer in zip(self.problems, answers, strict=True)
        ]
        _append(Path(args.output_dir, SAMPLES), samples)
        if "wandb" in args.report_to:
            _log_table(samples, self.problems * len(DRAWS), step)
        due = control.should_log  # the line of the training loss; `log` would count as that line
        self.trainer.log({name: value for draw in DRAWS for name, value in rates(samples, draw).items()})
        control.should_log = due

    def _answers(self, temperature: float) -> list[Completion]:
        params = SamplingParams(temperature=temperature, max_new_tokens=self.max_new_tokens)
        return [one for (one,) in drawn_in_training(self.trainer, self.problems, 1, params, seed=self.seed)]


def rates(samples: Sequence[Sample], draw: str) -> dict[str, float]:
    """Shares of the answers of one draw that have each fault, and their mean number of tokens.

    Example:
        >>> rates([Sample(0, "greedy", "p", "2 + 2?", "4", 3, ("no_final_answer",))], "greedy")["samples/greedy/tokens"]
        3.0
    """
    own = [sample for sample in samples if sample.draw == draw]
    shares = {reason: sum(reason in sample.faults for sample in own) / len(own) for reason in REASONS}
    shares["tokens"] = sum(sample.num_tokens for sample in own) / len(own)
    return {f"samples/{draw}/{name}": value for name, value in shares.items()}


def _append(path: Path, samples: Sequence[Sample]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(sample), ensure_ascii=False) + "\n" for sample in samples)


def _keep_until(path: Path, step: int) -> None:
    """Only lines of steps up to `step`, none at step 0; a line that a kill cut short goes too."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").split("\n")
    kept = [line for line in lines if step and _step_of(line) <= step]
    write_atomic(path, "".join(f"{line}\n" for line in kept))


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def _log_table(samples: Sequence[Sample], problems: Sequence[Problem], step: int) -> None:
    """A row per sample, `problems[i]` being what it answers; a column per image, since a cell of a table holds one."""
    import wandb

    if wandb.run is None:
        return
    pictures = max(len(problem.images) for problem in problems)
    columns = [f"image {index + 1}" for index in range(pictures)]
    table = wandb.Table(columns=["step", "draw", *columns, "question", "answer", "faults"])
    for sample, problem in zip(samples, problems, strict=True):
        shown: list[Any] = [wandb.Image(load_image(image)) for image in problem.images]
        shown += [None] * (pictures - len(shown))
        table.add_data(sample.step, sample.draw, *shown, sample.question, sample.answer, ", ".join(sample.faults))
    wandb.log({TABLE: table, "train/global_step": step})
