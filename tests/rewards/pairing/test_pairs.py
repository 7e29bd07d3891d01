import dataclasses
import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpo.multimodal.errors import ConfigError
from rewards.pairing.eligibility import without_second_opinion
from rewards.pairing.limits import Limits
from rewards.pairing.rules import (
    LIMITS,
    RULES,
    Pairing,
    build_pairs,
    correctness,
    correctness_and_prm,
    prm_margin,
    seen_by,
    step_prefix,
)
from rewards.statistics import wilson_interval
from rewards.types import Completion, FinishReason, MonteCarloCount, Problem, Rollout, RolloutGroup, Verdict

C, W, U, T, E = Verdict.CORRECT, Verdict.WRONG, Verdict.UNPARSABLE, Verdict.TIMEOUT, Verdict.ERROR
LENGTH, STOP = FinishReason.LENGTH, FinishReason.STOP

SILENT = "I look at the image again.\n\nIt could be many things, and I cannot tell which."
TEXTS = ["a", " a ", "bb", "ccc\n\nd", "ccc\n\ne", "ccc\n\nd\n\ne", "ff", "", " \n"]
COUNTS = st.lists(st.sampled_from([0, 2]).map(lambda right: MonteCarloCount(right, 4)), min_size=1, max_size=3)
ROLLOUTS = st.builds(
    lambda text, finish, verdict, reward, mc: Rollout(Completion(text, finish), verdict, reward=reward, mc=mc),
    st.sampled_from(TEXTS),
    st.sampled_from(FinishReason),
    st.sampled_from([*Verdict, None]),
    st.sampled_from([0.0, 0.25, 0.5, 1.0, None]),
    st.none() | COUNTS.map(tuple),
)
GROUPS = st.lists(st.lists(ROLLOUTS, max_size=8), max_size=6).map(
    lambda groups: [RolloutGroup(Problem(f"p{i}", "?"), tuple(rollouts)) for i, rollouts in enumerate(groups)]
)


def group_of(*rows, id="p"):
    """rows: (text, verdict, reward[, finish])."""
    rollouts = tuple(Rollout(Completion(t, f[0] if f else STOP), verdict=v, reward=r) for t, v, r, *f in rows)
    return RolloutGroup(Problem(id, "?"), rollouts)


def limits_of(rule):
    """The paper's, for groups without step scores; step_prefix finds its step by counts."""
    return LIMITS[rule] if rule == "step_prefix" else Limits()


def indexes(pairs):
    return [(pair.meta["chosen_index"], pair.meta["rejected_index"]) for pair in pairs]


@settings(max_examples=300, deadline=None)
@given(GROUPS, st.sampled_from(sorted(RULES)), st.integers(1, 5), st.booleans(), st.sampled_from([None, 1.0, 2.0]))
def test_invariants_and_accounting(groups, rule, max_pairs, format_negatives, max_length_ratio):
    """What no pair may be, whatever the rule: truncated, unverified or not sampled as chosen; equal or empty sides."""
    options = {"limits": Limits(max_pairs, format_negatives, max_length_ratio)}
    pairs, report = build_pairs(groups, rule=rule, **options)
    by_id = {group.problem.id: group for group in groups}
    for pair in pairs:
        rollouts = by_id[pair.problem.id].rollouts
        chosen, rejected = rollouts[pair.meta["chosen_index"]], rollouts[pair.meta["rejected_index"]]
        assert (pair.chosen, pair.rejected) == (chosen.completion, rejected.completion)
        assert pair.source.removesuffix("_format") == rule
        assert (pair.meta["chosen_reward"], pair.meta["rejected_reward"]) == (chosen.reward, rejected.reward)
        assert chosen.verdict is C
        assert chosen.completion.finish_reason is STOP
        assert rejected.verdict in {"prm_margin": (C, W, U), "step_prefix": (W,)}.get(rule, (W, U))
        assert format_negatives or rejected.verdict is not U
        assert chosen.completion.text.strip() != rejected.completion.text.strip()
        assert rejected.completion.text.strip()
        lengths = sorted(len(side.completion.text.strip()) for side in (chosen, rejected))
        assert max_length_ratio is None or lengths[1] <= max_length_ratio * lengths[0]
    per_problem = Counter((pair.problem.id, pair.source) for pair in pairs)
    assert all(count <= max_pairs for count in per_problem.values())
    assert len(set(zip((p.problem.id for p in pairs), indexes(pairs), strict=True))) == len(pairs)
    assert report.problems_in == len(groups) == report.problems_with_pairs + sum(report.dropped.values())
    assert report.problems_with_pairs == len({pair.problem.id for pair in pairs})
    assert report.pairs == len(pairs) == sum(report.sources.values())
    assert (pairs, report) == build_pairs(iter(groups), rule=rule, **options)


