"""`mpo import`: sets in exactly the forms in which they are published become what the commands read, and train."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mpo.multimodal.images import load_image
from recipes.cli import main
from recipes.stage.folder import manifest_of
from recipes.stage.groups import read_groups, read_problems, write_problems
from rewards.interchange.processbench import read_processbench
from rewards.interchange.trl_rows import from_trl_row, iter_trl_parquet
from rewards.interchange.visualprocessbench import read_visualprocessbench
from rewards.prm.evaluating.benchmark import BenchmarkResponse
from rewards.types import RolloutGroup
from tests.hub_server import hub
from tests.recipes.run_folders import write_stage
from tests.rewards.published_forms import FORMS, encoded, json_lines, mmpr, swift, visualprm400k

PAIRS = ("MMPR-v1.2", "RLAIF-V", "LLaVA", "ms-swift", "ShareGPT", "chat")
STEPS = ("VisualPRM400K-v1.1", "VisualPRM400K-v1.1-Raw", "prm800k", "math_shepherd")


def run(command: str, *words: Any, **flags: Any) -> None:
    given = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    assert main([command, *map(str, words), *given]) == 0


def counts(folder: Path) -> tuple[int, int, dict[str, int]]:
    account = manifest_of(folder)["counts"]
    return account["in"], account["out"], account["rejected"]


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every published form, imported once."""
    root = tmp_path_factory.mktemp("published")
    found = {}
    for name, (form, make, _, _) in FORMS.items():
        run("import", form, make(root / "given" / name), out=root / name)
        found[name] = root / name
    return found


@pytest.mark.parametrize("name", FORMS)
def test_every_row_of_a_published_form_is_accounted_for(imported: dict[str, Path], name: str) -> None:
    _, _, out, rejected = FORMS[name]
    assert counts(imported[name]) == (out + sum(rejected.values()), out, rejected)
    reasons = [json.loads(line)["reason"] for line in (imported[name] / "quarantine.jsonl").read_text().splitlines()]
    assert {reason: reasons.count(reason) for reason in reasons} == rejected


def test_images_keep_their_order_where_placeholders_stand(imported: dict[str, Path]) -> None:
    """ms-swift's row names the blue image first; MMPR's has one behind the question, and two inside it."""
    rows = list(iter_trl_parquet(imported["ms-swift"] / "pairs.parquet"))
    blocks = [[block["text"] or "image" for block in row["prompt"][-1]["content"]] for row in rows]
    assert blocks[0] == ["Is ", "image", " or ", "image", " red?"]
    assert [load_image(image).getpixel((0, 0))[2] for image in rows[0]["images"]] == [200, 30]
    assert rows[0]["prompt"][0]["content"][0]["text"] == "Be brief."
    pairs = [from_trl_row(row) for row in iter_trl_parquet(imported["MMPR-v1.2"] / "pairs.parquet")]
    assert [(pair.problem.question, pair.problem.placed) for pair in pairs[:4]] == [
        ("How many?", False),
        ("How many?\n<image>", True),
        ("Is <image> larger than <image>?", True),
        ("1 + 2?", False),
    ]
    assert [pair.problem.question for pair in pairs[4:]] == ["2 + 1?", "4 + 1?"]  # repeat_time 0.4 of five
    assert [bool(pair.meta.get("data_augment")) for pair in pairs] == [True] * 4 + [False] * 2


def test_pairs_are_written_back_as_mmpr_and_read_again(imported: dict[str, Path], tmp_path: Path) -> None:
    run("convert-data", "trl", "mmpr", source=imported["MMPR-v1.2"], out=tmp_path / "mmpr")
    run("import", "mmpr", tmp_path / "mmpr", out=tmp_path / "again")
    before, after = (
        [(p.problem.question, p.problem.placed, len(p.problem.images), p.chosen.text, p.rejected.text) for p in pairs]
        for pairs in (
            map(from_trl_row, iter_trl_parquet(folder / "pairs.parquet"))
            for folder in (imported["MMPR-v1.2"], tmp_path / "again")
        )
    )
    assert after == before


@pytest.mark.parametrize("written", ["visualprm", "visualprm_conversations", "stepwise"])
@pytest.mark.parametrize("name", STEPS[:3])
def test_steps_are_written_back_and_read_again(
    imported: dict[str, Path], name: str, written: str, tmp_path: Path
) -> None:
    run("convert-data", "groups", written, source=imported[name], out=tmp_path / "there")
    run("convert-data", written, "groups", source=tmp_path / "there", out=tmp_path / "back")

    def plain(folder: Path) -> list[Any]:
        return sorted(
            (
                g.problem.question,
                g.problem.placed,
                len(g.problem.images),
                r.completion.text,
                [c.correct > 0 for c in r.mc],
            )
            for g in read_groups(folder)
            for r in g.rollouts
        )

    assert plain(tmp_path / "back") == plain(imported[name])


