"""Problems and rollouts as JSON lines: nothing is lost, and what is damaged is named by file and line."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mpo.multimodal.errors import DataError, ImageError, StageError
from recipes.stage.folder import open_stage
from recipes.stage.groups import problems_of, read_groups, read_problems, write_groups, write_problems
from recipes.stage.quarantine import Quarantine
from rewards.types import (
    Completion,
    FinishReason,
    MonteCarloCount,
    Problem,
    Rollout,
    RolloutGroup,
    StepScores,
    Unseen,
    Verdict,
)

UNIT = st.floats(0, 1)
COUNTS = st.integers(1, 16).flatmap(lambda total: st.builds(MonteCarloCount, st.integers(0, total), st.just(total)))
PLAIN = st.builds(
    Rollout,
    st.builds(Completion, st.text(), st.sampled_from(FinishReason), st.integers(0, 9999)),
    verdict=st.none() | st.sampled_from(Verdict),
    step_scores=st.none() | st.lists(UNIT, min_size=1, max_size=4).map(lambda values: StepScores(tuple(values))),
    reward=st.none() | st.floats(-1, 1),
    mc=st.none() | st.lists(COUNTS, min_size=1, max_size=4).map(tuple),
    label_source=st.none() | st.sampled_from(["mc:full:16", "mc:bisect:16", "exact"]),
)


def scored_unseen(rollout: Rollout) -> st.SearchStrategy[Rollout]:
    """With as many step scores under other images as under its own, or with none."""
    if rollout.step_scores is None:
        return st.just(rollout)
    steps = len(rollout.step_scores.values)
    scores = st.lists(UNIT, min_size=steps, max_size=steps).map(lambda values: StepScores(tuple(values)))
    unseen = st.none() | st.builds(Unseen, scores, st.floats(-1, 1))
    return st.builds(lambda blank, swapped: rollout.with_(blank=blank, swapped=swapped), unseen, unseen)


ROLLOUTS = PLAIN.flatmap(scored_unseen)
META = st.dictionaries(st.text(), st.text() | st.integers() | st.lists(st.integers()), max_size=3)
PROBLEMS = st.lists(
    st.builds(Problem, st.text(), st.text(), answer=st.none() | st.text(), meta=META),
    max_size=4,
    unique_by=lambda problem: problem.id,
)


@dataclass
class Made:
    out: Path


def finish(folder: Path, groups: list[RolloutGroup], **counts: Any) -> Path:
    stage = open_stage("made", Made(folder), inputs=[])
    write_groups(stage.out, groups)
    return stage.finish(counts)


def made(folder: Path, line: str = "") -> Path:
    """A finished stage over one problem; `line` replaces its second row."""
    problem = Problem("p", "q")
    write_problems(folder / "p.jsonl", [problem])
    group = RolloutGroup(problem, (Rollout(Completion("a")),))
    out = finish(folder / "out", [group, group], problems=str(folder / "p.jsonl"))
    if line:
        rows = (out / "groups.jsonl").read_text().splitlines()
        (out / "groups.jsonl").write_text(f"{rows[0]}\n{line}\n")
    return out


@settings(max_examples=50, deadline=None)
@given(PROBLEMS, st.data())
def test_round_trip(problems: list[Problem], data: st.DataObject) -> None:
    groups = [RolloutGroup(p, tuple(data.draw(st.lists(ROLLOUTS, max_size=3)))) for p in problems]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_problems(folder / "p.jsonl", problems)
        finish(folder / "out", groups, problems=str(folder / "p.jsonl"))
        assert list(read_problems(folder / "p.jsonl").values()) == problems
        assert read_groups(folder / "out") == groups


def test_images_are_kept_as_paths_inside_the_folder(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (1, 1)).save(tmp_path / "images" / "a.png")
    write_problems(tmp_path / "p.jsonl", [Problem("p", "q", (tmp_path / "images" / "a.png",))])
    assert json.loads((tmp_path / "p.jsonl").read_text())["images"] == ["images/a.png"]
    assert read_problems(tmp_path / "p.jsonl")["p"].images == ((tmp_path / "images" / "a.png").resolve(),)


@pytest.mark.parametrize("image", ["a.png", ["a.png"]])
def test_one_image_may_be_called_image(tmp_path: Path, image: Any) -> None:
    (tmp_path / "p.jsonl").write_text(json.dumps({"id": "p", "question": "q", "image": image}))
    assert read_problems(tmp_path / "p.jsonl")["p"].images == ((tmp_path / "a.png").resolve(),)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"id": "p", ', r"not JSON"),
        (b'{"id": "\xff"}', r"not JSON"),
        ("[]", r"the line: .*got '\[\]'"),
        ("null", r"the line: .*got 'None'"),
        ('{"id": "b"}', r"question: Field required"),
        ('{"id": 3, "question": "q"}', r"id: Input should be a valid string \(got '3'\)"),
        ('{"id": "b", "question": "q", "images": "a.png"}', r"images: Input should be a valid list"),
        ('{"id": "b", "question": "q", "image": null}', r"images\.0: Input should be a valid string"),
        ('{"id": "b", "question": "q", "answer": {"a": 7}}', r"answer"),
        ('{"id": "p", "question": "q"}', r"id 'p' occurs twice; ids must be unique"),
        (b'{"id": "b\x00", "question": "q"}', r"not JSON"),
        ('{"id": "b", "question": "\\ud800"}', r"not JSON .*surrogates"),
        ('{"id": "b", "question": "q", "meta": {"x": NaN}}', r"not JSON \(NaN is not a number"),
        ('{"id": "b", "question": "q", "meta": ' + "[" * 100_000, r"not JSON"),
        ('{"id": "b", "question": "q", "meta": {"x": ' + "9" * 5_000 + "}}", r"not JSON"),
        ('{"id": "b", "question": "' + "q" * (11 << 20) + '"}', r"a line of \d+ bytes; expected at most 10485760"),
    ],
)
def test_a_damaged_problem_is_named(tmp_path: Path, line: str | bytes, said: str) -> None:
    data = line if isinstance(line, bytes) else line.encode()
    (tmp_path / "p.jsonl").write_bytes(b'{"id": "p", "question": "q"}\n\n' + data + b"\n")
    with pytest.raises(DataError, match=rf"p\.jsonl:3: {said}"):
        read_problems(tmp_path / "p.jsonl")


def test_bad_lines_are_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    """A byte-order mark, CRLF and a last line cut short: two problems, two lines in quarantine, none lost."""
    rows = [
        b'\xef\xbb\xbf{"id": "a", "question": "q"}',
        b'{"id": "b"}',
        b'{"id": "c", "question": "q"}',
        b'{"id": "d", "qu',
    ]
    (tmp_path / "p.jsonl").write_bytes(b"\r\n".join(rows))
    quarantine = Quarantine()
    assert list(read_problems(tmp_path / "p.jsonl", on_bad=quarantine.add)) == ["a", "c"]
    assert [(row["id"], row["reason"]) for row in quarantine.rows] == [
        ("p.jsonl:2", "bad row"),
        ("p.jsonl:4", "bad row"),
    ]
    assert "question: Field required" in quarantine.rows[0]["detail"]
    quarantine.write(tmp_path)
    assert len((tmp_path / "quarantine.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    "escape", ["../x.png", "/etc/passwd", "link/x.png", "https://host/x.png", "file:///etc/passwd"]
)
def test_an_image_outside_the_folder_is_refused_by_line(tmp_path: Path, escape: str) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "link").symlink_to(tmp_path)
    Image.new("RGB", (1, 1)).save(tmp_path / "x.png")
    (inside / "p.jsonl").write_text(json.dumps({"id": "p", "question": "q", "images": [escape]}))
    with pytest.raises(ImageError, match=r"p\.jsonl:1: image path .* (leaves the image root|is not a local path)"):
        read_problems(inside / "p.jsonl")


def test_images_outside_the_folder_or_in_memory_are_not_written(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    for image in (tmp_path / "x.png", "../x.png", Image.new("RGB", (1, 1))):
        with pytest.raises(DataError, match=r"problem 'p': image .* is not a file inside .*inside; save it there"):
            write_problems(inside / "p.jsonl", [Problem("p", "q", (image,))])
    assert not (inside / "p.jsonl").exists()


def rollout_line(**changes: Any) -> str:
    return json.dumps(
        {"problem_id": "p", "rollouts": [{"text": "a", "finish_reason": "stop", "num_tokens": 1} | changes]}
    )


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (rollout_line(), r"problem 'p' occurs twice"),
        ("{", r"not JSON"),
        (rollout_line(text=None), r"rollouts\.0\.text: Input should be a valid string"),
        (rollout_line(finish_reason="bored"), r"rollouts\.0\.finish_reason: .*\(got 'bored'\)"),
        (rollout_line(verdict="maybe"), r"rollouts\.0\.verdict: "),
        (rollout_line(rewrad=1.0), r"rollouts\.0\.rewrad: Extra inputs are not permitted"),
        (rollout_line(mc=[[1, 2, 3]]), r"rollouts\.0\.mc\.0"),
        (rollout_line(mc=[[3, 2]]), r"Monte-Carlo counts must satisfy .*got 3/2"),
        (rollout_line(step_scores=[0.5, 1.5]), r"step scores must be finite and in \[0, 1\], got 1\.5 at step 1"),
        (rollout_line(step_scores=[]), r"a response has no step scores"),
        (
            rollout_line(step_scores=[0.5, 0.5], blank={"step_scores": [0.5], "reward": 0.5}),
            r"1 step scores with a blank image for 2 with the problem's own",
        ),
        (rollout_line(swapped={"step_scores": [0.5]}), r"rollouts\.0\.swapped\.reward: Field required"),
        (rollout_line().replace('"p"', '"unknown"'), r"no problem 'unknown' in .*p\.jsonl"),
    ],
)
def test_a_damaged_group_is_named(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(DataError, match=rf"groups\.jsonl:2: {said}"):
        read_groups(made(tmp_path, line))


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"gone\.jsonl is not a file"):
        read_problems(tmp_path / "gone.jsonl")
    (tmp_path / "half").mkdir()
    with pytest.raises(StageError, match="holds no finished stage"):
        read_groups(tmp_path / "half")
    model = finish(tmp_path / "model", [])
    with pytest.raises(StageError, match="holds no rollout groups"):
        problems_of(model)


@pytest.mark.parametrize(
    "images",
    [["data:image/png;base64," + "A" * 9000], ["loop"], ["\udcff.png"], ["http:/x"]],
)
def test_an_image_path_costs_its_own_row(tmp_path: Path, images: list[str]) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    rows = [{"id": "a", "question": "q"}, {"id": "b", "question": "q", "images": images}, {"id": "c", "question": "q"}]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    quarantine = Quarantine()
    assert [*read_problems(tmp_path / "q.jsonl", on_bad=quarantine.add)] == ["a", "c"]
    (row,) = quarantine.rows
    assert row["id"] == "q.jsonl:2"
    assert len(row["detail"]) < 1000


def test_how_deep_a_row_may_be_does_not_depend_on_who_reads_it(tmp_path: Path) -> None:
    """984 lists were taken by `sample`, and refused by `verify`, which reads deeper in the stack."""

    def deeply(levels: int, read: Any) -> Any:
        return deeply(levels - 1, read) if levels else read()

    for depth, taken in ((60, True), (70, False), (984, False)):
        line = '{"id": "a", "question": "q", "meta": {"x": ' + "[" * depth + "]" * depth + "}}\n"
        (tmp_path / "q.jsonl").write_text(line)
        for levels in (0, 300):
            found = deeply(levels, lambda: read_problems(tmp_path / "q.jsonl", on_bad=lambda *_: None))
            assert bool(found) is taken


def test_a_number_that_is_infinite_is_refused(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"id": "a", "question": "q", "meta": {"x": 1e999}}\n')
    with pytest.raises(DataError, match="1e999 is not a number of JSON"):
        read_problems(tmp_path / "q.jsonl")
