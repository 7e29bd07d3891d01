import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.types import Completion, FinishReason
from rewards.verifying.degeneration import LONG, REASONS, degenerate

DISTINCT = " ".join(f"word{i}" for i in range(LONG))
LOOP = "so we add it once more and then "  # 8 words


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("First is 3\n\nSecond is 4\n\n3 + 4 = 7\n\nFinal answer: 7", None),
        ("so \\boxed{7}", None),
        ("", "no_final_answer"),
        (" \n\n ", "no_final_answer"),
        ("First is 3\n\n3 + 4 = 7", "no_final_answer"),
        ("a\n\na\n\nFinal answer: 7", None),  # twice may be a check
        ("a\n\nb\n\na\n\nc\n\na\n\nFinal answer: 7", "repetition"),
        ("x\nFinal answer: 7\nFinal answer: 7\n\nFinal answer: 7\n", "repetition"),
        ("x\nFinal answer: 7\nFinal answer: 7\n", None),
        (DISTINCT + "\n\nFinal answer: 7", None),
        (LOOP * 2 + DISTINCT + " Final answer: 7", None),  # 16 of 58 words, twice
        (LOOP * 12 + "Final answer: 7", "repetition"),
        (LOOP * 3 + "Final answer: 7", None),  # 27 words: too short to judge
        (LOOP * 3 + DISTINCT + " Final answer: 7", None),  # 24 of 67 words
        (LOOP * 6 + DISTINCT + " Final answer: 7", "repetition"),  # 48 of 91 words
    ],
)
def test_golden(text, reason):
    assert degenerate(Completion(text)) == reason


def test_truncated_comes_first():
    assert degenerate(Completion("a\n\na\n\na", FinishReason.LENGTH)) == "truncated"
    assert degenerate(Completion("Final answer: 7", FinishReason.LENGTH)) == "truncated"


@given(st.text(alphabet="a \n:F", max_size=60), st.sampled_from(FinishReason), st.booleans())
def test_total_and_never_raises(text, finish, answered):
    found = degenerate(Completion(text + ("\nFinal answer: 1" if answered else ""), finish))
    assert found is None or found in REASONS
