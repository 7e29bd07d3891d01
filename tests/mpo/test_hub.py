"""Where a model is: folders, names on the hub with a revision, adapters; every failure is one line that helps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpo.multimodal.errors import ConfigError, StageError
from mpo.multimodal.hub import adapter_base, hub_name, loadable_folder, model_folder
from tests.hub_server import HubServer, reach_hub

ROOT = Path(__file__).resolve().parents[2]
NAME = "OpenGVLab/InternVL3-1B-hf"


def write_model(folder: Path, **files: str) -> Path:
    """A repository with all that a published one may hold besides what is read."""
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "merges.txt", "chat_template.jinja"):
        (folder / name).write_text("{}")
    for name in ("modeling_evil.py", "pytorch_model.bin", "README.md", "consolidated.safetensors"):
        (folder / name).write_text("not fetched")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "config.json").write_text("{}")
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer() as running:
        reach_hub(running, tmp_path / "cache", monkeypatch)
        monkeypatch.chdir(tmp_path)
        yield running


def test_a_name_becomes_a_folder_of_its_commit(hub: HubServer, tmp_path: Path) -> None:
    """Configuration, tokenizer and safetensors only; the folder itself says which commit it is."""
    commit = hub.add(NAME, write_model(tmp_path / "repository"))
    folder = model_folder(Path(NAME))
    assert sorted(path.name for path in folder.iterdir()) == [
        *("chat_template.jinja", "config.json", "merges.txt", "model.safetensors"),
    ]
    assert hub_name(folder) == f"{NAME}@{commit}"
    assert not [path for path in hub.paths if path.endswith((".py", ".bin"))]
    assert loadable_folder(folder) == folder


def test_a_revision_is_a_branch_a_tag_or_a_commit(hub: HubServer, tmp_path: Path) -> None:
    old = hub.add(NAME, write_model(tmp_path / "old", config__json='{"of": "old"}'))
    new = hub.add(NAME, write_model(tmp_path / "new", config__json='{"of": "new"}'))
    side = hub.add(NAME, write_model(tmp_path / "side", config__json='{"of": "side"}'), revision="refs/pr/3")
    for name, commit, of in [
        (NAME, new, "new"),
        (f"{NAME}@main", new, "new"),
        (f"{NAME}@{old}", old, "old"),
        (f"{NAME}@refs/pr/3", side, "side"),
    ]:
        folder = model_folder(Path(name))
        assert hub_name(folder) == f"{NAME}@{commit}"
        assert json.loads((folder / "config.json").read_text()) == {"of": of}


def test_a_folder_here_comes_first(hub: HubServer, tmp_path: Path) -> None:
    here = write_model(tmp_path / NAME)
    assert model_folder(NAME) == Path(NAME)
    assert model_folder(str(here)) == here
    assert hub.paths == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("org/none", "there is no model org/none: check the spelling"),
        ("org/gated", "gated: accept its terms at http://127.0.0.1"),
        ("org/down", "does not give it (403 Forbidden"),
        (f"{NAME}@v9", "has no revision 'v9'; expected a branch, tag or commit"),
        ("org/pickled", "holds no safetensors on the hub"),
    ],
)
def test_what_the_hub_refuses_is_said_in_one_line(hub: HubServer, tmp_path: Path, name: str, expected: str) -> None:
    hub.add(NAME, write_model(tmp_path / "repository"))
    hub.add("org/gated", tmp_path / "repository")
    hub.gated.add("org/gated")
    hub.add("org/down", tmp_path / "repository")
    hub.broken.add("org/down")
    pickled = write_model(tmp_path / "pickled")
    (pickled / "model.safetensors").unlink()
    hub.add("org/pickled", pickled)
    with pytest.raises(ConfigError) as refused:
        loadable_folder(Path(name))
    assert expected in str(refused.value)
    assert "\n" not in str(refused.value)
    assert "run the stage" not in str(refused.value)


def test_offline_a_fetched_model_is_found_and_another_is_named(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    hub.add(NAME, write_model(tmp_path / "repository"))
    folder = model_folder(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    seen = len(hub.paths)
    assert model_folder(NAME) == folder
    with pytest.raises(ConfigError, match=r"does not hold all of org/other while HF_HUB_OFFLINE is set: fetch it with"):
        model_folder("org/other")
    assert len(hub.paths) == seen


def test_a_hub_that_is_down_is_said(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"while http://127\.0\.0\.1:9 does not give it \(.*onnect"):
        model_folder("org/name")


def test_a_missing_path_is_not_looked_up(hub: HubServer, tmp_path: Path) -> None:
    """Below a folder that is here, and of a run, a path is a path; only of a run is a stage the answer."""
    (tmp_path / "models").mkdir()
    (tmp_path / "done" / "stage").mkdir(parents=True)
    (tmp_path / "done" / "stage" / "manifest.json").write_text("{}")
    for name, stage in [("models/none", False), (str(tmp_path / "none"), False), ("runs/policy", True),
                        ("done/policy", True), ("nothing", False)]:  # fmt: skip
        with pytest.raises(StageError, match=r"no model at .*: expected a folder with config\.json") as refused:
            model_folder(name)
        assert ("run the stage that writes it first" in str(refused.value)) is stage
    (tmp_path / "file").write_text("")
    with pytest.raises(StageError, match="got a file"):
        loadable_folder("file")
    with pytest.raises(StageError, match=r"got a folder without it$"):
        loadable_folder("models")
    (tmp_path / "models" / "checkpoint-100").mkdir()
    with pytest.raises(StageError, match="whose training has not finished; run the same command again"):
        loadable_folder("models")
    assert hub.paths == []


def test_an_unconverted_layout_is_refused_with_the_command(hub: HubServer, tmp_path: Path) -> None:
    config = json.dumps({"model_type": "internvl_chat", "architectures": ["InternVLChatModel"]})
    folder = write_model(tmp_path / "InternVL3-1B", config__json=config)
    commit = hub.add("OpenGVLab/InternVL3-1B", folder)
    for name, whole in [(str(folder), str(folder)), ("OpenGVLab/InternVL3-1B", f"OpenGVLab/InternVL3-1B@{commit}")]:
        with pytest.raises(ConfigError) as refused:
            loadable_folder(name)
        assert f"`mpo convert --checkpoint {whole} --out models/InternVL3-1B`" in str(refused.value)


def test_an_adapter_names_its_base(hub: HubServer, tmp_path: Path) -> None:
    commit = hub.add(NAME, write_model(tmp_path / "repository"))

    def adapter(**said: str) -> Path:
        folder = tmp_path / "adapter"
        folder.mkdir(exist_ok=True)
        (folder / "adapter_config.json").write_text(json.dumps(said))
        return folder

    assert adapter_base(tmp_path / "repository") is None
    found = adapter_base(adapter(base_model_name_or_path=NAME, revision="main"))
    assert found is not None
    assert hub_name(found) == f"{NAME}@{commit}"
    for said, expected in [
        ({"base_model_name_or_path": "/gone/base"}, "is an adapter of '/gone/base', which cannot be found"),
        ({"base_model_name_or_path": "org/none"}, "check the spelling"),
        ({"task_type": "CAUSAL_LM"}, "does not name the model it was trained on"),
        ({"base_model_name_or_path": ""}, "does not name the model it was trained on"),
        ({"base_model_name_or_path": str(tmp_path / "adapter")}, "expected a whole model there"),
    ]:
        with pytest.raises(ConfigError, match=expected):
            adapter_base(adapter(**said))


def test_the_environment_is_huggingface_hubs(hub: HubServer, tmp_path: Path) -> None:
    """HF_ENDPOINT and HF_HOME in a process of its own, without torch."""
    commit = hub.add(NAME, write_model(tmp_path / "repository"))
    code = f"import sys, mpo.multimodal.hub as hub; print(hub.model_folder({NAME!r}), 'torch' in sys.modules)"
    environment = {name: value for name, value in os.environ.items() if "OFFLINE" not in name}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [
        str(tmp_path / f"home/hub/models--OpenGVLab--InternVL3-1B-hf/snapshots/{commit}"),
        "False",
    ]
