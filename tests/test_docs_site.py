"""The documentation site builds without a warning, asks for nothing outside itself, describes every public name."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import mpo
import rewards

sys.path.insert(0, str(Path(__file__).parent / "recipes"))
from tests.recipes.report.browser import chromium, look, visit

ROOT = Path(__file__).resolve().parents[1]
LOADED = re.compile(r"<(?:script|img|iframe|source|video|audio)[^>]*?\ssrc=[\"']?([^\"'\s>]+)", re.IGNORECASE)
STYLES = re.compile(r"<link[^>]*?\shref=[\"']?([^\"'\s>]+)", re.IGNORECASE)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the working tree, in strict mode."""
    pytest.importorskip("mkdocs", reason="the docs extra is not installed: pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    handler = partial(SimpleHTTPRequestHandler, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        text = page.read_text()
        outside = [url for url in LOADED.findall(text) + STYLES.findall(text) if re.match(r"(?:[a-z]+:)?//", url)]
        assert not outside, (page.name, outside)
    for style in site.rglob("*.css"):
        assert not re.search(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", style.read_text()), style.name


def test_every_public_name_is_described(site: Path) -> None:
    text = "".join(page.read_text() for page in (site / "api").glob("*.html"))
    ids = set(re.findall(r'id="([\w.]+)"', text))
    missing = [name for name in mpo.__all__ if f"mpo.{name}" not in ids]
    missing += [name for name in rewards.__all__ if not any(i.endswith(f".{name}") for i in ids)]
    assert not missing
    assert "&gt;&gt;&gt;" in text  # the examples are code, not quotations
    assert "<blockquote>" not in text


def test_the_heart_is_printed(site: Path) -> None:
    """The examples' own text: what the page shows is what the tests run."""
    text = html.unescape(re.sub(r"<[^>]+>", "", (site / "examples.html").read_text()))
    for name in ("mpo_loop.py", "loop.py"):
        assert (ROOT / "examples" / name).read_text().strip() in text


def test_pages_of_the_root_and_links_to_them(site: Path) -> None:
    for page in ("security", "contributing", "changelog"):
        assert (site / f"{page}.html").is_file()
    assert 'href="security.html"' in (site / "overview.html").read_text()
    assert 'href="overview.html"' in (site / "contributing.html").read_text()


def test_in_a_browser(site: Path, address: str, tmp_path: Path) -> None:
    """No request leaves the site, nothing fails, and no page is wider than a phone but for what scrolls in itself."""
    with chromium(tmp_path) as session:
        for width in (1300, 400):
            look(session, width=width)
            for page in ("index", "losses", "migration", "api/mpo"):
                seen = visit(session, f"{address}/{page}.html")
                asked = [url for url in seen["requests"] if not url.startswith("chrome:")]  # the browser's own pages
                assert all(url.startswith((address, "blob:")) for url in asked), asked
                assert seen["console"] == []
                over = session.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
                assert over <= 0, (page, width)