@settings(max_examples=200, deadline=None)
@given(GROUPS)
def test_prm_margin_keeps_its_distance_and_uses_a_text_once(groups):
    for group in groups:
        pairs, _ = prm_margin(group, Limits(max_pairs=9), margin=0.25)
        gaps = [pair.meta["chosen_reward"] - pair.meta["rejected_reward"] for pair in pairs]
        assert gaps == sorted(gaps, reverse=True)
        assert all(gap >= 0.25 for gap in gaps)
        used = [index for both in indexes(pairs) for index in both]
        assert len(used) == len(set(used))


@settings(max_examples=200, deadline=None)
@given(GROUPS)
def test_step_prefix_parts_at_the_first_bad_step(groups):
    for group in groups:
        for pair in step_prefix(group, LIMITS["step_prefix"])[0]:
            shared, mc = pair.meta["shared_characters"], group.rollouts[pair.meta["rejected_index"]].mc
            assert pair.chosen.text[:shared] == pair.rejected.text[:shared] != ""
            assert pair.chosen.text[shared:].split("\n\n")[0] != pair.rejected.text[shared:].split("\n\n")[0]
            assert [count.correct > 0 for count in mc[: pair.meta["first_bad_step"] + 1]][-1] is False
            assert all(count.correct > 0 for count in mc[: pair.meta["first_bad_step"]])


@given(GROUPS)
def test_a_rule_says_why_a_rollout_stands_on_no_side(groups):
    for group in groups:
        pairs, rejects = correctness(group, Limits(max_pairs=10**6))
        right, wrong = {c for c, _ in indexes(pairs)}, {r for _, r in indexes(pairs)}
        if pairs:  # then every usable rollout is in some pair
            assert len(right) + len(wrong) + rejects.total() == len(group.rollouts)


def test_prm_rule_pairs_the_best_right_with_the_hardest_wrong():
    group = group_of(("r0", C, 0.2), ("w1", W, 0.1), ("r2", C, 0.9), ("w3", W, 0.8), ("w4", W, 0.8), ("r5", C, 0.5))
    assert indexes(correctness_and_prm(group, Limits(max_pairs=15))[0]) == [(2, 3), (5, 4), (0, 1)]
    assert indexes(correctness_and_prm(group, Limits(max_pairs=1))[0]) == [(2, 3)]


def test_prm_rule_never_trusts_the_prm_over_the_verifier():
    group = group_of(("right", C, 0.1), ("wrong", W, 0.9))
    assert indexes(correctness_and_prm(group, Limits(max_pairs=5))[0]) == [(0, 1)]


def test_correctness_takes_all_combinations_then_a_seeded_sample():
    rows = [(f"r{i}", C, None) for i in range(4)] + [(f"w{i}", W, None) for i in range(5)]
    everything, _ = correctness(group_of(*rows), Limits(max_pairs=20))
    assert sorted(indexes(everything)) == list(itertools.product(range(4), range(4, 9)))
    samples = {tuple(indexes(correctness(group_of(*rows, id=f"p{i}"), Limits(max_pairs=6))[0])) for i in range(10)}
    assert len(samples) > 5  # the problem's id is the seed
    assert all(len(set(sample)) == 6 for sample in samples)
    assert correctness(group_of(*rows), Limits(max_pairs=6)) == correctness(group_of(*rows), Limits(max_pairs=6))


