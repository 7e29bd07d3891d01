"""Sharded safetensors, read and written one shard at a time: a checkpoint larger than memory passes through.

The folder is untrusted: only safetensors are read (a `.bin` is a pickle, which runs code), and the index can only
name files that lie in the folder itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mpo.multimodal.errors import ConfigError
from mpo.multimodal.files import write_atomic

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class SourceTensor:
    """A tensor that a checkpoint holds, known from the file's header alone."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Size of the weights."""
        return prod(self.shape) * self.dtype.itemsize


def read_json(path: Path) -> Any:
    """A JSON object of the checkpoint.

    Raises:
        ConfigError: missing, not JSON, or not an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"no {path.name} in {path.parent}; expected a checkpoint folder as on the Hub") from error
    except (ValueError, RecursionError) as error:  # also of decoding, and of brackets nested without end
        raise ConfigError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected an object, got {type(content).__name__}")
    return content


def tensors_of(folder: Path) -> dict[str, SourceTensor]:
    """Every tensor of a checkpoint folder; reads headers, no weights.

    Raises:
        ConfigError: no safetensors, a damaged file, a path in the index that leaves the folder, or index and files
            that disagree.
    """
    indexed = _index(folder)
    found: dict[str, SourceTensor] = {}
    for name in dict.fromkeys(indexed.values()) if indexed else [SINGLE]:
        for key, tensor in _headers(folder / name).items():
            if key in found:
                raise ConfigError(f"tensor {key!r} is in {found[key].file.name} and in {name}; expected it once")
            found[key] = tensor
    for key, name in indexed.items():
        if key not in found or found[key].file.name != name:
            raise ConfigError(f"{INDEX} puts tensor {key!r} in {name}, which does not hold it")
    if indexed and (extra := sorted(found.keys() - indexed.keys())):
        raise ConfigError(f"{INDEX} does not list tensor {extra[0]!r} of {found[extra[0]].file.name}")
    return found


def stream(tensors: dict[str, SourceTensor]) -> Iterator[tuple[str, Tensor]]:
    """The tensors, one after the other, each mapped from its file and dropped again."""
    for file in dict.fromkeys(tensor.file for tensor in tensors.values()):
        with safe_open(file, framework="pt") as opened:
            for name, tensor in tensors.items():
                if tensor.file == file:
                    yield name, opened.get_tensor(name)


def write_shards(folder: Path, tensors: Iterable[tuple[str, Tensor]], *, total_bytes: int, shard_bytes: int) -> int:
    """Write tensors as they come, a new file whenever one would grow beyond `shard_bytes`; then the index.

    At most one shard is held. A tensor larger than `shard_bytes` gets a file of its own. Files of a writing that was
    killed are replaced.

    Args:
        folder: exists.
        tensors: names and contiguous tensors.
        total_bytes: of all tensors together; decides whether one file is enough.
        shard_bytes: largest file.

    Returns:
        Number of files.

    Raises:
        ConfigError: the folder holds weights already.
    """
    if found := sorted(path.name for path in folder.glob("*.safetensors")):
        raise ConfigError(f"{folder} already holds weights ({found[0]}); choose another folder or delete it")
    for unfinished in folder.glob("shard-*.tmp"):
        unfinished.unlink()
    if total_bytes <= shard_bytes:
        save_file(dict(tensors), folder / SINGLE, metadata={"format": "pt"})
        return 1
    shards: list[list[str]] = []
    held: dict[str, Tensor] = {}
    for name, tensor in tensors:
        if held and sum(t.nbytes for t in held.values()) + tensor.nbytes > shard_bytes:
            shards.append(_write(folder, len(shards) + 1, held))
            held = {}
        held[name] = tensor
    shards.append(_write(folder, len(shards) + 1, held))
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        final = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        (folder / _unfinished(number)).replace(folder / final)
        weight_map |= dict.fromkeys(names, final)
    index = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
    write_atomic(folder / INDEX, json.dumps(index, indent=2) + "\n")
    return len(shards)


def _write(folder: Path, number: int, held: dict[str, Tensor]) -> list[str]:
    save_file(held, folder / _unfinished(number), metadata={"format": "pt"})
    return list(held)


def _unfinished(number: int) -> str:
    """The number of files is known only at the end, and is part of their names."""
    return f"shard-{number:05d}.tmp"


def _index(folder: Path) -> dict[str, str]:
    """Tensor → file name of the index; empty for a checkpoint in one file."""
    if not (folder / INDEX).exists():
        if not (folder / SINGLE).exists():
            other = sorted(path.name for path in folder.glob("*.bin*"))
            came = f"found {other[0]}, a pickle, which is never loaded" if other else "found no weights"
            raise ConfigError(f"{folder}: expected {SINGLE} or {INDEX}; {came}. Fetch the safetensors files")
        return {}
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ConfigError(f"{folder / INDEX}: expected weight_map with tensor names and files, got {weight_map!r}")
    for key, name in weight_map.items():
        plain = isinstance(name, str) and PurePath(name).name == name == PureWindowsPath(name).name
        if not plain or not name.endswith(".safetensors"):
            raise ConfigError(
                f"{INDEX} puts tensor {key!r} in {name!r}; expected the plain name of a .safetensors file in {folder}"
            )
    return weight_map


def _headers(file: Path) -> dict[str, SourceTensor]:
    if not file.exists():
        raise ConfigError(f"{file} is missing; fetch the checkpoint again")
    try:
        with safe_open(file, framework="pt") as opened:
            return {key: _header(file, key, opened.get_slice(key)) for key in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ConfigError(f"{file} is not a complete safetensors file: {error}; fetch it again") from error


def _header(file: Path, name: str, header: Any) -> SourceTensor:
    if header.get_dtype() not in DTYPES:
        raise ConfigError(
            f"{file.name}: tensor {name!r} has number type {header.get_dtype()}; expected {', '.join(DTYPES)} "
            "(a quantised checkpoint cannot be converted)"
        )
    return SourceTensor(file, tuple(header.get_shape()), DTYPES[header.get_dtype()])