def test_benchmarks_are_written_in_their_own_form(imported: dict[str, Path]) -> None:
    seen, rejected = read_visualprocessbench(imported["VisualProcessBench"] / "test.jsonl")
    assert (len(seen), rejected.total()) == (1, 0)
    assert seen[0].labels == (True, None, False)
    assert isinstance(seen[0].problem.images[0], Path)
    texts: list[BenchmarkResponse] = read_processbench(imported["ProcessBench"] / "test.jsonl")[0]
    assert [response.first_error for response in texts] == [-1, 0, 1]


def test_prm_eval_reads_the_archive_as_it_was_published(tmp_path: Path) -> None:
    """Of three rows one has its image in `images.zip`; prm-eval keeps it in its own folder."""
    from recipes.answering.prm_eval import READERS
    from recipes.config import PRMEvalConfig

    given = FORMS["VisualProcessBench"][1](tmp_path / "VisualProcessBench") / "test.jsonl"
    config = PRMEvalConfig(prm=tmp_path, benchmark=given, out=tmp_path / "out")
    responses, rejected = READERS["visualprocessbench"](config, given)
    assert len(responses) == 1
    assert rejected.total() == 2
    assert responses[0].problem.images[0].parent == tmp_path / "out" / "images"
    assert load_image(responses[0].problem.images[0]).getpixel((0, 0)) == (200, 30, 30)


def test_every_form_of_pairs_trains(imported: dict[str, Path], policy_folder: Path, tmp_path: Path) -> None:
    """All of them in one file, two steps over all rows: MMPR as it is released, and five forms of others."""
    tables = [pq.read_table(imported[name] / "pairs.parquet") for name in PAIRS]
    pq.write_table(pa.concat_tables(tables), tmp_path / "pairs.parquet")
    rows = sum(table.num_rows for table in tables)
    flags = {"max_steps": 2, "batch_size": rows, "learning_rate": 1e-3, "save_steps": 0}
    run("train-mpo", policy=policy_folder, pairs=tmp_path / "pairs.parquet", out=tmp_path / "out", **flags)
    account = manifest_of(tmp_path / "out")["counts"]
    assert (account["in"], account["out"], account["rejected"]) == (rows, rows, {})
    assert account["training"]["steps"] == 2


def own(group: RolloutGroup, name: str, folder: Path) -> RolloutGroup:
    """A group of one set among those of several, its images in one folder; all labels are hard ones."""
    images = tuple(folder / "images" / Path(image).name for image in group.problem.images)
    for image, place in zip(group.problem.images, images, strict=True):
        place.write_bytes(Path(image).read_bytes())
    problem = replace(group.problem, id=f"{name}:{group.problem.id}", images=images)
    return RolloutGroup(problem, tuple(rollout.with_(label_source="given") for rollout in group.rollouts))


def test_every_form_of_steps_trains(imported: dict[str, Path], policy_folder: Path, tmp_path: Path) -> None:
    """VisualPRM400K as it is released, and TRL's stepwise sets; the ids of two sets may be the same."""
    (tmp_path / "images").mkdir()
    groups = [own(group, name, tmp_path) for name in STEPS for group in read_groups(imported[name])]
    write_problems(tmp_path / "problems.jsonl", [group.problem for group in groups])
    made = write_stage(tmp_path / "labelled", groups, tmp_path / "problems.jsonl", name="label-steps")
    flags = {"max_steps": 2, "batch_groups": len(groups), "learning_rate": 1e-3, "save_steps": 0}
    run("train-prm", groups=made, model=policy_folder, out=tmp_path / "out", **flags)
    account = manifest_of(tmp_path / "out")["counts"]
    responses = sum(len(group.rollouts) for group in groups)
    assert (account["in"], account["out"], account["rejected"]) == (responses, responses, {})
    assert account["training"]["steps"] == 2


def test_a_sample_looks_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("import", "visualprm400k", visualprm400k(tmp_path / "VisualPRM400K-v1.1"), out=tmp_path / "out", sample=2)
    assert counts(tmp_path / "out") == (2, 2, {})
    said = capsys.readouterr().out
    assert "question: How many?" in said
    assert "labels: 1/1 1/1 0/1" in said
    run("import", "swift", swift(tmp_path / "swift"), out=tmp_path / "pairs", sample=1)
    assert "chosen: The second." in capsys.readouterr().out


def test_the_same_import_is_not_made_twice_and_another_is_refused(tmp_path: Path, capsys: Any) -> None:
    source = mmpr(tmp_path / "MMPR-v1.2")
    run("import", "mmpr", source, out=tmp_path / "out")
    run("import", "mmpr", source, out=tmp_path / "out")
    assert "complete already" in capsys.readouterr().err
    assert main(["import", "mmpr", str(source), "--out", str(tmp_path / "out"), "--sample", "1"]) == 4