@pytest.mark.parametrize("rule", sorted(RULES))
def test_a_miss_is_on_no_side(rule):
    """What the verifier could not read or check is no negative in any rule, and is counted by reason."""
    misses = [("so there are 7", U), ("Final answer: \\(B\\) or C", U), (SILENT, U), ("t", T), ("e", E)]
    group = group_of(("right", C, 0.9), *((text, verdict, 0.85) for text, verdict in misses))
    pairs, report = build_pairs([group], rule=rule, limits=limits_of(rule))
    assert pairs == []
    expected = {"unparsable": 3, "verifier_error": 1, "verifier_timeout": 1}
    lonely = {"no_partner_within_margin": 1} if rule == "prm_margin" else {}  # it pairs right ones too
    assert report.rejected_rollouts == expected | lonely
    nothing_read = group_of(("a", U, 0.5), ("b", T, 0.5))
    assert build_pairs([nothing_read], rule=rule)[1].dropped == {"none_readable": 1}


@pytest.mark.parametrize("rule", ["correctness", "correctness_and_prm", "prm_margin"])
def test_format_negatives_are_asked_for_and_truly_state_no_answer(rule):
    stated = [("so there are 7 apples", U, 0.2), ("Final answer: 3\nFinal answer: 4", U, 0.2)]
    group = group_of(("right", C, 0.5), (SILENT, U, 0.2), *stated)
    pairs, report = build_pairs([group], rule=rule, limits=Limits(format_negatives=True))
    assert [pair.rejected.text for pair in pairs] == [SILENT]
    assert report.rejected_rollouts["unreadable_answer"] == 2


@pytest.mark.parametrize("rule", ["correctness", "correctness_and_prm", "prm_margin", "step_prefix"])
def test_what_two_verifiers_dispute_is_on_no_side(rule):
    counts = (MonteCarloCount(2, 2), MonteCarloCount(0, 2))
    agreed = [("one\n\ngood", C, C, 0.9), ("one\n\nbad", W, W, 0.5), ("one\n\nunread", W, U, 0.4)]
    doubted = [("one\n\ndoubt", C, W, 0.8), ("one\n\nvice versa", W, C, 0.6)]
    rollouts = tuple(
        Rollout(Completion(text), verdict=first, reward=reward, mc=counts, second_verdict=second)
        for text, first, second, reward in [*agreed, *doubted]
    )
    group = RolloutGroup(Problem("p", "?"), rollouts)
    pairs, report = build_pairs([group], rule=rule, limits=limits_of(rule))
    assert {pair.rejected.text for pair in pairs} <= {"one\n\nbad", "one\n\nunread"}
    assert {pair.chosen.text for pair in pairs} == {"one\n\ngood"}
    assert report.rejected_rollouts["disputed_verdict"] == 2
    _, report = build_pairs([without_second_opinion(group)], rule=rule)
    assert "disputed_verdict" not in report.rejected_rollouts


