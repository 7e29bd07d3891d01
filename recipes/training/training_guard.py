"""A callback that looks at fixed problems while a policy trains, and ends the run when it only gets better paid."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import Trainer, TrainerCallback
from transformers.integrations import is_deepspeed_zero3_enabled

from mpo.multimodal.errors import ConfigError
from mpo.multimodal.files import write_atomic
from recipes.training.policy_samples import drawn_in_training
from rewards.choosing.round_guard import measure_round
from rewards.choosing.training_guard import Limits, Look, Stop, mean_dependence, remaining_share, stop_reason
from rewards.sampling.generator import SamplingParams
from rewards.scoring.groups import score_groups, score_unseen
from rewards.scoring.other_images import blanked
from rewards.scoring.process_reward_model import ProcessRewardModel
from rewards.types import Problem, Rollout, RolloutGroup, Verdict
from rewards.verifying.answer_checker import AnswerChecker
from rewards.verifying.degeneration import degeneration_faults

LOOKS = "guard.jsonl"
RESPONSES = 2  # per problem and look


class TrainingGuard(TrainerCallback):
    """Before the first step and every `every` steps: samples of fixed problems, checked and scored; maybe a stop.

    Logs `guard/remaining` (share of the PRM's reward without the right image), `guard/blind` (of the policy's success),
    `guard/dependence`, `guard/repetition`, `guard/tokens`, `guard/accuracy` and `guard/prm`, those that can be
    measured. The looks go to `guard.jsonl` in the trainer's output folder, from which a resumed run continues. The
    first rank looks, all of them stop. The step at which they stop is not saved as a checkpoint: a run that is killed
    before its end then resumes before that step and stops there again.

    Args:
        trainer: a `transformers.Trainer` of a policy; add the callback to it afterwards.
        problems: what to ask, at least one, the same at every look.
        every: optimizer steps between two looks, at least 1.
        checker: of these problems; `None` measures no accuracy.
        prm: scores the responses; `None` measures no reward.
        how: aggregation of step scores.
        limits: when to stop; `None` only logs.
        max_new_tokens: limit of a response.
        seed: of the draws, the same at every look.

    Attributes:
        looks: those so far.
        stopped: why training ended, if the guard ended it.

    Raises:
        ConfigError: nothing to ask, `every` below 1, or weights that are sharded over ranks (FSDP, ZeRO-3).
    """

    def __init__(
        self,
        trainer: Any,
        problems: Sequence[Problem],
        *,
        every: int,
        checker: AnswerChecker | None = None,
        prm: ProcessRewardModel | None = None,
        how: str = "mean",
        limits: Limits | None = None,
        max_new_tokens: int = 512,
        seed: int = 0,
    ) -> None:
        if every < 1 or not problems:
            raise ConfigError(f"expected problems and every >= 1, got {len(problems)} and {every}: leave the guard out")
        if trainer.is_fsdp_enabled or is_deepspeed_zero3_enabled():
            kind = "FSDP" if trainer.is_fsdp_enabled else "DeepSpeed ZeRO-3"
            raise ConfigError(f"the guard needs whole weights on one rank, which {kind} shards: set guard_every to 0")
        self.trainer, self.problems, self.every = trainer, list(problems), every
        self.checker, self.prm, self.how, self.limits = checker, prm, how, limits
        self.max_new_tokens, self.seed = max_new_tokens, seed
        self.looks: list[Look] = []
        self.stopped: Stop | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Read the looks of a resumed run, without those of steps that it repeats; look before the first step."""
        path = Path(args.output_dir, LOOKS)
        self.looks = _kept(path, state.global_step)
        if state.is_world_process_zero:
            _write(path, self.looks)
        if state.global_step == 0:
            self._look(args, state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look every `every` steps."""
        if state.global_step % self.every == 0:
            self._look(args, state, control)

    def _look(self, args: Any, state: Any, control: Any) -> None:
        if state.is_world_process_zero:
            self.looks.append(self.measured(state.global_step))
            _write(Path(args.output_dir, LOOKS), self.looks)
            due = control.should_log  # the line of the training loss; `log` would count as that line
            Trainer.log(self.trainer, self.looks[-1].numbers())  # not GRPOTrainer's, which empties its metrics
            control.should_log = due
            self.stopped = stop_reason(self.looks, self.limits) if self.limits else None
        (self.stopped,) = broadcast_object_list([self.stopped])
        if self.stopped is not None:
            control.should_training_stop, control.should_save = True, False

    def measured(self, step: int) -> Look:
        """One look at the policy as it is now."""
        groups = self._groups(self.problems)
        drawn = [one.completion for group in groups for one in group.rollouts]
        found: dict[str, Any] = {}
        if self.prm is not None:
            groups, _ = score_groups(groups, self.prm, how=self.how)
            for image in ("blank", "swapped"):
                groups, _ = score_unseen(groups, self.prm, image=image, how=self.how)
            found = {"remaining": remaining_share(groups), "dependence": mean_dependence(groups)}
        if checked := [group for group in groups if all(map(self._is_measured, group.rollouts))]:
            measure = measure_round(checked)
            found |= {"problem_ids": measure.problem_ids, "gold": measure.gold}
            found |= {"reward": measure.reward} if self.prm is not None else {}
        return Look(
            step,
            blind=self._blind(groups),
            repetition=fmean("repetition" in degeneration_faults(one) for one in drawn),
            tokens=fmean(one.num_tokens for one in drawn),
            **found,
        )

    def _is_measured(self, rollout: Rollout) -> bool:
        """Whether verifier and PRM both said something of a response: what they missed is no fault of the policy."""
        missed = rollout.verdict in (None, Verdict.TIMEOUT, Verdict.ERROR)
        return not missed and (self.prm is None or rollout.reward is not None)

    def _blind(self, groups: Sequence[RolloutGroup]) -> float | None:
        """How well responses to a blank image do, judged with the right one, as a share of how well `groups` do."""
        seen = [group for group in groups if group.problem.images]
        if not seen:
            return None
        texts = [group.rollouts for group in self._groups([blanked(group.problem) for group in seen])]
        unseen = [RolloutGroup(group.problem, rollouts) for group, rollouts in zip(seen, texts, strict=True)]
        if self.prm is not None:
            unseen, _ = score_groups(unseen, self.prm, how=self.how)
        own, other = self._success(seen), self._success(unseen)
        return None if own is None or other is None or own <= 0 else other / own

    def _success(self, groups: Sequence[RolloutGroup]) -> float | None:
        """The accuracy where there are verdicts, else the PRM's mean."""
        rollouts = [one for group in groups for one in group.rollouts]
        if decided := [one for one in rollouts if one.verdict is not None]:
            return fmean(one.verdict is Verdict.CORRECT for one in decided)
        rewards = [one.reward for one in rollouts if one.reward is not None]
        return fmean(rewards) if rewards else None

    def _groups(self, problems: Sequence[Problem]) -> list[RolloutGroup]:
        """Responses of the policy to these problems, with verdicts."""
        params = SamplingParams(temperature=1.0, max_new_tokens=self.max_new_tokens)
        drawn = drawn_in_training(self.trainer, problems, RESPONSES, params, seed=self.seed)
        ids = [problem.id for problem, texts in zip(problems, drawn, strict=True) for _ in texts]
        flat = [one for texts in drawn for one in texts]
        verdicts = iter(self.checker.verdicts(ids, flat) if self.checker else [None] * len(flat))
        return [
            RolloutGroup(problem, tuple(Rollout(one, next(verdicts)) for one in texts))
            for problem, texts in zip(problems, drawn, strict=True)
        ]


def _write(path: Path, looks: Sequence[Look]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, "".join(json.dumps(asdict(look)) + "\n" for look in looks))


def _kept(path: Path, step: int) -> list[Look]:
    """The looks of steps up to `step`, none at step 0."""
    if not step or not path.exists():
        return []
    looks = [Look.of(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    return [look for look in looks if look.step <= step]
