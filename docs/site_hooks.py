"""What mkdocs cannot do by itself: pages of files at the root, links that work on GitHub and on the site, examples."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
PAGES = {name: f"{name.removesuffix('.md').lower()}.md" for name in ("SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md")}
EXAMPLE = re.compile(r"^<!-- (examples/\w+\.py) -->$", re.MULTILINE)


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that lie at the repository's root, with their links as seen from docs/."""
    for name, page in PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=re.sub(r"\]\(docs/", "](", _linked(text))))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Let a link to a file of the root lead to its page, and show the examples where they are named."""
    return EXAMPLE.sub(_shown, _linked(markdown))


def _linked(text: str) -> str:
    for name, page in PAGES.items():
        text = re.sub(rf"\]\(((?:\.\./)*){name}\)", lambda m, page=page: f"]({m[1][3:]}{page})", text)
    return text


def _shown(match: re.Match[str]) -> str:
    return f'```python title="{match[1]}"\n{(ROOT / match[1]).read_text(encoding="utf-8")}```'
