"""A stage is what its inputs hold: not where they lie, what they are called, or when they were written."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from mpo.multimodal.errors import FingerprintError, StageError
from recipes.cli import main
from recipes.config import SampleConfig, VerifyConfig
from recipes.data.sample import STORE, sample
from recipes.data.verify import verify
from recipes.stage.folder import MANIFEST, STARTED, faults_of, open_stage, problems_of
from recipes.stage.groups import read_groups
from recipes.stage.identity import folder_content
from recipes.stage.order import stages_in

MODEL_FILES = ("generation_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json",
               "chat_template.jinja", "config.json", "model.safetensors")  # fmt: skip


@dataclass
class Using:
    """A stage of one input."""

    policy: Path
    out: Path


def questions(folder: Path, number: int = 3) -> Path:
    folder.mkdir(exist_ok=True)
    rows = []
    for index in range(number):
        Image.new("RGB", (64, 32), (60 * index, 0, 0)).save(folder / f"{index}.png")
        rows.append({"id": f"p{index}", "question": "How many?", "images": [f"{index}.png"], "answer": "1"})
    (folder / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "q.jsonl"


def drawing(problems: Path, policy: Path, out: Path, **changes: object) -> SampleConfig:
    settings = {"num_samples": 2, "max_new_tokens": 4, **changes}
    return SampleConfig(problems=problems, policy=policy, out=out, batch_rows=64, **settings)


@pytest.fixture
def run(tmp_path: Path, policy_folder: Path) -> Path:
    """A run with everything it needs inside: data, policy, samples, verdicts."""
    run = tmp_path / "runA"
    run.mkdir()
    problems = questions(run / "data")
    policy = shutil.copytree(policy_folder, run / "policy")
    verify(VerifyConfig(sample(drawing(problems, policy, run / "samples")), run / "verified"))
    return run


@pytest.mark.parametrize("name", MODEL_FILES)
def test_every_file_of_a_model_is_a_part_of_it(name: str, policy_folder: Path, tmp_path: Path) -> None:
    model = shutil.copytree(policy_folder, tmp_path / "model")
    (model / "generation_config.json").touch()
    before = folder_content(model)
    open_stage("use", Using(model, tmp_path / "out"), inputs=[model]).finish({})
    (model / name).write_bytes((model / name).read_bytes() + b" ")
    assert folder_content(model) != before
    with pytest.raises(FingerprintError, match=r"was made with other policy \("):
        open_stage("use", Using(model, tmp_path / "out"), inputs=[model])


def test_what_people_read_is_no_part_of_a_model(policy_folder: Path, tmp_path: Path) -> None:
    model = shutil.copytree(policy_folder, tmp_path / "model")
    before = folder_content(model)
    for name in ("README.md", "LICENSE", ".gitattributes", "log_history.json"):
        (model / name).write_text("new")
    assert folder_content(model) == before


def same_again(run: Path) -> None:
    """Both stages are complete, as the paths are given."""
    problems, policy = run / "data" / "q.jsonl", run / "policy"
    for config in (drawing(problems, policy, run / "samples"),):
        assert open_stage("sample", config, inputs=[policy, problems], grows=("num_samples", "problems")).complete
    verifying = VerifyConfig(run / "samples", run / "verified")
    assert open_stage("verify", verifying, inputs=[run / "samples"]).complete


def test_a_run_goes_on_wherever_it_lies(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    same_again(run)
    (tmp_path / "link").symlink_to(run)
    same_again(tmp_path / "link")
    same_again(run / ".." / run.name)
    monkeypatch.chdir(run.parent)
    same_again(Path(run.name))
    monkeypatch.chdir(run)
    same_again(Path())
    moved = Path(shutil.move(shutil.copytree(run, tmp_path / "copy"), tmp_path / "elsewhere"))
    monkeypatch.chdir(tmp_path)
    same_again(moved)
    shutil.rmtree(run)  # nothing of the copy lies there
    same_again(moved)
    assert [group.problem.id for group in read_groups(moved / "verified")] == ["p0", "p1", "p2"]


def test_a_run_made_through_a_link_works_without_it(tmp_path: Path, policy_folder: Path) -> None:
    """`runs -> /scratch/me`, one folder deeper than where the link stands."""
    (tmp_path / "scratch" / "me").mkdir(parents=True)
    (tmp_path / "runs").symlink_to(tmp_path / "scratch" / "me")
    problems = questions(tmp_path / "data")
    samples = sample(drawing(problems, policy_folder, tmp_path / "runs" / "samples"))
    for folder in (samples, tmp_path / "scratch" / "me" / "samples"):
        assert problems_of(folder) == problems
        assert len(read_groups(folder)) == 3


def test_data_outside_a_run_is_found_when_the_run_alone_moves(tmp_path: Path, policy_folder: Path) -> None:
    problems = questions(tmp_path / "data")
    samples = sample(drawing(problems, policy_folder, tmp_path / "run" / "samples"))
    (tmp_path / "far" / "away").mkdir(parents=True)
    moved = Path(shutil.move(samples, tmp_path / "far" / "away" / "samples"))
    assert len(read_groups(moved)) == 3
    problems.unlink()
    with pytest.raises(StageError, match=r"q\.jsonl is gone: expected it there"):
        read_groups(moved)


def test_times_and_names_are_no_content(run: Path) -> None:
    for path in run.rglob("*"):
        os.utime(path, (1e9, 1e9))
    same_again(run)


def test_other_pixels_are_another_input(run: Path) -> None:
    """The rows are the same; one image is inverted in place."""
    Image.new("RGB", (64, 32), "white").save(run / "data" / "1.png")
    with pytest.raises(FingerprintError, match=r"other groups \("):
        open_stage("verify", VerifyConfig(run / "samples", run / "verified"), inputs=[run / "samples"])


def rows_of(run: Path) -> dict[str, list[str]]:
    return {g.problem.id: [r.completion.text for r in g.rollouts] for g in read_groups(run / "samples")}


def kept(run: Path) -> set[tuple[object, ...]]:
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(run / "samples" / STORE)) as connection:
        return {*connection.execute("SELECT key, rowid FROM samples")}


@pytest.mark.parametrize("change", ["a line mended", "a line removed", "a line added", "other pixels", "lines in turn"])
def test_only_the_problem_that_changed_is_drawn_again(change: str, run: Path) -> None:
    problems, before, stored = run / "data" / "q.jsonl", rows_of(run), kept(run)
    lines = problems.read_text().splitlines()
    new = 2
    if change == "a line mended":
        lines[1] = lines[1].replace("How many?", "How many digits?")
    elif change == "a line removed":
        lines, new = lines[1:], 0
    elif change == "a line added":
        lines.append(lines[0].replace('"p0"', '"p9"'))
    elif change == "other pixels":
        Image.new("RGB", (64, 32), "white").save(run / "data" / "1.png")
    else:
        lines, new = lines[::-1], 0
    problems.write_text("\n".join(lines) + "\n")
    sample(drawing(problems, run / "policy", run / "samples"))
    assert stored <= kept(run)
    assert len(kept(run) - stored) == new
    assert [*rows_of(run)] == [json.loads(line)["id"] for line in lines]
    assert all(rows_of(run)[f"p{index}"] == before[f"p{index}"] for index in (0, 2) if f"p{index}" in rows_of(run))


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:1]))


def delete(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("fault", [damage, cut, delete])
def test_damaged_groups_are_named_and_made_again_from_the_store(fault: object, run: Path) -> None:
    groups = run / "samples" / "groups.jsonl"
    whole = groups.read_bytes()
    fault(groups)  # type: ignore[operator]
    with pytest.raises(StageError, match=r"input .*samples is damaged: groups\.jsonl (is missing|has|does not match)"):
        verify(VerifyConfig(run / "samples", run / "again"))
    sample(drawing(run / "data" / "q.jsonl", run / "policy", run / "samples"))
    assert groups.read_bytes() == whole
    same_again(run)


def test_what_cannot_be_made_again_says_so(tmp_path: Path, policy_folder: Path) -> None:
    """A trained model without checkpoints: no command throws away what may still be of use."""
    config = Using(policy_folder, tmp_path / "out")
    stage = open_stage("train", config, inputs=[policy_folder])
    (stage.out / "model.safetensors").write_text("weights")
    stage.finish({})
    (stage.out / "model.safetensors").write_text("weight5")
    with pytest.raises(StageError, match=r"out is damaged: model\.safetensors does not match its SHA-256; delete"):
        open_stage("train", config, inputs=[policy_folder])
    (stage.out / "model.safetensors").unlink()
    assert faults_of(stage.out) == ["model.safetensors is missing"]


@pytest.mark.parametrize("content", ["", '{"stage": "sam', "[]", "{}", '{"fingerprint": {}}', "\udcff"])
def test_a_damaged_manifest_is_one_line_and_mended_by_its_stage(
    content: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = run / "samples" / MANIFEST
    manifest.write_text(content, errors="surrogateescape")
    assert main(["verify", "--groups", str(run / "samples"), "--out", str(run / "again")]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "manifest.json is damaged" in line
    assert "Traceback" not in line
    sample(drawing(run / "data" / "q.jsonl", run / "policy", run / "samples"))
    same_again(run)


def test_a_damaged_note_of_the_start_does_not_stop_a_run(tmp_path: Path, policy_folder: Path) -> None:
    """Whose work it is, the trainer's checkpoints know as well."""
    config = Using(policy_folder, tmp_path / "out")
    open_stage("train", config, inputs=[policy_folder], work=False)
    (tmp_path / "out" / STARTED).write_text('{"fing')
    assert not open_stage("train", config, inputs=[policy_folder], work=True).complete
    assert json.loads((tmp_path / "out" / STARTED).read_text())["fingerprint"]["inputs"].keys() == {"policy"}


