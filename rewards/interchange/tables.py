"""Rows of any table that problems and responses come in, one at a time; a bad row is a value that says why.

JSON lines, a JSON array, or an object of rows by their ids; TSV and CSV (as VLMEvalKit writes them: quoted fields of
any length); .xlsx (VLMEvalKit's predictions); Parquet; a folder that `datasets` saved (`save_to_disk`); a folder of
such files; and `hub:NAME`, whose files `rewards/interchange/hub.py` brings here. Nothing is fetched but what `hub:`
names, and nothing is run.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from mpo.multimodal.errors import ConfigError, DataError, ImageError, StageError
from mpo.multimodal.images import resolve_inside
from mpo.multimodal.text import one_line
from rewards.interchange.hub import HUB, hub_files
from rewards.interchange.json_rows import iter_rows
from rewards.interchange.parquet import opened_parquet
from rewards.interchange.xlsx import read_xlsx

Row = dict[str, Any]
Located = tuple[str, Row | DataError]  # file and number of a row, and the row or what is wrong with it

MAX_FIELD = 96 << 20  # characters of one field of a TSV or CSV file: an image of 64 MiB in base64 fits
STATE = "state.json"  # of a folder that `datasets` saved
SPLITS = "dataset_dict.json"  # of one that holds a folder per split
ROWS_A_BATCH = 16


def read_table(source: str | Path, *, limit: int = 0) -> Iterator[Located]:
    """The rows of a source in order.

    Args:
        source: a file, a folder, or `hub:NAME[@REVISION][:CONFIG][:SPLIT]`.
        limit: rows of each file; 0 takes all.

    Raises:
        StageError: there is no such file.
        ConfigError: it is of no known kind, or one of its splits has to be named.
        DataError: the file as a whole cannot be read.
    """
    for file in files_of(source):
        rows = READERS[file.suffix.lower()](file)
        yield from islice(rows, limit) if limit else rows


def files_of(source: str | Path) -> list[Path]:
    """The files behind a source, in the order in which they are read; raises as `read_table`."""
    if str(source).startswith(HUB):
        return [_known(file, source) for file in hub_files(str(source))]
    path = Path(source)
    if path.is_file():
        return [_known(path, source)]
    if not path.is_dir():
        raise StageError(
            f"no rows at {path}: expected a file ({', '.join(sorted(READERS))}), a folder of such files, a folder that "
            f"`datasets` saved, or {HUB}NAME"
        )
    if (path / SPLITS).is_file():
        splits = sorted(folder.name for folder in path.iterdir() if (folder / STATE).is_file())
        raise ConfigError(
            f"{path} holds the splits {', '.join(splits)}; name one: {path / splits[0] if splits else path}"
        )
    if (path / STATE).is_file():
        return _saved(path)
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in READERS and file.is_file())
    if not files:
        raise ConfigError(f"folder {path} holds no file that can be read; expected {', '.join(sorted(READERS))}")
    return files


def folder_of(source: str | Path) -> Path | None:
    """The folder that paths in a source's rows start at; None for a source of the Hub, whose images are embedded."""
    if str(source).startswith(HUB):
        return None
    return Path(source) if Path(source).is_dir() else Path(source).parent


def _known(path: Path, source: str | Path) -> Path:
    if path.suffix.lower() not in READERS:
        raise ConfigError(f"{source}: cannot read {path.name!r}; expected one of {', '.join(sorted(READERS))}")
    return path


def _saved(folder: Path) -> list[Path]:
    """The Arrow files of a folder that `datasets` saved."""
    try:
        named = [entry["filename"] for entry in json.loads((folder / STATE).read_bytes())["_data_files"]]
        return [_known(resolve_inside(name, folder), folder) for name in named]
    except (ValueError, TypeError, KeyError, ImageError, RecursionError) as error:
        raise DataError(f"{folder / STATE} names no data files of `datasets` ({one_line(str(error), 100)})") from error


def _json(path: Path) -> Iterator[Located]:
    for number, row in iter_rows(path):
        where = f"{path.name}:{number}"
        if isinstance(row, DataError):
            yield where, DataError(str(row), reason="not JSON")
        elif isinstance(row, dict):
            yield where, row
        else:
            yield where, DataError(f"the row is {one_line(repr(row), 60)}; expected an object", reason="no object")


def _separated(separator: str) -> Callable[[Path], Iterator[Located]]:
    def read(path: Path) -> Iterator[Located]:
        csv.field_size_limit(MAX_FIELD)  # of the whole process; the library's own is 128 KiB
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.reader(_lines(file), delimiter=separator)
            try:
                names = next(reader, [])
            except csv.Error as error:
                raise DataError(f"{path}: the line of column names cannot be read ({error})") from error
            if len(set(names)) != len(names) or not names:
                raise DataError(f"{path}: expected a first line of different column names, got {names!r:.100}")
            number = 1
            while True:
                number += 1
                where = f"{path.name}:{number}"
                try:
                    values = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    yield where, DataError(f"the row cannot be read ({error})", reason="unreadable row")
                    continue
                if not values:
                    continue
                if len(values) != len(names):
                    message = f"{len(values)} fields; expected {len(names)}, one per column"
                    yield where, DataError(message, reason="wrong number of fields")
                else:
                    yield where, dict(zip(names, values, strict=True))

    return read


def _lines(file: TextIO) -> Iterator[str]:
    """Lines, the longest cut in pieces, so that no file fills the memory with one."""
    while line := file.readline(MAX_FIELD + 1):
        yield line


def _parquet(path: Path) -> Iterator[Located]:
    import pyarrow as pa

    try:
        with opened_parquet(path) as file:
            yield from _batches(path, file.iter_batches(batch_size=ROWS_A_BATCH))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no readable Parquet file ({one_line(str(error), 200)})") from error


def _arrow(path: Path) -> Iterator[Located]:
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as stream:
            yield from _batches(path, stream)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no readable Arrow file ({one_line(str(error), 200)})") from error


def _batches(path: Path, batches: Iterator[Any]) -> Iterator[Located]:
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, ROWS_A_BATCH):
            for row in batch.slice(start, ROWS_A_BATCH).to_pylist():
                number += 1
                yield f"{path.name}:{number}", row


READERS: dict[str, Callable[[Path], Iterator[Located]]] = {
    ".jsonl": _json,
    ".json": _json,
    ".ndjson": _json,
    ".tsv": _separated("\t"),
    ".csv": _separated(","),
    ".parquet": _parquet,
    ".arrow": _arrow,
    ".xlsx": read_xlsx,
}
