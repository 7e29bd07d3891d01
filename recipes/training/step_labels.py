"""Counted steps → labelled steps for `mpo train-prm`, with an account of the steps that have no label."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mpo.multimodal.files import write_atomic
from rewards.errors import StepAlignmentError
from rewards.prm.labelling.consensus import Consensus
from rewards.prm.labelling.labels import LabelledGroup, LabelledSolution, LabelRule, merged_counts
from rewards.prm.labelling.source import EXACT
from rewards.steps import split_into
from rewards.types import MonteCarloCount, Rollout, RolloutGroup, Step

DISAGREEMENTS = "disagreements.jsonl"  # steps that two sources label differently
LEFT_OUT = "in a response that is left out"


@dataclass
class StepLabels:
    """Labelled groups, and what became of every step.

    Attributes:
        groups: labelled; steps of responses with more than the format takes are merged.
        steps: counted after merging.
        reasons: why a step has no label → number.
        disagreements: of two sources, one JSON object per step; None if there is one source.
    """

    groups: list[LabelledGroup]
    steps: int
    reasons: Counter[str] = field(default_factory=Counter)
    disagreements: list[dict[str, Any]] | None = None

    def account(self, trained: Sequence[LabelledGroup]) -> dict[str, Any]:
        """`in`, `out` and `rejected` of the steps, which balance.

        Args:
            trained: the groups that are trained on, before made-up responses join them.
        """
        out = number_labelled(trained)
        lost = +Counter({**self.reasons, LEFT_OUT: self.steps - sum(self.reasons.values()) - out})
        return {"in": self.steps, "out": out, "rejected": dict(lost.most_common())}

    def write(self, folder: Path) -> None:
        """Write the disagreements, if there are two sources."""
        if self.disagreements is not None:
            rows = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.disagreements)
            write_atomic(folder / DISAGREEMENTS, rows)


def label_groups(
    groups: Sequence[RolloutGroup],
    rule: LabelRule,
    *,
    max_steps: int,
    second: Sequence[RolloutGroup] | None = None,
) -> StepLabels:
    """Counts → labels; a response with more steps than the format takes is merged, as in labelling and scoring.

    A format of one step (an outcome reward model) takes the whole response with its last count.

    Args:
        groups: with counts.
        rule: how counts become labels.
        max_steps: most steps that the PRM's format takes.
        second: another source of labels of the same responses; a step whose label differs there has none. What is
            compared is the hard label: on which side of the threshold, or thresholds, mc is.

    Raises:
        ConfigError: counts that the rule cannot use.
        StepAlignmentError: a response without counts.
    """
    rule.check_sources(rollout for group in groups for rollout in group.rollouts)
    consensus = None if second is None else _consensus(second, rule, max_steps=max_steps)
    made = StepLabels([], 0, disagreements=None if consensus is None else consensus.disagreements)
    for group in groups:
        solutions = []
        for rollout in group.rollouts:
            if rollout.mc is None:
                raise StepAlignmentError(
                    f"problem {group.problem.id!r} has a rollout without step labels; run `mpo label-steps`"
                )
            steps, counts = _merged(rollout, max_steps=max_steps)
            exact = rollout.label_source == EXACT
            labels = rule.labels(counts, exact=exact)
            made.steps += len(steps)
            made.reasons.update(reason for reason in rule.reasons(counts, exact=exact) if reason)
            if consensus is not None:
                agreed = consensus.agreed(group.problem, rollout)
                labels = tuple(label if kept else None for label, kept in zip(labels, agreed, strict=True))
            solutions.append(LabelledSolution(steps, labels, counts if rule.binomial else None))
        if solutions:
            made.groups.append(LabelledGroup(group.problem, tuple(solutions)))
    if consensus is not None:
        made.reasons += consensus.reasons
    return made


def with_a_label(groups: Iterable[LabelledGroup]) -> tuple[list[LabelledGroup], int]:
    """The groups without responses of which no step has a label, and the number of those."""
    kept, lost = [], 0
    for group in groups:
        some = tuple(one for one in group.solutions if any(label is not None for label in one.labels))
        lost += len(group.solutions) - len(some)
        kept += [replace(group, solutions=some)] if some else []
    return kept, lost


def number_labelled(groups: Iterable[LabelledGroup]) -> int:
    """Steps that have a label."""
    return sum(label is not None for group in groups for one in group.solutions for label in one.labels)


def in_words(account: dict[str, Any], groups: Sequence[LabelledGroup]) -> str:
    """The account of the steps for the closing line; empty if every step has a label and no count is learned.

    Args:
        account: of `StepLabels.account`.
        groups: that are trained on.
    """
    draws = sum(
        count.total
        for group in groups
        for one in group.solutions
        for label, count in zip(one.labels, one.counts or (), strict=False)
        if label is not None and count is not None
    )
    lost = ", ".join(f"{reason} {number}" for reason, number in account["rejected"].items())
    words = f"; {account['out']} of {account['in']} steps have a label" if lost or draws else ""
    return words + (f" (without: {lost})" if lost else "") + (f"; {draws} draws" if draws else "")


def _merged(rollout: Rollout, *, max_steps: int) -> tuple[tuple[Step, ...], tuple[MonteCarloCount | None, ...]]:
    assert rollout.mc is not None
    counted = split_into(rollout.completion.text, len(rollout.mc))
    return merged_counts(counted, rollout.mc, max_steps=max_steps)


def _consensus(second: Sequence[RolloutGroup], rule: LabelRule, *, max_steps: int) -> Consensus:
    """Both sources are compared by hard labels, whatever the labels are that are learned."""
    hard = replace(rule, soft=False, binomial=False)
    hard.check_sources(rollout for group in second for rollout in group.rollouts)

    def label(rollout: Rollout) -> Any:
        steps, counts = _merged(rollout, max_steps=max_steps)
        return steps, counts, hard.labels(counts, exact=rollout.label_source == EXACT)

    return Consensus(second, label)
