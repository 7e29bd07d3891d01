"""Parquet files are read some rows at a time: no reader holds the file."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rewards.interchange.parquet import parquet_tables
from rewards.interchange.stepwise_rows import read_stepwise_parquet, stepwise_features
from rewards.interchange.tables import read_table

SCHEMA = stepwise_features().arrow_schema
READERS: dict[str, Callable[[Path], Iterable[Any]]] = {
    "tables": lambda path: parquet_tables(path, schema=SCHEMA),
    "rows": read_table,
    "stepwise": read_stepwise_parquet,
}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 MB of what looks like images, in 40 row groups."""
    path = tmp_path_factory.mktemp("large") / "a.parquet"
    with pq.ParquetWriter(path, SCHEMA, write_page_checksum=True, write_statistics=False) as writer:
        for number in range(40):
            noise = np.random.default_rng(number)
            images = [[{"bytes": noise.bytes(100_000), "path": None}] for _ in range(10)]
            rows = [{"prompt": "?", "completions": ["a"], "labels": [True], "images": image} for image in images]
            writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))
    return path


@pytest.mark.parametrize("reader", READERS)
def test_a_reader_holds_some_row_groups_of_a_file(large: Path, reader: str) -> None:
    before, most, rows = pa.total_allocated_bytes(), 0, 0
    for _ in READERS[reader](large):
        rows += 1
        most = max(most, pa.total_allocated_bytes() - before)
    assert rows in (400, 7)  # rows, or tables of 64 of them
    assert most < 20e6, most
