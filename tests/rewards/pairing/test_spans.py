"""The first bad step of a rejected response, by every source; what it makes of pairs and of their account."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpo.multimodal.errors import ConfigError, DataError
from rewards.interchange.mmpr import read_mmpr, write_mmpr
from rewards.interchange.trl_rows import from_trl_row, read_trl_parquet, write_trl_parquet
from rewards.pairing.limits import Limits
from rewards.pairing.rules import LIMITS, build_pairs, prm_margin
from rewards.pairing.spans import PARTS, SOURCES, RejectedSpan
from rewards.steps import split_on_blank_lines
from rewards.types import (
    Completion,
    MonteCarloCount,
    PreferencePair,
    Problem,
    Rollout,
    RolloutGroup,
    StepScores,
    Verdict,
)

C, W, U = Verdict.CORRECT, Verdict.WRONG, Verdict.UNPARSABLE
TEXT = "See 3\n\nNow 12\n\n See 4 \n\nFinal answer: 8"
FIRST = RejectedSpan("first_bad_step")


def response(text=TEXT, verdict=W, scores=None, counts=None, source=None, reward=0.5):
    mc = tuple(MonteCarloCount(right, 4) for right in counts) if counts else None
    steps = StepScores(tuple(scores)) if scores else None
    return Rollout(Completion(text), verdict, steps, reward, mc, source)


def counted(rollout, span):
    found = span.of(rollout)
    return found if isinstance(found, str) or found is None else rollout.completion.text[slice(*found)]


def test_the_first_step_below_the_threshold_without_its_blank_lines():
    rollout = response(scores=(0.9, 0.4, 0.1, 0.2))
    assert counted(rollout, FIRST) == "Now 12"
    assert counted(rollout, RejectedSpan("up_to_first_bad_step")) == "See 3\n\nNow 12"
    assert counted(rollout, RejectedSpan("first_bad_step", threshold=0.2)) == "See 4"  # 0.1 < 0.2
    assert counted(rollout, RejectedSpan("full")) is None
    assert counted(response(scores=(0.5, 0.4, 0.1, 0.2)), FIRST) == "Now 12"  # 0.5 is not below 0.5


def test_where_no_score_is_low_the_lowest_step_counts_and_is_counted():
    rollout = response(scores=(0.9, 0.7, 0.6, 0.6))
    assert counted(rollout, FIRST) == "See 4"
    assert FIRST.bad_step(rollout).is_lowest
    right = response("See 3\n\nFinal answer: 3", C, (0.9, 0.8))
    pairs, report = build_pairs([RolloutGroup(Problem("p", "?"), (rollout, right))])
    assert (len(pairs), report.lowest_steps) == (1, 1)
    assert report.rejected_counted == pytest.approx(len("See 4") / len(TEXT))


def test_counts_and_exact_labels():
    mc, exact = RejectedSpan("first_bad_step", "mc"), RejectedSpan("first_bad_step", "exact")
    drawn = response(counts=(4, 4, 0, 0), source="mc:full:4")
    assert counted(drawn, mc) == "See 4"
    assert counted(drawn, exact) == "no_exact_labels"
    known = response(counts=(4, 0, 0, 0), source="exact")
    assert (counted(known, exact), counted(known, mc)) == ("Now 12", "no_counts")
    assert counted(response(counts=(4, 4, 1, 1), source="mc:full:4"), mc) == "no_bad_step"
    half = RejectedSpan("first_bad_step", "mc", threshold=0.5)
    assert counted(response(counts=(4, 2, 1, 0), source="mc:full:4"), half) == "Now 12"
    assert counted(response(counts=(4, 2, 1, 0), source="mc:bisect:4"), half) == "counts_say_only_above_0"


def test_scores_of_merged_steps_point_at_their_characters():
    assert counted(response(scores=(0.9, 0.1)), FIRST) == "See 4 \n\nFinal answer: 8"
    assert counted(response(scores=(0.9, 0.1, 0.1)), FIRST) == "steps_and_values_differ"  # 4 steps merge to 2, not 3


def test_a_response_without_an_answer_counts_whole():
    assert counted(response(verdict=U, scores=(0.9, 0.1, 0.1, 0.1)), FIRST) is None


@given(st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_the_control_is_as_long_and_elsewhere(scores):
    rollout = response(scores=scores)
    first, last = FIRST.of(rollout)
    start, end = RejectedSpan("first_bad_step", "random").of(rollout)
    assert end - start == last - first
    assert RejectedSpan("first_bad_step", "random").of(rollout) == (start, end)
    others = [step.start for step in split_on_blank_lines(TEXT) if not step.start <= first < step.end]
    assert start in ([at for at in others if at + last - first <= len(TEXT)] or [first])


TEXTS = st.lists(st.sampled_from(["a", " b", "c\n", "\td d"]), min_size=1, max_size=6).map("\n\n".join)
ROLLOUTS = st.builds(
    lambda text, verdict, scores, reward: response(text, verdict, scores[: text.count("\n\n") + 1], reward=reward),
    TEXTS,
    st.sampled_from([C, W, U]),
    st.lists(st.sampled_from([0.0, 0.3, 0.5, 0.8, 1.0]), min_size=6, max_size=6),
    st.sampled_from([0.1, 0.5, 0.9]),
)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(ROLLOUTS, max_size=8),
    st.sampled_from(["correctness", "correctness_and_prm", "prm_margin"]),
    st.sampled_from(PARTS),
    st.sampled_from([0.0, 0.5, 1.0]),
)
def test_no_pair_breaks_its_limits(rollouts, rule, part, least):
    """A span is inside the text, holds the first low step, and no chosen response has a step below the limit."""
    group = RolloutGroup(Problem("p", "?"), tuple(rollouts))
    limits = Limits(min_step_score=least, rejected_span=RejectedSpan(part))
    pairs, report = build_pairs([group], rule=rule, limits=limits)
    for pair in pairs:
        chosen, rejected = (rollouts[pair.meta[f"{side}_index"]] for side in ("chosen", "rejected"))
        assert min(chosen.step_scores.values) >= least
        whole = part == "full" or rejected.verdict is U
        assert (pair.rejected_span is None) == whole
        if not whole:
            start, end = pair.rejected_span
            assert pair.rejected.text[start:end].strip()
            assert (start == 0) or (part == "first_bad_step")
    assert 0.0 < report.rejected_counted <= 1.0


def test_lucky_answers_are_counted_by_reason():
    lucky = response("See 3\n\nFinal answer: 8", C, (0.2, 0.9), reward=0.55)
    sound = response("See 4\n\nFinal answer: 8", C, (0.8, 0.9), reward=0.5)
    unread = response("See 5\n\nFinal answer: 8", C, None, reward=0.9)
    group = RolloutGroup(Problem("p", "?"), (lucky, sound, unread, response(scores=(0.9, 0.4, 0.4, 0.4))))
    (pair,), report = build_pairs([group])
    assert pair.meta["chosen_index"] == 1
    assert report.rejected_rollouts == {"low_step_score": 1, "no_step_scores": 1}
    assert build_pairs([group], limits=Limits())[0][0].meta["chosen_index"] == 2
    alone = RolloutGroup(Problem("p", "?"), (lucky, response(scores=(0.9, 0.4, 0.4, 0.4))))
    assert build_pairs([alone])[1].dropped == {"low_step_score": 1}


def test_a_right_rejected_response_needs_a_bad_step_too():
    """prm_margin rejects right responses; by counts they have no bad step, and no such pair is made."""
    better, worse = (
        response(f"{text}\n\n8", C, counts=(4, 4), source="mc:full:4", reward=r) for text, r in (("a", 0.9), ("b", 0.1))
    )
    limits = Limits(rejected_span=RejectedSpan("first_bad_step", "mc"))
    group = RolloutGroup(Problem("p", "?"), (better, worse))
    assert prm_margin(group, limits)[0] == []
    assert len(prm_margin(group, Limits())[0]) == 1


def test_the_defaults_are_the_papers_or_what_a_step_level_prm_is_for():
    assert LIMITS["correctness"] == Limits()
    assert (Limits().rejected_span, Limits().min_step_score) == (RejectedSpan("full"), 0.0)
    for rule in ("correctness_and_prm", "prm_margin"):
        assert LIMITS[rule] == Limits(min_step_score=0.5, rejected_span=FIRST)


def test_refusals():
    for wrong in ({"part": "last"}, {"source": "judge"}, {"threshold": 1.5}, {"threshold": float("nan")}):
        with pytest.raises(ConfigError, match=r"rejected_span|span_source|bad_step_threshold"):
            RejectedSpan(**wrong)
    with pytest.raises(ConfigError, match="min_step_score"):
        Limits(min_step_score=-0.1)
    for span in ((2, 2), (-1, 2), (0, 99)):
        with pytest.raises(DataError, match="rejected_span"):
            PreferencePair(Problem("p", "?"), Completion("a"), Completion("b c"), "x", rejected_span=span)
    assert set(SOURCES) == {"prm", "mc", "exact", "random"}


def test_a_span_goes_to_files_and_back(tmp_path):
    pairs = [
        PreferencePair(Problem("p", "?"), Completion("good"), Completion(TEXT), "x", rejected_span=span)
        for span in ((7, 13), None)
    ]
    write_trl_parquet(pairs, tmp_path / "pairs.parquet")
    rows = read_trl_parquet(tmp_path / "pairs.parquet")
    assert [row["rejected_span"] for row in rows] == [[7, 13], None]
    assert [from_trl_row(row).rejected_span for row in rows] == [(7, 13), None]
    for bad in ([1], [1, 2, 3]):
        with pytest.raises(DataError, match="rejected_span"):
            from_trl_row(rows[0] | {"rejected_span": bad})
    write_mmpr(pairs, tmp_path / "mmpr")
    assert [pair.rejected_span for pair in read_mmpr(tmp_path / "mmpr", on_reject=print)] == [(7, 13), None]
