"""A PRM that looks depends on the image, one that does not has dependence 0; steps, responses, scoring."""

from __future__ import annotations

import pytest
from PIL import Image

from mpo.multimodal.errors import DataError
from rewards.errors import StepAlignmentError
from rewards.pairing.limits import Limits
from rewards.pairing.rules import RULES, build_pairs
from rewards.scoring.groups import BLANK_AT_A_TIME, score_unseen
from rewards.scoring.other_images import partners, showing
from rewards.scoring.process_reward_model import ProcessRewardModel
from rewards.scoring.visual_dependence import dependence, of_group, visual_dependence
from rewards.types import Completion, MonteCarloCount, Problem, Rollout, RolloutGroup, StepScores, Unseen, Verdict

RIGHT, WRONG = Verdict.CORRECT, Verdict.WRONG


def unseen(*values: float) -> Unseen:
    return Unseen(StepScores(values), sum(values) / len(values))


def rollout(seen, blank=None, swapped=None, *, verdict=RIGHT, text="a\n\nb"):
    others = {"blank": unseen(*blank) if blank else None, "swapped": unseen(*swapped) if swapped else None}
    return Rollout(Completion(text), verdict, StepScores(tuple(seen)), sum(seen) / len(seen), **others)


class LookingPRM(ProcessRewardModel):
    """Believes a step that names the mean grey of the image; a blind one believes every step by its length."""

    def __init__(self, *, looks: bool = True) -> None:
        self.looks, self.calls = looks, 0

    def outcomes(self, items, *, describe=""):
        self.calls += 1
        return [
            StepScores(tuple(self.belief(problem, step) for step in text.split("\n\n")))
            if text.strip()
            else DataError("no text", reason="empty")
            for problem, text in items
        ]

    def belief(self, problem, step):
        if not self.looks or not step.startswith("grey "):
            return 0.75
        return 0.9 if problem.images[0].getpixel((0, 0))[0] == int(step.removeprefix("grey ")) else 0.1


def group(grey: int, size=(4, 4), claim: int | None = None) -> RolloutGroup:
    problem = Problem(f"grey {grey}", "?", (Image.new("RGB", size, (grey,) * 3),))
    text = f"grey {grey if claim is None else claim}\n\nso it is"
    scored = rollout([0.9, 0.75], text=text)
    return RolloutGroup(problem, (scored, Rollout(Completion(""), Verdict.UNPARSABLE)))


def test_dependence_a_step_and_a_response():
    """image (.9, .8), blank (.4, .8), swapped (.7, .2): blank (.5, 0), mean .25; swapped (.2, .6), mean .4."""
    found = rollout([0.9, 0.8], [0.4, 0.8], [0.7, 0.2])
    assert dependence(found, "blank").steps == pytest.approx((0.5, 0.0))
    assert dependence(found, "swapped").largest == pytest.approx(0.6)
    assert visual_dependence(found) == pytest.approx(0.25)  # the smaller one
    assert visual_dependence(rollout([0.9, 0.8], swapped=[0.7, 0.2])) == pytest.approx(0.4)
    assert visual_dependence(rollout([0.9, 0.8])) is dependence(rollout([0.9, 0.8])) is None


def test_a_group_says_what_depends_on_the_picture():
    """Right: .2 and .4. Wrong: .1 and 0. A response that was not scored says nothing."""
    rollouts = (
        rollout([0.9, 0.9], [0.7, 0.7]),
        rollout([0.9, 0.4], [0.3, 0.2]),
        rollout([0.9, 0.4], [0.9, 0.2], verdict=WRONG),
        rollout([0.9, 0.2], [0.9, 0.2], verdict=WRONG),
        Rollout(Completion(""), Verdict.UNPARSABLE),
    )
    found = of_group(RolloutGroup(Problem("p", "?"), rollouts))
    assert found == {
        "dependence_right": pytest.approx(0.3),
        "dependence_wrong": pytest.approx(0.05),
    }


def both(groups, prm):
    """Scored with blank images, then with others; and what lacks them."""
    groups, without = score_unseen(groups, prm, image="blank")
    groups, lacking = score_unseen(groups, prm, image="swapped")
    return groups, without | lacking


def test_a_prm_that_looks_and_one_that_does_not():
    """One step of two is about the image: 0.9 with it, 0.1 with any other, so the mean falls by 0.4."""
    for looks, expected in ((True, 0.4), (False, 0.0)):
        prm = LookingPRM(looks=looks)
        groups = [group(grey) for grey in (10, 20, 30)]
        seen = [0.9 if looks else 0.75, 0.75]
        groups = [
            RolloutGroup(g.problem, (g.rollouts[0].with_(step_scores=StepScores(tuple(seen))), *g.rollouts[1:]))
            for g in groups
        ]
        done, lacking = both(groups, prm)
        assert not lacking
        assert [visual_dependence(g.rollouts[0]) for g in done] == pytest.approx([expected] * 3)
        assert all(g.rollouts[1].blank is None for g in done)  # never scored
        assert [g.problem for g in done] == [g.problem for g in groups]