def test_stages_stand_in_the_order_of_the_loop(run: Path) -> None:
    """Whatever their times and names say."""
    os.utime(run / "samples" / MANIFEST, (4e9, 4e9))
    verify(VerifyConfig(run / "samples", run / "a"))
    assert [folder.name for folder in stages_in(run)] == ["samples", "a", "verified"]


def test_check_verifies_a_whole_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(run)]) == 0
    assert "2 stages, 2 files: all whole" in capsys.readouterr().out
    damage(run / "verified" / "groups.jsonl")
    (run / "policy" / "generation_config.json").write_text('{"suppress_tokens": [1]}')
    with (run / "samples" / STORE).open("r+b") as store:
        store.seek(4096)
        store.write(b"\xff" * 4096)
    assert main(["check", str(run)]) == 2
    said = capsys.readouterr()
    assert "verified: groups.jsonl does not match its SHA-256" in said.out
    assert "samples: its policy at" in said.out
    assert "has changed since; samples.sqlite: " in said.out
    assert "2 of 2 stages" in said.err
    assert main(["check", str(run / "data")]) == 2
    assert "holds no finished stage" in capsys.readouterr().err


def test_a_changed_row_of_a_store_is_seen_and_drawn_again(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One letter of one text, changed in place: nothing of it is exported."""
    import sqlite3
    from contextlib import closing

    groups = (run / "samples" / "groups.jsonl").read_bytes()
    with closing(sqlite3.connect(run / "samples" / STORE)) as connection, connection:
        connection.execute("UPDATE samples SET text = text || 'x' WHERE rowid = 3")
    (run / "samples" / "groups.jsonl").unlink()
    words = ["--problems", run / "data" / "q.jsonl", "--policy", run / "policy", "--out", run / "samples"]
    command = ["sample", *map(str, words), "--num_samples", "2", "--max_new_tokens", "4"]
    assert main(command) == 2
    assert "not as it was kept" in capsys.readouterr().err
    assert main(command) == 0
    assert (run / "samples" / "groups.jsonl").read_bytes() == groups


def test_images_below_a_root_of_their_own(tmp_path: Path, policy_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Absolute paths, relative ones and a link inside the root; later stages find them, wherever the run lies."""
    questions(tmp_path / "disk")
    (tmp_path / "disk" / "linked.png").symlink_to("0.png")
    names = [str(tmp_path / "disk" / "0.png"), "1.png", "linked.png"]
    (tmp_path / "run").mkdir()
    problems = tmp_path / "run" / "q.jsonl"
    rows = [{"id": f"p{i}", "question": "How many?", "images": [name], "answer": "1"} for i, name in enumerate(names)]
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    root, out = tmp_path / "disk", tmp_path / "run"
    verify(VerifyConfig(sample(drawing(problems, policy_folder, out / "samples", image_root=root)), out / "verified"))
    shown = [group.problem.images[0] for group in read_groups(out / "verified")]
    assert shown == [(root / name).resolve() for name in ("0.png", "1.png", "0.png")]
    monkeypatch.chdir(tmp_path)
    moved = Path(shutil.move(out, tmp_path / "moved"))
    config = drawing(Path("moved/q.jsonl"), policy_folder, moved / "samples", image_root=Path("disk"))
    inputs = [policy_folder, Path("moved/q.jsonl")]
    assert open_stage("sample", config, inputs=inputs, grows=("problems",)).complete
    verifying = VerifyConfig(Path("moved/samples"), moved / "verified")
    assert open_stage("verify", verifying, inputs=[Path("moved/samples")]).complete
    assert main(["check", "moved"]) == 0
    Image.new("RGB", (64, 32), "white").save(root / "1.png")
    with pytest.raises(FingerprintError, match=r"other groups \("):
        open_stage("verify", verifying, inputs=[Path("moved/samples")])


@pytest.mark.parametrize("name", ["../secret.png", "/secret.png", "out.png"])
def test_an_image_outside_its_root_is_not_opened(name: str, tmp_path: Path) -> None:
    from mpo.multimodal.errors import DataError
    from recipes.stage.groups import read_problems

    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "out.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "q.jsonl").write_text(json.dumps({"id": "a", "question": "?", "images": [name]}))
    with pytest.raises(DataError, match="leaves the image root"):
        read_problems(tmp_path / "q.jsonl", image_root=tmp_path / "root")


def test_an_identity_by_path_is_noticed(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted fault: if an input were its path, the run would not go on where it was moved to."""
    from recipes.stage import folder

    monkeypatch.setattr(folder, "content_of", lambda path, *_: str(path))
    open_stage("verify", VerifyConfig(run / "samples", tmp_path / "planted"), inputs=[run / "samples"]).finish({})
    moved = Path(shutil.move(run, tmp_path / "elsewhere"))
    with pytest.raises(FingerprintError, match="made with other groups"):
        open_stage("verify", VerifyConfig(moved / "samples", tmp_path / "planted"), inputs=[moved / "samples"])