@pytest.mark.parametrize(
    ("form", "make", "said"),
    [
        ("mmpr", lambda folder: folder.mkdir(), "no meta.json at"),
        ("visualprm400k", lambda folder: folder.mkdir(), "no annotations at"),
        ("swift", lambda folder: json_lines(folder / "a.jsonl", [{"a": 1}]), "no row of .* is of the form swift"),
        ("swift", lambda folder: None, "no rows at"),
        ("visualprocessbench", lambda folder: folder.mkdir(), "expected it, or a folder with test.jsonl"),
    ],
)
def test_a_source_of_another_form_is_one_line(form: str, make: Any, said: str, tmp_path: Path, capsys: Any) -> None:
    import re

    make(tmp_path / "given")
    assert main(["import", form, str(tmp_path / "given"), "--out", str(tmp_path / "out")]) == 2
    assert re.search(said, capsys.readouterr().err)


def test_what_is_still_packed_says_how_to_unpack(tmp_path: Path, capsys: Any) -> None:
    folder = mmpr(tmp_path / "MMPR-v1.2")
    (folder / "annotations" / "text.jsonl").unlink()
    (folder / "annotations.zip").write_bytes(b"")
    assert main(["import", "mmpr", str(folder), "--out", str(tmp_path / "out")]) == 2
    assert "run `unzip annotations.zip` in" in capsys.readouterr().err
    (folder / "images.zip_ab").unlink()
    folder = mmpr(tmp_path / "again" / "MMPR-v1.2")
    (folder / "images.zip_ac").unlink()
    assert main(["import", "mmpr", str(folder), "--out", str(tmp_path / "out")]) == 2
    assert "read from its 2 pieces, of which one may be missing" in capsys.readouterr().err


# --- problems ---


def hub_repository(folder: Path) -> Path:
    """A dataset with two configurations, one of which names a file that is not its own."""
    text = datasets.Value("string")
    features = datasets.Features({"pid": text, "query": text, "label": text, "image": datasets.Image()})
    rows = [
        {"pid": str(i), "query": f"{i} + 1?", "label": str(i + 1), "image": {"bytes": encoded(), "path": "/gone/x.png"}}
        for i in range(3)
    ]
    (folder / "data").mkdir(parents=True)
    datasets.Dataset.from_list(rows, features=features).to_parquet(folder / "data" / "test-00000-of-00001.parquet")
    card = "configs:\n- config_name: default\n  data_files:\n  - split: test\n    path: data/test-*\n"
    (folder / "README.md").write_text(f"---\n{card}---\n# toy\n")
    return folder


def test_problems_of_the_hub(tmp_path: Path) -> None:
    """A real client against a Hub on this machine: problems with their images; a split that is none; then offline."""
    columns = ["--columns", "question=query", "answer=label"]
    asked = [
        ["import", "problems", "hub:me/toy:test", "--out", str(tmp_path / "out"), *columns],
        ["import", "problems", "hub:me/toy:train", "--out", str(tmp_path / "none"), *columns],
        ["import", "problems", "hub:me/gone", "--out", str(tmp_path / "none"), *columns],
    ]
    code = f"import json, sys; from recipes.cli import main; print([main(words) for words in {asked!r}])"
    with hub(hub_repository(tmp_path / "repository"), "me/toy") as server:
        settings = {"HF_ENDPOINT": server.address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
        settings |= {"HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0", "PYTHONPATH": os.getcwd()}
        command = [sys.executable, "-c", code]
        done = subprocess.run(
            command, env={**os.environ, **settings}, capture_output=True, text=True, timeout=300, check=True
        )
        assert server.asked
    assert done.stdout.splitlines()[-1] == "[0, 2, 2]"
    assert "expected a split, one of test; got 'train'" in done.stderr
    problems = list(read_problems(tmp_path / "out" / "problems.jsonl").values())
    assert [(p.id, p.question, p.answer, len(p.images)) for p in problems] == [
        (str(i), f"{i} + 1?", str(i + 1), 1) for i in range(3)
    ]
    assert main(asked[0]) == 0  # complete: nothing is asked of a Hub that is gone


def test_sample_takes_any_source_of_problems(policy_folder: Path, tmp_path: Path, capsys: Any) -> None:
    """A TSV becomes our own file once; the manifest names it, so that every later stage finds the problems."""
    rows = ["index\timage\tquestion\tanswer", f"7\t{_base64()}\tHow many?\t3", "8\tdamaged\tWhat?\t3"]
    (tmp_path / "toy.tsv").write_text("\n".join(rows))
    flags = {"policy": policy_folder, "problems": tmp_path / "toy.tsv", "num_samples": 2, "max_new_tokens": 4}
    run("sample", **flags, out=tmp_path / "samples")
    assert "problems: 2 in, 1 out, 1 rejected (unreadable image 1)" in capsys.readouterr().err
    (group,) = read_groups(tmp_path / "samples")
    assert (group.problem.id, len(group.problem.images), len(group.rollouts)) == ("7", 1, 2)
    run("sample", **flags, out=tmp_path / "samples")
    assert capsys.readouterr().err.count("complete already") == 2
    run("check", tmp_path / "samples")


def _base64() -> str:
    from tests.rewards.published_forms import in_base64

    return in_base64()
