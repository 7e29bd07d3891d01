"""What the PRM's training recipe does to layers and to rows."""

import random
from dataclasses import replace

import pytest
import torch

from mpo.multimodal.errors import ConfigError
from mpo.multimodal.loading import load_model
from recipes.config import TrainPRMConfig
from recipes.training.train_prm import _check_advantage, labelled_groups, with_injected_errors
from recipes.worlds.digits.deepen import deepen
from rewards.prm.formats import find_format
from rewards.steps import scored_steps, split_on_blank_lines
from rewards.types import Completion, MonteCarloCount, Problem, Rollout, RolloutGroup


def group(*texts_and_counts: tuple[str, list[tuple[int, int]]]) -> RolloutGroup:
    rollouts = tuple(
        Rollout(Completion(text), mc=tuple(MonteCarloCount(*pair) for pair in counts))
        for text, counts in texts_and_counts
    )
    return RolloutGroup(Problem("p", "q", answer="7"), rollouts)


def config(**changes) -> TrainPRMConfig:
    return TrainPRMConfig(groups="g", model="m", out="o", **changes)


def labels(settings: TrainPRMConfig) -> list[tuple[float, ...]]:
    rows = labelled_groups([group(("a\n\nb\n\nc", [(3, 4), (1, 4), (0, 4)]))], settings, 12)
    return [solution.labels for row in rows for solution in row.solutions]


def test_hard_labels_are_one_above_the_threshold_and_soft_ones_are_the_counts():
    assert labels(config()) == [(1.0, 1.0, 0.0)]
    assert labels(config(threshold=0.5)) == [(1.0, 0.0, 0.0)]
    assert labels(config(soft_labels=True)) == [(0.75, 0.25, 0.0)]


def test_no_label_after_the_first_error():
    assert labels(config(until_first_error=True)) == [(1.0, 1.0, 0.0)]
    rows = labelled_groups(
        [group(("a\n\nb\n\nc", [(3, 4), (0, 4), (1, 4)]))], config(until_first_error=True, soft_labels=True), 12
    )
    assert rows[0].solutions[0].labels == (0.75, 0.0, None)


def test_a_response_with_more_steps_than_the_format_takes_is_merged_as_it_is_scored():
    """Each merged step has the count of its end; nothing is dropped."""
    for number in (12, 13, 16, 25, 30):
        text = "\n\n".join(f"step {i}" for i in range(number))
        counts = [(number - i, number) for i in range(number)]
        (row,) = labelled_groups([group((text, counts))], config(soft_labels=True), 12)
        (solution,) = row.solutions
        assert solution.steps == scored_steps(text, max_steps=12)
        ends = [int(step.text.rsplit(" ", 1)[1]) for step in solution.steps]
        assert solution.labels == tuple(counts[end][0] / number for end in ends)


def test_steps_that_were_not_counted_have_no_label_and_a_merged_error_stays_one():
    """The first error is b. Merged in twos, [a, b] is wrong, [c, d] unlabelled."""
    rollout = Rollout(Completion("a\n\nb\n\nc\n\nd"), mc=(MonteCarloCount(3, 4), MonteCarloCount(0, 4), None, None))
    rows = [RolloutGroup(Problem("p", "q"), (rollout,))]
    for max_steps, expected in ((12, (1.0, 0.0, None, None)), (2, (0.0, None)), (3, (0.0, None)), (1, (0.0,))):
        (row,) = labelled_groups(rows, config(), max_steps)
        assert row.solutions[0].labels == expected
    (row,) = labelled_groups(rows, config(advantage=0.1, prm_format="visualprm_advantage"), 12)
    assert row.solutions[0].labels == (None, 0.0, None, None)


def test_injected_copies_of_right_responses_differ_in_one_digit_and_are_wrong_from_there_on():
    right, wrong = ("Red 7\n\nFinal answer: 7", [(4, 4), (4, 4)]), ("Red 3\n\nFinal answer: 3", [(0, 4), (0, 4)])
    (row,) = labelled_groups([group(right, wrong)], config(), 12)
    for seed in range(20):
        injected = with_injected_errors(row, 5, random.Random(seed))
        (copy,) = injected.solutions[2:]  # only the right response is copied
        original = row.solutions[0]
        changed = [i for i, (a, b) in enumerate(zip(original.steps, copy.steps, strict=True)) if a.text != b.text]
        assert len(changed) == 1
        before, after = original.steps[changed[0]].text, copy.steps[changed[0]].text
        assert sum(a != b for a, b in zip(before, after, strict=True)) == 1
        assert copy.labels == ((1.0, 0.0) if changed[0] == 1 else (0.0, None))
    assert split_on_blank_lines(right[0]) == original.steps  # the original is untouched


def test_a_deepened_model_has_more_layers_and_all_of_them_train(policy_folder):
    model = load_model(policy_folder)
    layers = len(model.get_decoder().layers)
    deepen(model, 2, seed=0)
    assert len(model.get_decoder().layers) == model.config.text_config.num_hidden_layers == layers + 2
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_first_new_layer_starts_out_copying_the_token_before(policy_folder):
    model = load_model(policy_folder)
    deepen(model, 1, seed=0)
    model.set_attn_implementation("eager")
    ids = torch.arange(30, 60)[None]
    with torch.no_grad():
        attention = model(input_ids=ids, output_attentions=True).attentions[-1][0]  # (heads, T, T)
    one_back = attention[:, range(1, 30), range(29)]
    assert one_back.mean() > 0.6


def test_an_outcome_format_takes_the_whole_response_with_its_last_label():
    (row,) = labelled_groups([group(("a\n\nb\n\nc", [(3, 4), (1, 4), (0, 4)]))], config(), 1)
    (solution,) = row.solutions
    assert (solution.labels, [step.text for step in solution.steps]) == ((0.0,), ["a\n\nb\n\nc"])


def test_doubtful_labels_need_counts_that_estimate_mc():
    rows = group(("a\n\nb", [(1, 2), (0, 4)]))
    rows = replace(rows, rollouts=(rows.rollouts[0].with_(label_source="mc:bisect:4"),))
    with pytest.raises(ConfigError, match=r"labels at --threshold 0\.5 need counts that estimate mc"):
        labelled_groups([rows], config(threshold=0.5, max_doubt=0.1), 12)


def test_advantage_labels_need_a_format_with_three_signs():
    for settings in (config(advantage=0.1), config(prm_format="visualprm_advantage")):
        with pytest.raises(ConfigError, match="advantage labels have three signs"):
            _check_advantage(settings, find_format(settings.prm_format))
    injected = config(advantage=0.1, prm_format="visualprm_advantage", injected=1)
    with pytest.raises(ConfigError, match="make labels of the value"):
        _check_advantage(injected, find_format(injected.prm_format))
