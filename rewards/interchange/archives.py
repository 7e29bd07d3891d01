"""Images inside a zip archive, read one at a time and never unpacked: no member can land outside a folder.

An archive that was uploaded in pieces (`images.zip_aa`, `images.zip_ab`, …) is read across them, so nothing has to be
joined: the pieces are the archive's bytes in the order of their names.
"""

from __future__ import annotations

import io
import posixpath
import zipfile
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Self

from mpo.multimodal.errors import ImageError
from mpo.multimodal.text import one_line

MAX_MEMBER_BYTES = 64 << 20  # of one image file after decompression; its pixels are capped by the decoder


def parts_of(path: Path) -> list[Path]:
    """The pieces of an archive in order: the file itself, or those that begin with its name and `_`; none at all."""
    if path.is_file():
        return [path]
    return sorted(part for part in path.parent.glob(f"{path.name}_*") if part.is_file())


class ZipImages:
    """The members of a zip archive by their path.

    Args:
        path: of the archive; if it does not exist, of its pieces `path_…`.
        max_member_bytes: most bytes of a member after decompression.

    Raises:
        ImageError: the file is no zip archive, or pieces are missing.
    """

    def __init__(self, path: Path, *, max_member_bytes: int = MAX_MEMBER_BYTES) -> None:
        self.path, self.max_member_bytes = path, max_member_bytes
        parts = parts_of(path)
        try:
            self._zip = zipfile.ZipFile(io.BufferedReader(_Joined(parts or [path])))
        except Exception as error:  # the reader raises anything on a damaged directory
            pieces = f", read from its {len(parts)} pieces, of which one may be missing" if len(parts) > 1 else ""
            said = one_line(str(error), 100)
            raise ImageError(f"{path.name!r} is not a readable zip archive ({said}){pieces}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._zip.close()

    def __contains__(self, name: str) -> bool:
        return name in self._zip.NameToInfo

    def names(self) -> list[str]:
        """The paths of all members, in the order of the archive."""
        return self._zip.namelist()

    def read(self, *parts: str) -> bytes:
        """The bytes of a member; `parts` are joined to its path.

        Raises:
            ImageError: no such member, a path that leads out of the archive, over the size cap (whatever the
                archive's header says), encrypted or damaged.
        """
        name = posixpath.normpath(posixpath.join(*parts))
        if name.startswith(("/", "../")) or name == ".." or "\\" in name or "\0" in name:
            raise ImageError(f"image path {name!r} leaves the archive {self.path.name!r}")
        try:
            with self._zip.open(name) as member:
                data = member.read(self.max_member_bytes + 1)
        except KeyError as error:
            raise ImageError(f"image {name!r} does not exist in {self.path.name!r}") from error
        except Exception as error:  # so do the decompressors, MemoryError where a header asks for a huge dictionary
            said = one_line(f"{type(error).__name__}: {error}", 100)
            raise ImageError(f"image {name!r} of {self.path.name!r} cannot be read ({said})") from error
        if len(data) > self.max_member_bytes:
            raise ImageError(f"image {name!r} of {self.path.name!r} unpacks to over {self.max_member_bytes} bytes")
        return data


class _Joined(io.RawIOBase):
    """Several files as one, one after the other."""

    def __init__(self, parts: list[Path]) -> None:
        self._files = [part.open("rb") for part in parts]
        self._starts = [0, *accumulate(part.stat().st_size for part in parts)]
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._starts[-1]}[whence]
        if base + offset < 0:
            raise OSError(f"cannot seek to {base + offset}")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # of typeshed's private buffer type
        if self._at >= self._starts[-1]:
            return 0
        part = bisect_right(self._starts, self._at) - 1
        file = self._files[part]
        file.seek(self._at - self._starts[part])
        data = file.read(len(buffer))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        for file in self._files:
            file.close()
        super().close()
