"""What a command is given, looked at before anything heavy is imported: a wrong path costs a second, not a minute.

A setting's name says what lies at its path. Only what is certainly wrong is refused here, from names, sizes and first
bytes; whether the content is right, the stage finds out when it reads it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from mpo.multimodal.errors import ConfigError, DataError, StageError
from mpo.multimodal.hub import ADAPTER_CONFIG, CONFIG, is_hub_name
from recipes.stage.exclusive import refuse_exclusive
from rewards.interchange.hub import HUB
from rewards.prm.formats import CONTRACT

ADDRESS = re.compile(r"https?:/")
PARQUET = b"PAR1"  # the first and the last bytes of such a file
TOKENIZERS = ("tokenizer.*", "vocab*", "*.model", "*.tiktoken", "*.spm")
PART = 8  # bytes of the length that a safetensors file begins with


def check_inputs(config: Any) -> None:
    """Look at every path of a command's config, and at settings that exclude each other.

    Raises:
        StageError: nothing is there.
        ConfigError: something else is there, or two settings cannot both hold.
        DataError: a file of problems without a single problem.
    """
    refuse_exclusive(config)
    for name in (field.name for field in fields(config) if "Path" in str(field.type)):
        value = getattr(config, name)
        for path in value if isinstance(value, list) else [value]:
            if path is not None and name in KINDS:
                KINDS[name](Path(path), config)


def _settings(path: Path, config: Any) -> None:
    from recipes.commands.shipped import read_mapping

    read_mapping(path)


def _out(path: Path, config: Any) -> None:
    above = next((part for part in (path, *path.parents) if part.exists()), None)
    if above is not None and not above.is_dir():
        raise ConfigError(f"out={path}: {above} is a file; expected a folder, or a name that is free")


def _there(path: Path, config: Any) -> None:
    if not path.exists():
        raise StageError(f"input {path} does not exist; run the stage that writes it first")


def _folder(path: Path, config: Any) -> None:
    _there(path, config)
    if not path.is_dir():
        raise ConfigError(f"{path} is a file; expected a folder")


def _model(path: Path, config: Any) -> None:
    """A checkpoint, whose weights are not needed where a server has them."""
    _checkpoint(path, config, weights=not vars(config).get("base_url"))


def _checkpoint(path: Path, config: Any, *, weights: bool) -> None:
    """A configuration that is a JSON object, and weights that are whole by their own header."""
    if is_hub_name(path):
        return  # it is looked up later
    _folder(path, config)
    if (path / ADAPTER_CONFIG).exists() and not (path / CONFIG).exists():
        return
    if not (path / CONFIG).is_file():
        raise StageError(
            f"no model at {path}: expected a folder with {CONFIG}, as a training stage or a download leaves it"
        )
    _object(path / CONFIG, needs="model_type")
    if not any(next(path.glob(pattern), None) for pattern in TOKENIZERS):
        raise StageError(f"no tokenizer at {path}: expected tokenizer.json or the like; fetch or make the model again")
    if weights:
        _weights(path)


def _weights(path: Path) -> None:
    index = path / "model.safetensors.index.json"
    named = (
        {path / str(name) for name in _object(index, needs="weight_map")["weight_map"].values()}
        if index.is_file()
        else set()
    )
    files = sorted(named) or sorted(path.glob("*.safetensors"))
    if not files:
        raise StageError(f"no weights at {path}: expected model.safetensors; fetch or make the model again")
    for file in files:
        if not file.is_file():
            raise StageError(f"{path}: {index.name} names {file.name}, which is not there; fetch it again")
        _whole_weights(file)


def _whole_weights(file: Path) -> None:
    """As long as its header says: 8 bytes with the header's length, the header, the tensors."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(PART), "little")
        try:
            header = json.loads(opened.read(length)) if PART + length <= size else None
            ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]  # type: ignore[union-attr]
        except (ValueError, RecursionError, AttributeError, KeyError, IndexError, TypeError):
            header, ends = None, []
    if header is None or PART + length + max(ends, default=0) != size:
        raise ConfigError(f"{file} is damaged or cut short: its header does not fit its {size} bytes; fetch it again")


def _prm(path: Path, config: Any) -> None:
    if is_hub_name(path):
        return  # it is looked up later
    _folder(path, config)
    if not (path / CONTRACT).is_file() and getattr(config, "prm_format", None) is None:
        way = "; or pass --prm_format NAME to say how it is asked" if hasattr(config, "prm_format") else ""
        raise StageError(
            f"no process reward model at {path}: expected {CONTRACT} there; run `mpo train-prm` first{way}"
        )
    if (path / CONTRACT).is_file():
        _object(path / CONTRACT, needs="name")
    if (path / CONFIG).is_file():
        told = vars(config)
        _checkpoint(path, config, weights=not told.get("prm_base_url" if "prm_base_url" in told else "base_url"))


