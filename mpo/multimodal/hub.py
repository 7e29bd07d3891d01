"""Where a model is: a folder on this machine, or a repository on the hub, fetched and pinned to one commit.

A model is named `path/to/folder`, `org/name` or `org/name@revision` (a branch, a tag or a commit). A folder on this
machine comes first. Of a repository only configuration, tokenizer and safetensors are fetched: no code, no pickle.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mpo.multimodal.errors import ConfigError, StageError
from mpo.multimodal.text import one_line

CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
MANIFEST, STARTED = "manifest.json", "started.json"  # of a stage that has finished, and of one under way
WHOLE = ("model.safetensors", "model.safetensors.index.json")
# model_type of a layout that only its own repository's code reads → the command that rewrites it
REWRITTEN_BY = {"internvl_chat": "mpo convert --checkpoint {name} --out models/{last}"}
NAME = re.compile(r"(?P<repository>[A-Za-z0-9][\w.-]*/[\w.-]+)(@(?P<revision>(?!.*\.\.)[\w./+-]+))?")
FETCHED = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")
NOT_FETCHED = ("*/*", "consolidated*", "training_args*")  # parts for other libraries, and weights in a second layout
RUNS = ("run", "runs")  # where the documentation puts the folders of stages


def model_folder(name: str | Path) -> Path:
    """The folder of a model: as named, or in the hub's cache, where its last part is the commit.

    Raises:
        StageError: a path where there is nothing.
        ConfigError: the hub has no such model, does not give it, or cannot be reached.
    """
    path, found = Path(name), NAME.fullmatch(str(name))
    if path.exists():
        return path
    if found is None or not is_hub_name(name):
        raise StageError(f"no model at {path}: {_what_to_do(path, is_name=found is not None)}")
    repository, revision = found["repository"], found["revision"]
    with _explained(repository, revision):
        from huggingface_hub import snapshot_download

        folder = snapshot_download(
            repository, revision=revision, allow_patterns=[*FETCHED], ignore_patterns=[*NOT_FETCHED]
        )
    return Path(folder)


def is_hub_name(name: str | Path) -> bool:
    """Whether a name is looked up on the hub: it has the form of one, and does not lie below a folder that is here.

    Example:
        >>> is_hub_name("Qwen/Qwen3-VL-8B-Instruct@main"), is_hub_name("runs/policy"), is_hub_name("a/b/c")
        (True, False, False)
    """
    first = Path(name).parts[:1]
    return NAME.fullmatch(str(name)) is not None and first[0] not in RUNS and not Path(first[0]).exists()


def loadable_folder(name: str | Path) -> Path:
    """The folder of a model that transformers' own classes read: a whole model, or an adapter of one.

    Raises:
        StageError: no folder, or one that holds no model.
        ConfigError: see `model_folder`; or a layout that has to be converted first.
    """
    folder = model_folder(name)
    if not folder.is_dir() or not ((folder / CONFIG).exists() or (folder / ADAPTER_CONFIG).exists()):
        came = "a folder without it" if folder.is_dir() else "a file"
        if folder.is_dir() and ((folder / STARTED).exists() or any(folder.glob("checkpoint-*"))):
            came += ", whose training has not finished; run the same command again"
        raise StageError(f"no model at {folder}: expected a folder with {CONFIG}, got {came}")
    if (folder / ADAPTER_CONFIG).exists() and any((folder / file).exists() for file in WHOLE):
        raise ConfigError(
            f"{folder} holds a whole model and an adapter ({ADAPTER_CONFIG}): expected one of the two; move the other "
            "into a folder of its own"
        )
    if hub_name(folder) and not any(folder.glob("*.safetensors")):
        raise ConfigError(f"{name} holds no safetensors on the hub: expected model.safetensors; no pickle is fetched")
    if (kind := str(_object(folder / CONFIG).get("model_type"))) in REWRITTEN_BY:
        whole, last = hub_name(folder) or str(folder), Path(str(name).partition("@")[0]).name
        command = REWRITTEN_BY[kind].format(name=whole, last=last)
        raise ConfigError(
            f"{whole} has the layout {kind}, which only code of its own reads, and that is never run: rewrite it with "
            f"`{command}` (add --prm true for a VisualPRM) and name models/{last}, or take the repository whose name "
            "ends in -hf"
        )
    return folder


def hub_name(folder: str | Path) -> str | None:
    """`org/name@commit` of a folder in the hub's cache; None elsewhere.

    Example:
        >>> hub_name("/cache/models--Qwen--Qwen3-VL-8B-Instruct/snapshots/0c351dd01ed8")
        'Qwen/Qwen3-VL-8B-Instruct@0c351dd01ed8'
        >>> hub_name("runs/policy") is None
        True
    """
    path = Path(folder)
    kind, *repository = path.parent.parent.name.split("--")
    if path.parent.name != "snapshots" or kind != "models" or not repository:
        return None
    return f"{'/'.join(repository)}@{path.name}"


def adapter_base(folder: Path) -> Path | None:
    """The folder of the model that the adapter in a folder was trained on; None if the folder holds a whole model.

    Raises:
        ConfigError: the adapter does not name its base, or the base cannot be found.
    """
    file = folder / ADAPTER_CONFIG
    if not file.exists():
        return None
    said = _object(file)
    name, revision = said.get("base_model_name_or_path"), said.get("revision")
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{file} does not name the model it was trained on: expected base_model_name_or_path")
    try:
        base = model_folder(f"{name}@{revision}" if revision and NAME.fullmatch(f"{name}@{revision}") else str(name))
    except (ConfigError, StageError) as error:
        raise ConfigError(
            f"{folder} is an adapter of {name!r}, which cannot be found: {error}; put the right name into "
            f"base_model_name_or_path of {file}"
        ) from error
    if not (base / CONFIG).exists() or (base / ADAPTER_CONFIG).exists():
        raise ConfigError(f"{folder} is an adapter of {name!r}: expected a whole model there, with {CONFIG}")
    return base


def _object(file: Path) -> dict[str, Any]:
    """A JSON object; empty if it cannot be read as one."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _what_to_do(path: Path, *, is_name: bool) -> str:
    """What is expected at a path without a model; a stage is named only where its folder would be."""
    siblings = [*path.parent.glob(f"*/{MANIFEST}")] if path.parent.is_dir() else []
    if path.parts[0] in RUNS or siblings:
        return f"expected a folder with {CONFIG}; run the stage that writes it first"
    expected = f"expected a folder with {CONFIG}, or a name on the hub such as org/name or org/name@revision"
    if is_name:
        return f"{expected}; it is not looked up there, since {path.parts[0]} is a folder here"
    return expected


@contextmanager
def _explained(repository: str, revision: str | None) -> Iterator[None]:
    """Errors of the hub as one line that says what to do."""
    from huggingface_hub import constants, errors

    at = f"{repository}@{revision}" if revision else repository
    start = f"no folder {at} here, and on the hub ({constants.ENDPOINT})"
    try:
        yield
    except errors.GatedRepoError as error:
        raise ConfigError(
            f"{start} {repository} is gated: accept its terms at {constants.ENDPOINT}/{repository}, then log in with "
            "`hf auth login` or set HF_TOKEN"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ConfigError(
            f"{start} there is no model {repository}: check the spelling; for a private one log in with "
            "`hf auth login` or set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ConfigError(
            f"{start} {repository} has no revision {revision!r}; expected a branch, tag or commit"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        cause = one_line(str(error.__cause__ or error), 200)
        why = (
            "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} does not give it ({cause})"
        )
        raise ConfigError(
            f"no folder {at} here, and the hub's cache does not hold all of {at} while {why}: fetch it with "
            f"`hf download {repository}` where there is a network, or name a folder"
        ) from error
    except Exception as error:  # of the network below it, which is another library from version to version
        raise ConfigError(f"{start} {repository} cannot be fetched: {one_line(str(error), 300)}") from error
