"""Rows into a Parquet file that appears whole or not at all, with the same bytes for the same rows; and out of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from filelock import FileLock

from mpo.multimodal.errors import DataError
from mpo.multimodal.files import opened_atomically
from mpo.multimodal.text import one_line

_ROWS_AT_A_TIME = 64  # as Python's values
_ROWS_A_GROUP, _BYTES_A_GROUP = 1024, 16 << 20  # a row group ends when it has one of them; it is held as Arrow's values
_READ_BYTES = 1 << 20  # of a column, at a time


def write_parquet(rows: Iterable[dict[str, Any]], path: str | Path, *, schema: Any) -> int:
    """Write rows, a row group in memory at a time.

    The footer is held until the end, so there are few row groups, and no statistics: the least and the largest value
    of each column in each row group would be images and whole responses.

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
    tables: list[pa.Table] = []
    settings = {"write_page_checksum": True, "write_statistics": False}
    with opened_atomically(path, "wb") as file, pq.ParquetWriter(file, schema, **settings) as writer:
        while chunk := list(islice(left, _ROWS_AT_A_TIME)):
            tables.append(pa.Table.from_pylist(chunk, schema=schema))
            written += len(chunk)
            if written % _ROWS_A_GROUP == 0 or sum(table.nbytes for table in tables) >= _BYTES_A_GROUP:
                writer.write_table(pa.concat_tables(tables))
                tables.clear()
        if tables:
            writer.write_table(pa.concat_tables(tables))
    return written


def read_parquet(
    path: Path, *, features: Any, columns: Sequence[str] | None = None, kept_in: Path | None = None
) -> Any:
    """The rows of a file as a `datasets.Dataset`, exactly those that it holds now.

    Nothing is cached in the home folder: a cache that knows a file by its path and time gives the rows of another file
    that has both.

    Args:
        path: of the file, which may be anyone's.
        features: `datasets.Features`: the columns and their types. One that the file lacks is null in every row.
        columns: those to read; None is all.
        kept_in: folder for an uncompressed copy that is mapped into memory, named after the file's content; None reads
            into memory. Who gives it removes it.

    Raises:
        DataError: the file is damaged, or a column is of another type.
    """
    import datasets
    import pyarrow as pa

    wanted = datasets.Features({name: features[name] for name in columns or features})
    tables = parquet_tables(path, schema=wanted.arrow_schema)
    if kept_in is None:
        parts = list(tables)
        return datasets.Dataset(pa.concat_tables(parts) if parts else wanted.arrow_schema.empty_table())
    kept_in.mkdir(parents=True, exist_ok=True)
    with path.open("rb") as file:
        copy = kept_in / f"{hashlib.file_digest(file, 'sha256').hexdigest()[:16]}.arrow"
    with FileLock(f"{copy}.lock"):  # of several processes of a run, one writes
        if not copy.exists():
            with opened_atomically(copy, "wb") as out, pa.ipc.new_stream(out, wanted.arrow_schema) as writer:
                for table in tables:
                    writer.write_table(table)
    return datasets.Dataset.from_file(str(copy))


def opened_parquet(path: str | Path) -> Any:
    """A `pyarrow.parquet.ParquetFile`, to be read and closed, which holds some rows of a row group in memory.

    Arrow's default reads ahead and keeps what it read until the file is closed: in the end all of it, images included.
    """
    import pyarrow.parquet as pq

    return pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False, buffer_size=_READ_BYTES)


def parquet_tables(path: Path, *, schema: Any) -> Iterator[Any]:
    """A file as tables of this schema, some rows in memory at a time; errors are those of `read_parquet`."""
    import pyarrow as pa

    try:
        with opened_parquet(path) as file:
            present = [name for name in schema.names if name in file.schema_arrow.names]
            for batch in file.iter_batches(batch_size=_ROWS_AT_A_TIME, columns=present):
                columns = [_column(batch, field) for field in schema]
                yield pa.Table.from_arrays(columns, schema=schema)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no readable Parquet file ({one_line(str(error), 200)}); write it again") from error


def _column(batch: Any, field: Any) -> Any:
    import pyarrow as pa

    if field.name not in batch.schema.names:
        return pa.nulls(batch.num_rows, field.type)
    column = batch.column(field.name)
    try:
        return column.cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        came, expected = (one_line(str(kind), 100) for kind in (column.type, field.type))
        raise DataError(f"column {field.name!r} is of type {came}; expected {expected}") from error
