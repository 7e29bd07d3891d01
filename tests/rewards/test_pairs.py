import dataclasses
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpo.multimodal.errors import ConfigError
from rewards.pairs import RULES, build_pairs, correctness, correctness_and_prm
from rewards.types import Completion, FinishReason, Problem, Rollout, RolloutGroup, Verdict

C, W, U, T, E = Verdict.CORRECT, Verdict.WRONG, Verdict.UNPARSABLE, Verdict.TIMEOUT, Verdict.ERROR
LENGTH, STOP = FinishReason.LENGTH, FinishReason.STOP

ROLLOUTS = st.builds(
    lambda text, finish, verdict, reward: Rollout(Completion(text, finish), verdict=verdict, reward=reward),
    st.sampled_from(["a", " a ", "bb", "ccc\n\nd", "e", "ff", "", " \n"]),
    st.sampled_from(FinishReason),
    st.sampled_from([*Verdict, None]),
    st.sampled_from([0.0, 0.25, 0.5, 1.0, None]),
)
GROUPS = st.lists(st.lists(ROLLOUTS, max_size=8), max_size=6).map(
    lambda groups: [RolloutGroup(Problem(f"p{i}", "?"), tuple(rollouts)) for i, rollouts in enumerate(groups)]
)


def group_of(*rows, id="p"):
    """rows: (text, verdict, reward[, finish])."""
    rollouts = tuple(Rollout(Completion(t, f[0] if f else STOP), verdict=v, reward=r) for t, v, r, *f in rows)
    return RolloutGroup(Problem(id, "?"), rollouts)


def indexes(pairs):
    return [(pair.meta["chosen_index"], pair.meta["rejected_index"]) for pair in pairs]


@settings(max_examples=300, deadline=None)
@given(GROUPS, st.sampled_from(sorted(RULES)), st.integers(1, 5), st.booleans())
def test_invariants_and_accounting(groups, rule, max_pairs, format_negatives):
    pairs, report = build_pairs(groups, rule=rule, max_pairs=max_pairs, format_negatives=format_negatives)
    by_id = {group.problem.id: group for group in groups}
    for pair in pairs:
        rollouts = by_id[pair.problem.id].rollouts
        chosen, rejected = rollouts[pair.meta["chosen_index"]], rollouts[pair.meta["rejected_index"]]
        assert (pair.chosen, pair.rejected, pair.source) == (chosen.completion, rejected.completion, rule)
        assert (pair.meta["chosen_reward"], pair.meta["rejected_reward"]) == (chosen.reward, rejected.reward)
        assert chosen.verdict is C
        assert chosen.completion.finish_reason is STOP
        assert rejected.verdict in ((W, U) if format_negatives else (W,))
        assert chosen.completion.text.strip() != rejected.completion.text.strip()
        assert rejected.completion.text.strip()
    per_problem = [sum(pair.problem.id == id for pair in pairs) for id in by_id]
    assert all(count <= max_pairs for count in per_problem)
    assert len(set(zip((p.problem.id for p in pairs), indexes(pairs), strict=True))) == len(pairs)
    assert report.problems_in == len(groups) == report.problems_with_pairs + sum(report.dropped.values())
    assert report.problems_with_pairs == sum(count > 0 for count in per_problem)
    assert report.pairs == len(pairs)
    assert (pairs, report) == build_pairs(
        iter(groups), rule=rule, max_pairs=max_pairs, format_negatives=format_negatives
    )


@given(GROUPS)
def test_a_rule_says_why_a_rollout_stands_on_no_side(groups):
    for group in groups:
        _, rejects = correctness(group, max_pairs=10**6)
        pairs, _ = correctness(group, max_pairs=10**6)
        right, wrong = {c for c, _ in indexes(pairs)}, {r for _, r in indexes(pairs)}
        if pairs:  # then every usable rollout is in some pair
            assert len(right) + len(wrong) + rejects.total() == len(group.rollouts)


def test_prm_rule_pairs_the_best_right_with_the_hardest_wrong():
    group = group_of(("r0", C, 0.2), ("w1", W, 0.1), ("r2", C, 0.9), ("w3", W, 0.8), ("w4", W, 0.8), ("r5", C, 0.5))
    assert indexes(correctness_and_prm(group, max_pairs=15)[0]) == [(2, 3), (5, 4), (0, 1)]
    assert indexes(correctness_and_prm(group, max_pairs=1)[0]) == [(2, 3)]