def test_truncated_may_be_rejected_but_never_chosen():
    cut_wrong = group_of(("right", C, 0.5), ("wro", W, 0.5, LENGTH))
    assert len(build_pairs([cut_wrong], limits=Limits())[0]) == 1
    cut_right = group_of(("right", C, 0.5, LENGTH), ("wrong", W, 0.5))
    assert build_pairs([cut_right], limits=Limits())[1].dropped == {"truncated_right": 1}


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([], "no_rollouts"),
        ([("a", None, 0.1), ("b", None, 0.1)], "no_verdict"),
        ([("a", T, 0.1), ("b", E, 0.1)], "verifier_failed"),
        ([("a", C, 0.1), ("b", C, 0.1), ("c", T, 0.1)], "all_right"),
        ([("a", W, 0.1), ("b", U, 0.1), ("c", None, 0.1)], "all_wrong"),
        ([("a", C, None), ("b", W, None)], "no_reward"),
        ([("a", C, 0.1), (" ", W, 0.1)], "empty"),
        ([("a", C, 0.1), ("b", U, 0.1)], "all_right"),
        ([("a", C, 0.1), (" a", W, 0.1)], "duplicate_text"),
    ],
)
def test_reasons(rows, reason):
    pairs, report = build_pairs([group_of(*rows)], limits=Limits())
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
    _, report = build_pairs(groups, limits=Limits())
    assert dataclasses.asdict(report) == {
        "problems_in": 4, "problems_with_pairs": 3, "pairs": 3, "dropped": {"all_wrong": 1}, "rejected_rollouts": {},
        "sources": {"correctness_and_prm": 3}, "warnings": (),
        "blind_intervals": {name: pytest.approx(wilson_interval(share, 3))
                            for name, share in (("longest", 0.5), ("shortest", 0.5), ("first", 1 / 3))},
        "mean_characters": {"chosen": 4.0, "rejected": pytest.approx(13 / 3)},
        "mean_steps": {"chosen": 1.0, "rejected": pytest.approx(4 / 3)}, "mean_dependence": {},
        "rejected_counted": 1.0, "lowest_steps": 0,
        "blind_rulers": {"longest": 0.5, "shortest": 0.5, "first": pytest.approx(1 / 3)},
    }  # fmt: skip


def test_bad_settings_are_refused():
    with pytest.raises(ConfigError, match=r"'best'.*correctness, correctness_and_prm, prm_margin, step_prefix"):
        build_pairs([], rule="best")
    with pytest.raises(ConfigError, match="max_pairs"):
        build_pairs([], limits=Limits(max_pairs=0))
    for ratio in (0.5, float("nan")):
        with pytest.raises(ConfigError, match="max_length_ratio must be at least 1"):
            build_pairs([], limits=Limits(max_length_ratio=ratio))
    with pytest.raises(ConfigError, match="margin must be above 0"):
        prm_margin(group_of(("a", C, 0.5)), Limits(max_pairs=1), margin=0.0)
    assert build_pairs([])[1].problems_in == 0


def test_format_negatives_stand_apart_in_mmprs_rule():
    """2 right × 2 wrong and 2 right × 1 without an answer, at most 3 of each."""
    rows = [("r1", C, None), ("r2", C, None), ("w1", W, None), ("w2", W, None), (SILENT, U, None)]
    limits = Limits(max_pairs=3, format_negatives=True)
    pairs, report = build_pairs([group_of(*rows)], rule="correctness", limits=limits)
    assert Counter(pair.source for pair in pairs) == {"correctness": 3, "correctness_format": 2}
    assert report.sources == {"correctness": 3, "correctness_format": 2}


def test_prm_margin_pairs_right_answers_too():
    group = group_of(("r0", C, 0.9), ("r1", C, 0.5), ("w2", W, 0.85), ("w3", W, 0.1))
    assert indexes(prm_margin(group, Limits(max_pairs=9))[0]) == [(0, 3)]  # then 1 has no unused partner below 0.4
    solved = group_of(("r0", C, 0.9), ("r1", C, 0.5), ("r2", C, 0.45))
    assert indexes(prm_margin(solved, Limits(max_pairs=9))[0]) == [(0, 2)]
    close = group_of(("r0", C, 0.5), ("w1", W, 0.45))
    assert build_pairs([close], rule="prm_margin", limits=Limits())[1].dropped == {"no_partner_within_margin": 1}


