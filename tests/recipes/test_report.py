import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser

import pytest
from PIL import Image
from run_folders import C, W, make_run

from mpo.multimodal.errors import ConfigError, StageError
from recipes import report as report_module
from recipes.config import ReportConfig
from recipes.report import report, report_stage
from recipes.report_pairs import first_difference
from recipes.report_pictures import picture_of, pictures_of
from recipes.report_problems import StepView, _steps, problem_views
from recipes.report_text import printable
from recipes.summary import summarise
from rewards.types import Completion, MonteCarloCount, Problem, Rollout, StepScores

HOSTILE = (
    "</script><script>document.title='pwned'</script>"
    "<img src=x onerror=\"document.title='pwned'\"><svg onload=alert(1)><a href='javascript:alert(1)'>x</a>"
    "\n\n{{ 7*7 }} {% raw %} <!-- ]]> &lt;b&gt; \u202e\x1b[31m\x00\x07 </style><style>*{display:none}"
    "<iframe src=//evil.example></iframe><link rel=stylesheet href=http://evil.example/x.css>"
)


class Page(HTMLParser):
    """Tags, attributes and the text of each kind of element."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.attributes, self.text, self.open = [], [], {}, []
        self.html = path.read_text(encoding="utf-8")
        self.feed(self.html)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attributes]
        self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.open:
            while self.open.pop() != tag:
                pass

    def handle_data(self, data):
        for tag in self.open[-1:]:
            self.text[tag] = self.text.get(tag, "") + data

    def values(self, name):
        return [value for _, attribute, value in self.attributes if attribute == name]


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("hostile") / "<i>run", hostile=HOSTILE, question=HOSTILE)
    return Page(report(run))


def test_model_output_stays_text(hostile_page):
    assert hostile_page.tags.count("script") == 1
    assert hostile_page.tags.count("style") == 1 + hostile_page.tags.count(
        "svg"
    )  # matplotlib puts one into each figure
    assert not {"iframe", "link", "object", "embed", "form", "base", "i-run", "input"} & set(hostile_page.tags)
    assert not [name for _, name, _ in hostile_page.attributes if name.startswith("on")]
    for name in ("src", "href", "xlink:href", "action", "srcset", "data"):
        for value in hostile_page.values(name):
            assert value.startswith(("#", "data:image/png;base64,", "data:image/jpeg;base64,")), (name, value)
    assert "document.title='pwned'" in hostile_page.html.replace("&#39;", "'")  # shown, as text
    assert "{{ 7*7 }}" in hostile_page.text["li"]
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", hostile_page.html)
    assert "url(" not in re.sub(r"url\(#[\w-]+\)", "", hostile_page.html.replace(HOSTILE, ""))


def test_policy_lets_only_this_script_run(hostile_page):
    (policy,) = [v for v in hostile_page.values("content") if "default-src" in v]
    digest = base64.b64encode(hashlib.sha256(hostile_page.text["script"].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "img-src data:" in policy
    assert "http" not in policy


def test_page_tells_the_run(tmp_path):
    run = make_run(tmp_path / "run")
    page, summary = Page(report(run, problems=12)), summarise([run])
    text = " ".join(page.html.split())
    for claim in summary["claims"]:
        assert claim["name"].replace(">", "&gt;") in text
    sampled = next(arm["sampled"]["mean"] for arm in summary["arms"] if arm["arm"] == "mpo")
    assert f"{100 * sampled:.1f}" in text
    for words in ("chosen in pair 1", "rejected in pair 1", "first difference", "PRM’s pick", "✓ right", "✗ wrong"):
        assert words in text, words
    assert re.search(r"<small>mc [0-4]/4</small>", text)
    assert page.tags.count("article") == 12
    assert page.tags.count("svg") == 9  # two arms, two calibrations, two of pairs, three training panels
    assert all(alt for alt in page.values("alt"))
    assert len(set(page.values("id"))) == len(page.values("id"))
    assert report(run, problems=12).read_text() == page.html  # the same run gives the same bytes


def test_every_step_shows_its_score(tmp_path):
    run = make_run(tmp_path / "run", problems=3)
    html = report(run, problems=40).read_text()
    for line in (run / "test" / "mpo" / "scored" / "groups.jsonl").read_text().splitlines():
        for rollout in json.loads(line)["rollouts"]:
            assert f'<span class="reward">{rollout["reward"]:.2f}</span>' in html
            for score in rollout["step_scores"]:
                assert f"<small>{score:.2f}</small>" in html


def test_evidence_folder_and_out(tmp_path):
    for seed in (0, 1):
        make_run(tmp_path / f"seed{seed}", seed=seed, problems=4, samples=2, ks=(1, 2), optional=False)
    page = report_stage(ReportConfig(tmp_path, tmp_path / "pages" / "page.html", 0))
    assert page == tmp_path / "pages" / "page.html"
    html = page.read_text()
    assert "2 seeds" in html
    assert "<article" not in html


def test_a_run_with_little(tmp_path):
    run = make_run(tmp_path / "run", problems=3, optional=False)
    for folder in ("pairs", "prm_labelled", "mpo", "test/mpo", "test/policy/best_of_n", "test/policy/scored_swapped"):
        shutil.rmtree(run / folder)
    (run / "world" / "images" / "test-0.png").write_bytes(b"no picture")
    html = report(run).read_text()
    assert "could not be read" in html
    with pytest.raises(StageError):
        report(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="problems"):
        report(run, problems=-1)


def test_page_stays_under_the_cap(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run")
    whole = report(run, problems=16).stat().st_size
    monkeypatch.setattr(report_module, "MAX_BYTES", whole - 1)
    smaller = report(run, problems=16)
    assert smaller.stat().st_size < whole
    assert 0 < smaller.read_text().count("<article") <= 8


def test_large_pictures_are_made_small(tmp_path):
    run = make_run(tmp_path / "run", problems=2)
    Image.effect_noise((2000, 1500), 80).convert("RGB").save(run / "world" / "images" / "test-0.png")
    views = [view for found in problem_views(run, 6).values() for view in found]
    assert max(picture.width for view in views for picture in view.pictures) == 384
    assert all(view.pictures and not view.missing_pictures for view in views)
    assert max(sum(len(p.uri) for p in view.pictures) for view in views) <= 12_000


def test_pictures_share_the_budget():
    noise = Image.effect_noise((900, 900), 90).convert("RGB")
    pictures, missing = pictures_of(Problem("many", "?", (noise,) * 9))
    assert (len(pictures), missing) == (6, 3)
    assert sum(len(picture.uri) for picture in pictures) <= 12_000
    (small,), _ = pictures_of(Problem("small", "?", (noise.resize((32, 16)),)))
    assert small.uri.startswith("data:image/png")
    assert (small.width, small.enlarged) == (192, True)
    assert picture_of(noise, 100) is None


def test_problems_that_show_something_come_first(tmp_path):
    run = make_run(tmp_path / "run", problems=60)
    views = problem_views(run, 12)
    assert {kind: len(found) for kind, found in views.items()} == {"test": 6, "pairs": 4, "labels": 2}
    mixed = [len({r.verdict == "right" for r in [*view.shown, *view.folded]}) == 2 for view in views["test"]]
    assert sum(mixed) >= 5
    assert any(view.disagrees for view in views["test"])
    for view in views["test"]:
        rewards = [r.reward for r in view.shown]
        assert rewards == sorted(rewards, reverse=True)
        assert view.top == view.shown[0].verdict


def test_steps_follow_the_scores():
    text = "\n\n".join("abcde")
    rollout = Rollout(Completion(text), W, StepScores((0.0, 0.44, 1.0)), 0.48)  # the PRM merged five into three
    assert [(step.text, step.score, step.bin) for step in _steps(rollout, None)] == [
        ("a\n\nb", 0.0, 0),
        ("c\n\nd", 0.44, 4),
        ("e", 1.0, 10),
    ]
    odd = Rollout(Completion(text), W, StepScores((0.5,) * 4), 0.5)  # no merge of five gives four
    assert _steps(odd, None) == [StepView(text)]
    counted = Rollout(Completion("a\n\nb"), C, mc=(MonteCarloCount(1, 4), MonteCarloCount(4, 4)))
    assert [(step.score, step.count) for step in _steps(counted, 1)] == [(0.25, "1/4"), (1.0, "4/4")]
    assert [step.differs for step in _steps(counted, 1)] == [False, True]
    stopped_early = counted.with_(label_source="mc:sequential:16")  # 1 of 4 says that there is a success, not mc = .25
    assert [(step.score, step.count) for step in _steps(stopped_early, 1)] == [(1.0, "1/4"), (1.0, "4/4")]
    assert _steps(Rollout(Completion(" \n")), None) == [StepView("(empty)")]


def testfirst_difference():
    assert first_difference("a\n\nb\n\nc", "a\n\nx\n\nc") == 1
    assert first_difference("a\n\nb", "a\n\nb\n\nc") == 2
    assert first_difference("", "a") == 0


def test_control_characters_become_visible():
    assert printable("a\x00\x1b[1m\x7f\ud800\n\tb\u202e\x9b") == "a␀␛[1m␡?\n\tb��"
