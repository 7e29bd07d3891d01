"""Rows into a Parquet file that appears whole or not at all; the same rows give the same bytes."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from mpo.multimodal.files import opened_atomically

_ROWS_A_GROUP = 64  # rows held in memory at a time, and in one Parquet row group


def write_parquet(rows: Iterable[dict[str, Any]], path: str | Path, *, schema: Any) -> int:
    """Write rows, 64 in memory at a time.

    Args:
        rows: may be a generator.
        path: of the file; its folder is made if it is missing.
        schema: a `pyarrow.Schema`.

    Returns:
        The number of rows written; zero rows give a valid, empty file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    left, written = iter(rows), 0
    with opened_atomically(path, "wb") as file, pq.ParquetWriter(file, schema) as writer:
        while chunk := list(islice(left, _ROWS_A_GROUP)):
            writer.write_table(pa.Table.from_pylist(chunk, schema=schema))
            written += len(chunk)
    return written