def test_length_matching_takes_the_hardest_negative_of_the_chosens_length():
    group = group_of(("four", C, 0.9), ("a far longer text", W, 0.8), ("five5", W, 0.3))
    assert indexes(correctness_and_prm(group, Limits(max_pairs=9))[0]) == [(0, 1)]
    assert indexes(correctness_and_prm(group, Limits(max_pairs=9, max_length_ratio=1.5))[0]) == [(0, 2)]
    _, report = build_pairs(
        [group_of(("four", C, 0.9), ("a far longer text", W, 0.8))], limits=Limits(max_length_ratio=1.5)
    )
    assert report.dropped == {"no_partner_of_its_length": 1}
    assert report.rejected_rollouts == {"no_partner_of_its_length": 2}


def steps_of(text, verdict, counts=None):
    mc = tuple(MonteCarloCount(right, 4) for right in counts) if counts else None
    return Rollout(Completion(text), verdict, mc=mc)


def test_step_prefix_by_hand():
    """The wrong one errs at its second step; a right one shares the first step, another shares nothing."""
    wrong = steps_of("See 3\n\nSee 9\n\nFinal answer: 12", W, [4, 0, 0])
    right = steps_of("See 3\n\nSee 8\n\nFinal answer: 11", C)
    other = steps_of("Look: 3\n\nSee 8\n\nFinal answer: 11", C)
    (pair,), rejects = step_prefix(RolloutGroup(Problem("p", "?"), (wrong, other, right)), LIMITS["step_prefix"])
    assert indexes([pair]) == [(2, 0)]
    assert (pair.meta["first_bad_step"], pair.meta["shared_characters"]) == (1, len("See 3\n\n"))
    assert pair.rejected.text[slice(*pair.rejected_span)] == "See 9"
    assert rejects == {"no_partner_with_its_prefix": 1}


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (steps_of("a\n\nb", W), "no_counts"),
        (steps_of("a\n\nb", W, [4, 4, 0]), "steps_and_values_differ"),
        (steps_of("a\n\nb", W, [0, 0]), "bad_from_the_start"),
        (steps_of("a\n\nb", W, [4, 1]), "no_bad_step"),
    ],
)
def test_step_prefix_says_why_a_wrong_response_is_not_used(wrong, reason):
    group = RolloutGroup(Problem("p", "?"), (wrong, steps_of("a\n\nc", C)))
    pairs, rejects = step_prefix(group, LIMITS["step_prefix"])
    assert (pairs, rejects[reason]) == ([], 1)


def test_a_blind_ruler_that_explains_the_pairs_is_warned_of():
    """30 problems whose chosen side is always longer: Wilson's low end is 30 / (30 + 1.96²) = 0.886 > 0.55."""
    groups = [group_of(("a long answer", C, 0.9), ("short", W, 0.5), id=f"p{i}") for i in range(30)]
    _, report = build_pairs(groups, limits=Limits())
    assert report.blind_intervals["longest"] == pytest.approx((0.886, 1.0), abs=1e-3)
    assert [text.split(" response")[0] for text in report.warnings] == ["picking the longest", "picking the first"]
    assert "100% of the pairs (95 % interval 89% to 100%)" in report.warnings[0]
    even = [group_of(("aa", C, 0.9), ("bb", W, 0.5), id=f"p{i}") for i in range(30)]
    assert [text for text in build_pairs(even, limits=Limits())[1].warnings if "first" not in text] == []
    assert build_pairs(groups[:3], limits=Limits())[1].warnings == ()  # three problems prove nothing


def test_yields_of_all_rules():
    group = group_of(("right", C, 0.9), ("wrong", W, 0.5), ("none", U, 0.1))
    pairings = {name: Pairing(name, Limits(max_pairs=4)) for name in RULES}
    groups = [group, group_of(("a", W, 0.1), id="q")]
    assert list(seen_by(pairings.values(), groups)) == groups
    table = {name: pairing.report() for name, pairing in pairings.items()}
    assert {name: (report.problems_with_pairs, report.pairs) for name, report in table.items()} == {
        "correctness": (1, 1), "correctness_and_prm": (1, 1), "prm_margin": (1, 1), "step_prefix": (0, 0),
    }  # fmt: skip
    assert all(report.problems_in == 2 for report in table.values())
