"""Reading a run of wandb's offline mode back from its files, without wandb's server."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

FILE_HEADER, BLOCK, RECORD_HEADER = 7, 32768, 7
FULL, LAST = 1, 4


def records(folder: Path) -> list[Any]:
    """Protobuf records of the one run below a folder. The file is a LevelDB log: blocks of 32 KiB, chunks in them."""
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    return [wandb_internal_pb2.Record.FromString(data) for data in _chunks(path.read_bytes())]


def _chunks(content: bytes) -> Iterator[bytes]:
    assert content[:4] == b":W&B"
    position, data = FILE_HEADER, b""
    while position < len(content):
        left = BLOCK - position % BLOCK
        if left < RECORD_HEADER:  # a block's end, too short for a header, is padding
            position += left
            continue
        _, size, kind = struct.unpack_from("<IHB", content, position)  # CRC-32, length, kind
        position += RECORD_HEADER + size
        data += content[position - size : position]
        if kind in (FULL, LAST):
            yield data
            data = b""


def history(found: list[Any]) -> list[dict[str, Any]]:
    """What was logged, a dict a call; a media value is `{its key: {…}}`."""
    rows = []
    for record in found:
        if record.WhichOneof("record_type") == "history":
            row: dict[str, Any] = {}
            for item in record.history.item:
                *parents, name = item.nested_key or [item.key]
                place = row
                for parent in parents:
                    place = place.setdefault(parent, {})
                place[name] = json.loads(item.value_json)
            rows.append(row)
    return rows


def config(found: list[Any]) -> dict[str, Any]:
    """The run's configuration, the last value of each key."""
    updates = [update for r in found for part in (r.run.config, r.config) for update in part.update]
    return {update.key or "/".join(update.nested_key): json.loads(update.value_json) for update in updates}


def artifacts(found: list[Any]) -> list[dict[str, Path]]:
    """Files of each artifact (a table with its images is one): path inside it → where it waits for its upload."""
    logged = [record.artifact for record in found if record.WhichOneof("record_type") == "artifact"]
    return [{entry.path: Path(entry.local_path) for entry in artifact.manifest.contents} for artifact in logged]