def test_prm_rule_never_trusts_the_prm_over_the_verifier():
    group = group_of(("right", C, 0.1), ("wrong", W, 0.9))
    assert indexes(correctness_and_prm(group, max_pairs=5)[0]) == [(0, 1)]


def test_correctness_takes_all_combinations_then_a_seeded_sample():
    rows = [(f"r{i}", C, None) for i in range(4)] + [(f"w{i}", W, None) for i in range(5)]
    everything, _ = correctness(group_of(*rows), max_pairs=20)
    assert sorted(indexes(everything)) == list(itertools.product(range(4), range(4, 9)))
    samples = {tuple(indexes(correctness(group_of(*rows, id=f"p{i}"), max_pairs=6)[0])) for i in range(10)}
    assert len(samples) > 5  # the problem's id is the seed
    assert all(len(set(sample)) == 6 for sample in samples)
    assert correctness(group_of(*rows), max_pairs=6) == correctness(group_of(*rows), max_pairs=6)


def test_format_negatives_are_an_explicit_choice():
    group = group_of(("right", C, 0.5), ("no answer", U, 0.5))
    pairs, report = build_pairs([group])
    assert pairs[0].meta["rejected_verdict"] == "unparsable"
    pairs, report = build_pairs([group], format_negatives=False)
    assert pairs == []
    assert report.dropped == {"unparsable": 1}


def test_truncated_may_be_rejected_but_never_chosen():
    cut_wrong = group_of(("right", C, 0.5), ("wro", W, 0.5, LENGTH))
    assert len(build_pairs([cut_wrong])[0]) == 1
    cut_right = group_of(("right", C, 0.5, LENGTH), ("wrong", W, 0.5))
    assert build_pairs([cut_right])[1].dropped == {"truncated_right": 1}


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([], "no_rollouts"),
        ([("a", None, 0.1), ("b", None, 0.1)], "no_verdict"),
        ([("a", T, 0.1), ("b", E, 0.1)], "verifier_failed"),
        ([("a", C, 0.1), ("b", C, 0.1), ("c", T, 0.1)], "all_right"),
        ([("a", W, 0.1), ("b", U, 0.1), ("c", None, 0.1)], "all_wrong"),
        ([("a", C, None), ("b", W, None)], "no_reward"),
        ([("a", C, 0.1), (" ", U, 0.1)], "empty"),
        ([("a", C, 0.1), (" a", W, 0.1)], "duplicate_text"),
    ],
)
def test_reasons(rows, reason):
    pairs, report = build_pairs([group_of(*rows)])
    assert (pairs, report.dropped, report.problems_with_pairs) == ([], {reason: 1}, 0)
    assert report.blind_rulers == report.mean_characters == report.mean_steps == {}


def test_report_numbers():
    """Pairs: (chosen 4 chars, 1 step | rejected 8, 2), (2, 1 | 2, 1), (6, 1 | 3, 1)."""
    groups = [
        group_of(("good", C, 0.9), ("bad\n\nbad", W, 0.5), id="a"),
        group_of(("no", W, 0.9), ("ok", C, 0.5), id="b"),
        group_of(("bad", W, 0.9), ("better", C, 0.5), id="c"),
        group_of(("x", W, 0.9), id="d"),
    ]
    _, report = build_pairs(groups)
    assert dataclasses.asdict(report) == {
        "problems_in": 4, "problems_with_pairs": 3, "pairs": 3, "dropped": {"all_wrong": 1}, "rejected_rollouts": {},
        "mean_characters": {"chosen": 4.0, "rejected": pytest.approx(13 / 3)},
        "mean_steps": {"chosen": 1.0, "rejected": pytest.approx(4 / 3)},
        "blind_rulers": {"longest": 0.5, "shortest": 0.5, "first": pytest.approx(1 / 3)},
    }  # fmt: skip


def test_bad_settings_are_refused():
    with pytest.raises(ConfigError, match=r"'best'.*correctness, correctness_and_prm"):
        build_pairs([], rule="best")
    with pytest.raises(ConfigError, match="max_pairs"):
        build_pairs([], max_pairs=0)
    assert build_pairs([])[1].problems_in == 0