def _rows(path: Path, config: Any) -> None:
    """Rows of any form, which no stage needs to have written."""
    if not str(path).startswith(HUB) and not path.exists():
        raise StageError(f"no rows at {path}: nothing is there; expected a file, a folder, or hub:NAME")


def _groups(path: Path, config: Any) -> None:
    from recipes.stage.folder import problems_of

    _folder(path, config)
    problems_of(path)


def _benchmark(path: Path, config: Any) -> None:
    (_groups if config.kind == "groups" else _there)(path, config)


def _pairs(path: Path, config: Any) -> None:
    if not path.exists():
        raise StageError(f"no pairs at {path}; run `mpo pairs` first")
    file = path / "pairs.parquet" if path.is_dir() else path
    if not file.is_file():
        raise StageError(f"{path} holds no pairs.parquet; expected the folder of `mpo pairs`, or a Parquet file")
    with file.open("rb") as opened:
        first, size = opened.read(len(PARQUET)), file.stat().st_size
        opened.seek(max(0, size - len(PARQUET)))
        last = opened.read()
    if (first, last) != (PARQUET, PARQUET) or size <= 2 * len(PARQUET):
        raise ConfigError(f"{file} is no Parquet file, or cut short; expected the pairs of `mpo pairs`, or TRL's rows")


def _source(path: Path, config: Any) -> None:
    kind = {"trl": _pairs, "groups": _groups}.get(getattr(config, "source_format", ""), _rows)
    kind(path, config)


def _problems(path: Path, config: Any) -> None:
    """At least one of our own lines is a problem whose images are there; bad ones beside it are the stage's to count.

    Problems of another kind, such as a table or a data set of the hub, are read when the stage begins.
    """
    if str(path).startswith(HUB):
        return
    from recipes.stage.groups import iter_problems
    from recipes.stage.problem_source import is_ours
    from rewards.interchange.tables import files_of

    _there(path, config)
    if path.is_dir() and (path / CONFIG).exists():
        raise ConfigError(f"{path} is the folder of a model; expected problems")
    if getattr(config, "columns", None) or not is_ours(path):
        files_of(path)
        return
    faults: list[str] = []
    for problem in iter_problems(
        path, image_root=getattr(config, "image_root", None), on_bad=lambda *bad: faults.append(bad[-1])
    ):
        lost = [image for image in problem.images if not Path(str(image)).is_file()]
        if not lost:
            return
        faults.append(f"problem {problem.id!r}: image {lost[0]} does not exist")
    raise DataError(
        f"{path} holds no problem that can be asked, of {len(faults)} lines: {faults[0] if faults else 'it is empty'}; "
        'expected lines like {"id": "1", "question": "How many?", "images": ["a.png"], "answer": "3"}'
    )


def _image(path: Path, config: Any) -> None:
    if ADDRESS.match(str(path)):
        raise ConfigError(f"image {path} is an address; nothing is fetched, so download it and give its path")
    from mpo.multimodal.images import image_size

    image_size(path)


def _run(path: Path, config: Any) -> None:
    if not path.exists():
        raise StageError(f"{path} does not exist; expected the folder of a run")


def _object(file: Path, *, needs: str) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file} is not valid JSON: {error}; fetch or make it again") from error
    if not isinstance(found, dict) or needs not in found:
        got = f"without {needs!r}" if isinstance(found, dict) else f"a {type(found).__name__}"
        raise ConfigError(f"{file}: expected a JSON object with {needs!r}, got one {got}; fetch or make it again")
    return found


KINDS: dict[str, Callable[[Path, Any], None]] = {
    **dict.fromkeys(("out", "run_dir"), _out),
    **dict.fromkeys(("policy", "model", "prm_model"), _model),
    **dict.fromkeys(("groups", "consensus", "earlier", "prm_labels", "demonstrations", "continued"), _groups),
    **dict.fromkeys(("problems", "guard", "preference_problems", "prm_problems", "test_problems"), _problems),
    **dict.fromkeys(("training", "test", "responses"), _rows),
    "settings": _settings,
    "prm": _prm,
    "pairs": _pairs,
    "source": _source,
    "benchmark": _benchmark,
    "development": _benchmark,
    "checkpoint": _model,
    "image": _image,
    "image_root": _folder,
    **dict.fromkeys(("run", "against"), _run),
}
