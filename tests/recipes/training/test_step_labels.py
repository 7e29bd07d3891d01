"""Two sources of step labels: what is matched, what is kept, what is listed."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from recipes.training.step_labels import LEFT_OUT, in_words, label_groups, number_labelled, with_a_label
from rewards.prm.labelling.consensus import DISAGREE, NO_IMAGE, NO_LABEL, NO_RESPONSE, NO_STEP, content_of
from rewards.prm.labelling.labels import BETWEEN, NOT_COUNTED, LabelRule
from rewards.types import Completion, MonteCarloCount, Problem, Rollout, RolloutGroup

TEXT = "a\n\nb\n\nc\n\nd"
Pairs = list[tuple[int, int] | None]


def rollout(text: str, pairs: Pairs, source: str | None = "mc:full:4") -> Rollout:
    counts = tuple(None if pair is None else MonteCarloCount(*pair) for pair in pairs)
    return Rollout(Completion(text), mc=counts, label_source=source)


def group(*rollouts: Rollout, **problem: object) -> RolloutGroup:
    return RolloutGroup(Problem(**{"id": "p", "question": "q", "answer": "1"} | problem), rollouts)  # type: ignore[arg-type]


def test_a_step_counts_where_both_agree() -> None:
    """Hard labels 1, 1, 0, 0 against 1, 0, 0, none; the second source is another budget and has another id."""
    first = group(rollout(TEXT, [(4, 4), (1, 4), (0, 4), (0, 4)]))
    second = group(rollout("other", [(4, 4)]), rollout(TEXT, [(1, 1), (0, 4), (0, 4), None], "mc:bisect:4"), id="x")
    made = label_groups([first], LabelRule(), max_steps=12, second=[second])
    assert made.groups[0].solutions[0].labels == (1.0, None, 0.0, None)
    assert made.reasons == {DISAGREE: 1, NO_LABEL: 1}
    assert made.disagreements == [
        {
            "problem_id": "p",
            "question": "q",
            "step": 1,
            "step_text": "b",
            "response": TEXT,
            "first": {"label": 1.0, "count": [1, 4], "label_source": "mc:full:4"},
            "second": {"label": 0.0, "count": [0, 4], "label_source": "mc:bisect:4"},
        }
    ]
    account = made.account(made.groups)
    assert account == {"in": 4, "out": 2, "rejected": {DISAGREE: 1, NO_LABEL: 1}}
    assert in_words(account, made.groups) == (
        "; 2 of 4 steps have a label (without: sources disagree 1, no label in the second source 1)"
    )


def test_an_image_that_cannot_be_read_costs_its_own_steps_alone(tmp_path: Path) -> None:
    """In either source; one bad row used to stop the stage."""
    gone = (str(tmp_path / "gone.png"),)
    counts: Pairs = [(4, 4)] * 4
    first = [group(rollout(TEXT, counts)), group(rollout(TEXT, counts), id="bad", images=gone)]
    made = label_groups(first, LabelRule(), max_steps=12, second=[first[1], first[0]])
    assert [one.solutions[0].labels for one in made.groups] == [(1.0,) * 4, (None,) * 4]
    assert made.reasons == {NO_IMAGE: 4}


def test_responses_and_steps_that_the_second_source_lacks() -> None:
    """Another text, another question, other steps (merged in twos: only the ends of b and d are known)."""
    first = [
        group(rollout(TEXT, [(4, 4)] * 4), rollout("a\n\nb", [(4, 4), None])),
        group(rollout(TEXT, [(4, 4)] * 4), question="another"),
    ]
    second = [group(rollout(TEXT, [(4, 4), (4, 4)]))]
    made = label_groups(first, LabelRule(), max_steps=12, second=second)
    found = [solution.labels for one in made.groups for solution in one.solutions]
    assert found == [(None, 1.0, None, 1.0), (None, None), (None,) * 4]
    assert made.reasons == {NO_STEP: 2, NO_RESPONSE: 1 + 4, NOT_COUNTED: 1}
    kept, lost = with_a_label(made.groups)
    assert ([len(one.solutions) for one in kept], lost, number_labelled(kept)) == ([1], 2, 2)
    account = made.account(kept)
    assert account["in"] == 10 == account["out"] + sum(account["rejected"].values())
    assert LEFT_OUT not in account["rejected"]
    assert made.account([])["rejected"][LEFT_OUT] == 2


def test_the_second_source_decides_what_is_kept_and_never_what_it_is() -> None:
    """Soft labels and counts are the first source's; both sources call b right and c wrong."""
    first, second = rollout(TEXT, [(4, 4), (1, 4), (0, 4), (0, 4)]), rollout(TEXT, [(0, 4), (4, 4), (0, 2), (0, 2)])
    for rule, kept in ((LabelRule(soft=True), None), (LabelRule(binomial=True), MonteCarloCount(1, 4))):
        made = label_groups([group(first)], rule, max_steps=12, second=[group(second)])
        (solution,) = made.groups[0].solutions
        assert solution.labels == (None, 0.25, 0.0, 0.0)
        assert (solution.counts or [None, None])[1] == kept
        assert made.reasons == {DISAGREE: 1}
    assert "; 12 draws" in in_words(made.account(made.groups), made.groups)


def test_two_thresholds_hold_for_both_sources() -> None:
    """3 of 4 is right and 2 of 4 between; a step between in the second source has no label there."""
    first, second = rollout(TEXT, [(3, 4), (3, 4), (2, 4), (0, 4)]), rollout(TEXT, [(4, 4), (2, 4), (4, 4), (3, 4)])
    made = label_groups([group(first)], LabelRule(good_above=0.6, bad_below=0.4), max_steps=12, second=[group(second)])
    assert made.groups[0].solutions[0].labels == (1.0, None, None, None)
    assert made.reasons == {BETWEEN: 1, NO_LABEL: 1, DISAGREE: 1}


def test_problems_are_matched_by_the_pixels_of_their_images(tmp_path: Path) -> None:
    """The same image in another file and format is the same problem; another image is another one."""
    for name, colour in (("a.png", "red"), ("b.bmp", "red"), ("c.png", "blue")):
        Image.new("RGB", (8, 8), colour).save(tmp_path / name)
    problems = [Problem(name, "q", (tmp_path / name,), "1") for name in ("a.png", "b.bmp", "c.png")]
    keys = [content_of(problem) for problem in problems]
    assert keys[0] == keys[1] != keys[2]
    assert content_of(Problem("m", "q", (Image.new("RGB", (8, 8), "red"),), "1")) == keys[0]


def test_one_source_has_no_list() -> None:
    made = label_groups([group(rollout(TEXT, [(4, 4)] * 4))], LabelRule(), max_steps=12)
    assert (made.disagreements, made.reasons, made.steps) == (None, {}, 4)
    assert in_words(made.account(made.groups), made.groups) == ""
