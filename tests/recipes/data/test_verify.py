"""`mpo verify`: the flag, a problem's own verifier, a user's callable, and data rows that must not import anything."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mpo.multimodal.errors import ConfigError
from recipes.cli import main
from recipes.config import VerifyConfig
from recipes.data.verify import verify
from recipes.stage.folder import manifest_of
from recipes.stage.groups import read_groups, read_problems, write_problems
from rewards.types import Completion, Problem, Rollout, RolloutGroup, Verdict
from tests.recipes.run_folders import write_stage

C, W, U, E = Verdict.CORRECT, Verdict.WRONG, Verdict.UNPARSABLE, Verdict.ERROR
USERS = """
from rewards.types import Verdict

def long_enough(problem, text):
    if text == "raise":
        raise ValueError("no")
    return Verdict.CORRECT if len(text) > 5 else Verdict.WRONG

NOT_CALLABLE = 7
"""


def stage(folder: Path, *rows: tuple[Problem, list[str]]) -> Path:
    write_problems(folder / "p.jsonl", [problem for problem, _ in rows])
    groups = [RolloutGroup(problem, tuple(Rollout(Completion(t)) for t in texts)) for problem, texts in rows]
    return write_stage(folder / "samples", groups, folder / "p.jsonl")


def verdicts(folder: Path) -> list[list[Verdict | None]]:
    return [[rollout.verdict for rollout in group.rollouts] for group in read_groups(folder)]


@pytest.fixture
def users_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "users_checks.py").write_text(USERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "users_checks"
    sys.modules.pop("users_checks", None)


def test_the_flag_and_a_problems_own_verifier(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    given = stage(
        tmp_path,
        (Problem("chart", "?", answer="100", meta={"verifier": "relaxed"}), ["104", "Final answer: 120"]),
        (Problem("choice", "?", answer="B", meta={"verifier": "choice"}), ["(B)", "many words"]),
        (Problem("sum", "?", answer="1/2"), [r"\boxed{0.5}", "Final answer: 1"]),
        (Problem("open", "?"), ["anything"]),
        (Problem("torn", "?", answer="green", meta={"verifier": "number"}), ["7"]),
    )
    out = verify(VerifyConfig(given, tmp_path / "out"))
    assert verdicts(out) == [[C, W], [C, U], [C, W], [None], [None]]
    counts = manifest_of(out)["counts"]
    assert counts["verdicts"] == {"correct": 3, "none": 2, "unparsable": 1, "wrong": 2}
    assert counts["unverified"] == {"no reference answer": 1, "reference cannot be read": 1}
    assert counts["verifiers"] == {"choice": 1, "math": 1, "relaxed": 1}
    assert "1 of 5 problems have a reference that their verifier cannot read" in caplog.text
    assert "problem 'torn': the reference 'green' is not one number" in caplog.text
    exact = verify(VerifyConfig(given, tmp_path / "exact", verifier="exact"))
    assert verdicts(exact)[2] == [W, W]


def test_a_row_cannot_import(tmp_path: Path) -> None:
    """Neither a module path nor any other unknown name does anything but leave the problem unverified."""
    (tmp_path / "evil_row.py").write_text(f"open({str(tmp_path / 'pwned')!r}, 'w')\ndef check(p, t): ...\n")
    sys.path.insert(0, str(tmp_path))
    try:
        names = ["evil_row:check", "evil_row", "os:system", "", 7, None, ["math"]]
        rows = [(Problem(str(i), "?", answer="7", meta={"verifier": name}), ["7"]) for i, name in enumerate(names)]
        out = verify(VerifyConfig(stage(tmp_path, *rows), tmp_path / "out"))
    finally:
        sys.path.remove(str(tmp_path))
    assert verdicts(out) == [[None]] * len(names)
    assert manifest_of(out)["counts"]["unverified"] == {"meta.verifier is not in the table": len(names)}
    assert not (tmp_path / "pwned").exists()
    assert "evil_row" not in sys.modules


def test_a_users_callable_needs_no_reference(tmp_path: Path, users_module: str) -> None:
    given = stage(tmp_path, (Problem("open", "?"), ["a long text", "short", "raise"]))
    out = verify(VerifyConfig(given, tmp_path / "out", verifier=f"{users_module}:long_enough"))
    assert verdicts(out) == [[C, W, E]]


def test_a_row_cannot_name_the_users_callable_either(tmp_path: Path, users_module: str) -> None:
    name = f"{users_module}:long_enough"
    given = stage(tmp_path, (Problem("p", "?", answer="7", meta={"verifier": name}), ["a long text"]))
    assert verdicts(verify(VerifyConfig(given, tmp_path / "out", verifier=name))) == [[None]]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("maths", "unknown verifier 'maths': expected one of exact, math, choice"),
        ("no_such_module:f", "cannot be imported"),
        ("users_checks:missing", "cannot be imported"),
        (":f", "cannot be imported"),
        ("users_checks:NOT_CALLABLE", "is a int; expected a callable"),
    ],
)
def test_unknown_verifiers_are_refused_first(tmp_path: Path, users_module: str, name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        verify(VerifyConfig(tmp_path / "missing", tmp_path / "out", verifier=name))
    assert not (tmp_path / "out").exists()


def test_command(tmp_path: Path) -> None:
    given = stage(tmp_path, (Problem("a", "?", answer="12 cm"), ["Final answer: 0.12 m"]))
    assert main(["verify", "--groups", str(given), "--out", str(tmp_path / "out"), "--verifier", "number"]) == 0
    assert verdicts(tmp_path / "out") == [[C]]


def test_answers_of_any_json_kind(tmp_path: Path) -> None:
    """A number, a truth value and a list of accepted answers; auto picks a verifier for each."""
    lines = [
        '{"id": "n", "question": "?", "answer": 7}',
        '{"id": "f", "question": "?", "answer": 0.5}',
        '{"id": "b", "question": "?", "answer": true}',
        '{"id": "l", "question": "?", "answer": ["sofa", "couch"]}',
        '{"id": "c", "question": "?", "answer": "B", "meta": {"choices": ["red", "blue"]}}',
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    problems = read_problems(tmp_path / "p.jsonl")
    texts = {"n": ["seven"], "f": ["50%"], "b": ["Yes."], "l": ["A couch."], "c": ["blue"]}
    groups = [RolloutGroup(p, tuple(Rollout(Completion(t)) for t in texts[p.id])) for p in problems.values()]
    out = verify(VerifyConfig(write_stage(tmp_path / "samples", groups, tmp_path / "p.jsonl"), tmp_path / "out"))
    assert verdicts(out) == [[C]] * 5
    assert manifest_of(out)["counts"]["verifiers"] == {"choice": 1, "number": 2, "short": 1, "yes_no": 1}
