"""griffe takes `Examples:` for a section of code and `Example:` for a paragraph; our docstrings say the latter."""

from __future__ import annotations

import re
from typing import Any

import griffe


class ExampleSections(griffe.Extension):
    """Reads `Example:` as a section."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rename the section in the loaded docstring; the source stays as it is."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
