"""The page in a real browser: hostile text does nothing, keyboard and phone work, 500 problems load.

Skipped where no Chromium is installed, as in CI; `apt-get install chromium chromium-driver` makes it run.
"""

import json
import re
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
    assert {"script", "style", "svg", "iframe", "form", "input", "object", "link"}.isdisjoint(elements)
    links = session.execute_script(
        "return [...document.querySelectorAll('.problem a')].map(e => [e.className, e.getAttribute('href')])"
    )
    assert len({href for _, href in links}) == count  # the page's own, one address a problem
    assert all(kind == "permalink" and re.fullmatch(r"#problem-[A-Za-z0-9_.-]+", href) for kind, href in links)
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
    shown = "return [...document.querySelectorAll('.problem:not([hidden])')].map(e => ({...e.dataset}))"
    buttons = session.find_elements(By.CSS_SELECTOR, ".filters button")
    for button in buttons:
        button.send_keys(Keys.ENTER)  # reached by Tab, pressed by key
        assert button.get_attribute("aria-pressed") == "true"
        count = len(session.execute_script(shown))
        assert session.find_element(By.CSS_SELECTOR, ".filters output").text == f"{count} of 12"
    by_name = {button.text: button for button in buttons}
    by_name["All"].send_keys(Keys.ENTER)
    by_name["Test problems"].send_keys(Keys.ENTER)
    by_name["Best response right"].send_keys(Keys.ENTER)
    found = session.execute_script(shown)
    assert found
    assert {(one["list"], one["top"]) for one in found} == {("test", "right")}  # both hold
    by_name["Best response wrong"].send_keys(Keys.ENTER)
    assert {one["list"] for one in session.execute_script(shown)} == {"test"}  # right or wrong, and a test problem


def test_search_addresses_and_json(session, tmp_path):
    """A word of the question finds it, an address shows its problem whatever is filtered, JSON holds what is shown."""
    from selenium.webdriver.common.by import By

    page = report(make_run(tmp_path / "run"), problems=12)
    visit(session, page.as_uri())
    field = session.find_element(By.CSS_SELECTOR, ".filters input")
    name = session.execute_script("return document.querySelector('.problem .id span').textContent")
    field.send_keys(f"sum {name}")  # keys j and k are letters here
    identifiers = "return [...document.querySelectorAll('.problem:not([hidden]) .id span')].map(e => e.textContent)"
    assert set(session.execute_script(identifiers)) == {name}
    other = session.execute_script("return document.querySelector('.problem[hidden]').id")
    session.execute_script("location.hash = arguments[0]", other)
    session.execute_async_script("setTimeout(arguments[0], 50)")
    assert session.execute_script("return !document.getElementById(arguments[0]).hidden", other)
    session.execute_script("window.copied = null; navigator.clipboard.writeText = async (text) => { copied = text; }")
    session.execute_script("document.querySelector('#' + arguments[0] + ' .copy').click()", other)
    session.execute_async_script("setTimeout(arguments[0], 50)")
    copied = json.loads(session.execute_script("return copied"))
    assert other.endswith(copied["id"])
    assert copied["question"] == "What is the sum?"
    assert copied["responses"][0]["steps"][0]["text"].startswith("First is")


def test_without_javascript_the_page_reads(session, tmp_path):
    """No control that would do nothing, and every problem."""
    page = report(make_run(tmp_path / "run"), problems=12)
    session.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    visit_url = page.as_uri()
    try:
        session.get(visit_url)
        session.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
        visible = "return [...document.querySelectorAll(arguments[0])].filter(e => e.offsetParent).length"
        assert session.execute_script(visible, ".problem") == 12
        assert session.execute_script(visible, "button, input") == 0
    finally:
        session.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


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
