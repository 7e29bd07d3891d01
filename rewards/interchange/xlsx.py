"""The rows of a workbook's first sheet, of which the first row names the columns; formulas are not computed."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mpo.multimodal.errors import ConfigError, DataError
from mpo.multimodal.text import one_line

MAX_UNPACKED = 1 << 30  # bytes of the XML inside, by its headers, beyond which nothing is unpacked


def read_xlsx(path: Path) -> Iterator[tuple[str, dict[str, Any] | DataError]]:
    """File and number of each row, and the row.

    Raises:
        ConfigError: openpyxl is not installed.
        DataError: the file is no workbook, unpacks to too much, or its first row names no columns.
    """
    try:
        from openpyxl import load_workbook
    except ImportError as error:
        raise ConfigError(
            f"{path.name}: an .xlsx file needs the extra: pip install -e '.[xlsx]'; or save it as .tsv"
        ) from error
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > MAX_UNPACKED:
            raise DataError(f"{path} unpacks to {unpacked} bytes; expected at most {MAX_UNPACKED}")
        book = load_workbook(path, read_only=True, data_only=True, keep_links=False)
        rows = book.worksheets[0].iter_rows(values_only=True)
        names = [str(name) for name in next(rows, ()) if name is not None]
        if not names or len(set(names)) != len(names):
            raise DataError(f"{path}: expected a first row of different column names, got {names!r:.100}")
        for number, values in enumerate(rows, start=2):
            if any(value is not None for value in values):
                yield f"{path.name}:{number}", dict(zip(names, values, strict=False))
        book.close()
    except (DataError, GeneratorExit):
        raise
    except Exception as error:  # a reader of XML in a zip raises anything on damaged bytes
        raise DataError(f"{path} is no readable workbook ({one_line(str(error), 200)}); save it as .tsv") from error
