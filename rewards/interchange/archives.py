"""Images inside a zip archive, read one at a time and never unpacked: no member can land outside a folder."""

from __future__ import annotations

import posixpath
import zipfile
from pathlib import Path
from types import TracebackType
from typing import Self

from mpo.multimodal.errors import ImageError
from mpo.multimodal.text import one_line

MAX_MEMBER_BYTES = 64 << 20  # of one image file after decompression; its pixels are capped by the decoder


class ZipImages:
    """The members of a zip archive by their path.

    Raises:
        ImageError: the file is no zip archive.
    """

    def __init__(self, path: Path, *, max_member_bytes: int = MAX_MEMBER_BYTES) -> None:
        self.path, self.max_member_bytes = path, max_member_bytes
        try:
            self._zip = zipfile.ZipFile(path)
        except Exception as error:  # the reader raises anything on a damaged directory
            raise ImageError(f"{path.name!r} is not a readable zip archive ({one_line(str(error), 100)})") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._zip.close()

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
