"""A policy by its name on a Hub: its weights and configuration come here, its code and pickles do not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from recipes.stage.hub_models import model_folder
from tests.hub_server import hub

CODE = """
import json, sys
from pathlib import Path
from mpo.multimodal.errors import ConfigError
from mpo.multimodal.loading import load_for_inference
from recipes.stage.hub_models import model_folder
folder = model_folder(Path("hub:me/tiny"))
load_for_inference(folder)
try:
    model_folder(Path("hub:me/gone@main"))
except ConfigError as error:
    print(json.dumps([sorted(path.name for path in folder.iterdir()), str(error)]))
"""


def test_a_model_of_the_hub_is_a_folder_here(policy_folder: Path, tmp_path: Path) -> None:
    repository = shutil.copytree(policy_folder, tmp_path / "repository")
    for name in ("modeling_evil.py", "training_args.bin", "pytorch_model.bin"):
        (repository / name).write_text("raise SystemExit('run')")
    with hub(repository, "me/tiny", kind="models") as server:
        settings = {"HF_ENDPOINT": server.address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
        environment = {**os.environ, **settings, "HF_HUB_OFFLINE": "0", "PYTHONPATH": os.getcwd()}
        command = [sys.executable, "-c", CODE]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    names, message = json.loads(done.stdout.splitlines()[-1])
    assert set(names) == {
        path.name for path in policy_folder.iterdir() if path.suffix in (".json", ".safetensors", ".jinja")
    }
    assert message.startswith("hub:me/gone@main cannot be read from the Hub")


def test_a_folder_is_itself(tmp_path: Path) -> None:
    assert model_folder(tmp_path) == tmp_path
