"""The page in a real browser: hostile text does nothing, keyboard and phone work, 500 problems load.

Skipped where no Chromium is installed, as in CI; `apt-get install chromium chromium-driver` makes it run.
"""

import json
from pathlib import Path

import pytest
from PIL import Image

from recipes.report.page import report
from tests.recipes.report.browser import chromium, look, visit
from tests.recipes.run_folders import make_run

CORPUS = json.loads((Path(__file__).parent / "xss_corpus.json").read_text(encoding="utf-8"))
HUGE = ["<" * 50_000, "\n\n".join(["<b>x"] * 300), "A" * 200_000]


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as session:
        yield session


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory):
    texts = [*CORPUS.values(), *HUGE]
    run = tmp_path_factory.mktemp("run") / "<script>alert(1)<"
    make_run(run, problems=len(texts), preference_problems=len(texts), samples=3, ks=(1, 2), corpus=texts)
    return report(run, problems=3 * len(texts))


def test_the_record_sees_a_hostile_page(session, tmp_path):
    """Without escaping and policy the corpus does all that the next test says it does not do."""
    page = tmp_path / "bare.html"
    quiet = [text for name, text in CORPUS.items() if name not in ("textarea", "title break-out", "meta")]
    page.write_text("<!doctype html><title>bare</title>" + "\n".join(quiet), encoding="utf-8")
    seen = visit(session, page.as_uri())
    assert seen["dialog"]
    assert any("evil.invalid" in url for url in seen["requests"])


def test_the_corpus_does_nothing(session, hostile_page):
    """No dialog, no request, no console message, and every text is there to be read."""
    html = hostile_page.read_text(encoding="utf-8")
    seen = visit(session, hostile_page.as_uri())
    print(f"corpus of {len(CORPUS)} texts: {len(html) / 1e6:.1f} MB, {seen}")
    assert not seen["requests"]
    assert not seen["console"]
    assert not seen["dialog"]
    assert seen["title"].endswith("MPO report")
    count = session.execute_script("return document.querySelectorAll('.problem').length")
    assert count > 2 * len(CORPUS)
    elements = session.execute_script(
        "return [...new Set([...document.querySelectorAll('.problem *')].map(e => e.localName))]"
    )
    assert {"script", "style", "svg", "a", "iframe", "form", "input", "object", "link"}.isdisjoint(elements)
    questions = session.execute_script("return [...document.querySelectorAll('.problem h4')].map(e => e.textContent)")
    assert CORPUS["jinja"] in questions
    assert CORPUS["script end"] in questions


@pytest.mark.parametrize(("dark", "width"), [(False, 1200), (True, 1200), (False, 390)])
def test_no_sideways_scrolling(session, hostile_page, dark, width):
    look(session, dark=dark, width=width)
    visit(session, hostile_page.as_uri())
    inner, scroll, colour = session.execute_script(
        "return [innerWidth, document.documentElement.scrollWidth, getComputedStyle(document.body).backgroundColor]"
    )
    look(session)
    assert scroll <= inner
    assert (sum(map(int, colour[4:-1].split(", "))) < 150) == dark


def test_keys_and_filters(session, tmp_path):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    page = report(make_run(tmp_path / "run"), problems=12)
    visit(session, page.as_uri())
    focused = "return [...document.querySelectorAll('.problem')].indexOf(document.activeElement)"
    places = []
    for key in "jjk":
        ActionChains(session).send_keys(key).perform()  # to what has the focus, as a reader's keys go
        places.append(session.execute_script(focused))
    assert places == [0, 1, 0]
    for button in session.find_elements(By.CSS_SELECTOR, ".filters button"):
        button.send_keys(Keys.ENTER)  # reached by Tab, pressed by key
        assert button.get_attribute("aria-pressed") == "true"
        shown = session.execute_script("return document.querySelectorAll('.problem:not([hidden])').length")
        assert session.find_element(By.CSS_SELECTOR, ".filters output").text == f"{shown} of 12"


def test_five_hundred_problems(session, tmp_path):
    """With images of noise, which no format makes small, and 16 answers per problem."""
    run = make_run(tmp_path / "run", problems=500, samples=16, ks=(1,), preference_problems=200, optional=False)
    noise = run / "noise.png"
    Image.effect_noise((640, 480), 60).convert("RGB").save(noise)
    for path in (run / "world" / "images").iterdir():
        path.write_bytes(noise.read_bytes())
    page = report(run, problems=500)
    seen = visit(session, page.as_uri())
    count = session.execute_script("return document.querySelectorAll('.problem').length")
    print(f"500 problems: {page.stat().st_size / 1e6:.2f} MB, load event after {seen['seconds']} s")
    assert count == 500
    assert page.stat().st_size < 10_000_000
    assert not seen["requests"]
    assert not seen["console"]