def test_what_has_no_other_image_is_counted_and_stays_unknown():
    text_only = RolloutGroup(Problem("t", "?"), (rollout([0.9, 0.75]),))
    done, lacking = both([group(10), text_only, group(10)], LookingPRM())
    assert lacking == {"no image": 1, "no other image": 2}  # the same pixels are no other image
    assert done[0].rollouts[0].blank is not None
    assert done[0].rollouts[0].swapped is None
    assert visual_dependence(done[1].rollouts[0]) is None


def test_an_image_of_another_size_is_resized():
    done, lacking = both([group(10), group(20, size=(8, 4))], LookingPRM())
    assert not lacking
    assert [visual_dependence(one.rollouts[0]) for one in done] == pytest.approx([0.4, 0.4])


def test_partners_by_hand():
    """Same sizes first, in order; then the most similar shape; never a shared image; never another number of images."""

    def problem(*sizes, color="red"):
        return Problem("p", "?", tuple(Image.new("RGB", size, color) for size in sizes))

    a, b, c = problem((8, 8)), problem((8, 8), color="blue"), problem((8, 8), color="green")
    assert partners([a, b, c]) == [1, 2, 0]
    assert partners([a, a, b]) == [2, 2, 0]
    wide, square = problem((16, 4), color="blue"), problem((9, 9), color="green")
    assert partners([a, wide, square]) == [2, 2, 0]
    assert partners([a, problem((8, 8), (8, 8), color="blue"), Problem("t", "?")]) == [None, None, None]
    two = problem((8, 8), (4, 4))
    assert partners([two, problem((8, 8), (4, 4), color="blue")]) == [1, 0]
    assert showing(a, wide).images[0].size == (8, 8)
    assert showing(a, b).images == b.images


def test_blank_pictures_are_made_some_at_a_time():
    prm = LookingPRM()
    done, _ = score_unseen([group(index % 250) for index in range(BLANK_AT_A_TIME + 1)], prm, image="blank")
    assert prm.calls == 2
    assert len(done) == BLANK_AT_A_TIME + 1


def test_scores_must_be_of_the_same_steps():
    with pytest.raises(StepAlignmentError, match="1 step scores with a blank image for 2"):
        rollout([0.9, 0.8], [0.4])
    with pytest.raises(StepAlignmentError, match="2 step scores with a swapped image for 0"):
        Rollout(Completion("a"), swapped=unseen(0.4, 0.5))


def pairable(*dependences: float | None) -> RolloutGroup:
    """Right responses that depend on the image by so much, and a wrong one."""
    rights = [
        rollout([0.9, 0.9], None if d is None else [0.9 - d, 0.9 - d], text=f"a{i}\n\nb")
        for i, d in enumerate(dependences)
    ]
    counts = (MonteCarloCount(1, 4), MonteCarloCount(0, 4))
    wrong = rollout([0.5, 0.1], [0.5, 0.0], verdict=WRONG, text="a0\n\nx").with_(mc=counts)
    return RolloutGroup(Problem("p", "?"), (*rights, wrong))


@pytest.mark.parametrize("rule", list(RULES))
def test_only_responses_that_depend_on_the_picture_are_chosen(rule):
    groups = [pairable(0.4, 0.05, None)]
    pairs, report = build_pairs(groups, rule=rule, limits=Limits(min_visual_dependence=0.1))
    assert {pair.meta["chosen_index"] for pair in pairs} == {0}
    assert report.rejected_rollouts["low_visual_dependence"] == report.rejected_rollouts["no_visual_dependence"] == 1
    assert report.mean_dependence == {"chosen": pytest.approx(0.4), "rejected": pytest.approx(0.05)}
    unfiltered, other = build_pairs(groups, rule=rule)
    assert not {"low_visual_dependence", "no_visual_dependence"} & set(other.rejected_rollouts)
    assert len(unfiltered) >= len(pairs)


def test_a_problem_whose_right_answers_are_all_blind_is_dropped_for_it():
    pairs, report = build_pairs([pairable(0.0, 0.05)], limits=Limits(min_visual_dependence=0.1))
    assert not pairs
    assert report.dropped == {"low_visual_dependence": 1}


def test_dependence_is_reported_only_where_every_pair_has_it():
    _, report = build_pairs([pairable(0.4, None)], rule="correctness")
    assert report.pairs == 2
    assert report.mean_dependence == {}
