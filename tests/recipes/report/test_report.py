import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser

import pytest
from PIL import Image

from mpo.multimodal.errors import ConfigError, StageError
from mpo.multimodal.images import load_image
from mpo.multimodal.text import printable
from recipes.config import ReportConfig
from recipes.report import page as report_module
from recipes.report.page import report, report_stage
from recipes.report.shown.charts import calibration_charts, pair_charts
from recipes.report.shown.pairs import first_difference, read_pairs
from recipes.report.shown.pictures import picture_of, pictures_of
from recipes.report.shown.problems import problem_views
from recipes.report.shown.responses import StepView, _steps
from recipes.report.summary import summarise
from recipes.stage.groups import read_groups, write_groups
from rewards.types import Completion, MonteCarloCount, Problem, Rollout, StepScores, Unseen
from tests.recipes.run_folders import C, W, make_run, unscored_without_picture, without_picture

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
    kept = json.loads(json.dumps(summary))  # and so does the summary that a run has written down
    assert report(run, problems=12, summary=kept).read_text() == page.html


def test_pairs_stand_side_by_side_with_their_reason(tmp_path):
    run = make_run(tmp_path / "run")
    pairs = read_pairs(run)
    views = problem_views(run, 12)["pairs"]
    assert all(len(view.pairs) == len(pairs[view.identifier]) > 0 for view in views)
    for view in views:
        for pair, texts in zip(view.pairs, pairs[view.identifier], strict=True):
            assert (pair.chosen.verdict, pair.rejected.mark[0] in "✗∅") == ("right", True)
            margin = f"{pair.chosen.reward - pair.rejected.reward:+.2f}".replace("-", "−")
            why = f"Rule correctness and prm: ✓ right over {pair.rejected.mark}, reward margin {margin}"
            counted = [text for step in pair.rejected.steps for text, inside in step.parts if inside]
            if texts.rejected_span is not None:  # a response without an answer counts whole
                start, end = texts.rejected_span
                why += f"; {end - start} of {len(texts.rejected)} rejected characters carried the gradient"
                assert counted == [texts.rejected[start:end]]
            assert pair.why == why
            assert bool(counted) == (texts.rejected_span is not None)
            assert not any(step.parts for step in pair.chosen.steps)
            for side, text in ((pair.chosen, texts.chosen), (pair.rejected, texts.rejected)):
                assert "\n\n".join(step.text for step in side.steps) == text
                marked = [index for index, step in enumerate(side.steps) if step.differs]
                assert marked in ([first_difference(texts.chosen, texts.rejected)], [])
            assert any(step.differs for step in (*pair.chosen.steps, *pair.rejected.steps))
        listed = [*view.shown, *view.folded]
        assert not {id(r) for r in listed} & {id(side) for p in view.pairs for side in (p.chosen, p.rejected)}


def test_image_blind_picks_are_marked(tmp_path):
    """A pick that scores as well with other images is marked, and a pick that falls is not."""
    run = make_run(tmp_path / "run")
    folder = run / "test" / "mpo" / "scored"
    groups = [without_picture(g, 0.0 if i % 2 else 0.3) for i, g in enumerate(read_groups(folder))]
    write_groups(folder, groups)
    blind = {group.problem.id for group in groups[1::2]}
    views = problem_views(run, 36)["test"]
    assert {view.identifier for view in views if view.blind} == blind
    for response in (r for view in views for r in view.shown if r.reward is not None):
        fall = response.reward - response.swapped
        assert fall == pytest.approx(0.3) or fall == 0.0
        assert response.blank == response.swapped
    html = report(run, problems=36).read_text()
    assert html.count('data-blind="yes"') == html.count('<span class="flag">Image-blind</span>') == len(blind)
    assert "with another image</span>" in html


def test_steps_say_how_much_they_depend_on_the_picture(tmp_path):
    """0.9 falls to 0.4 and 0.2, by 0.5 at least; the second moves up by 0.3; the third not at all."""
    rollout = Rollout(
        Completion("a\n\nb\n\nc"),
        W,
        StepScores((0.9, 0.2, 0.1)),
        0.4,
        blank=Unseen(StepScores((0.4, 0.2, 0.1)), 0.2333),
        swapped=Unseen(StepScores((0.2, 0.5, 0.1)), 0.2667),
    )
    steps = _steps(rollout, None)
    assert [step.dependence for step in steps] == pytest.approx([0.5, -0.3, 0.0])

    run = make_run(tmp_path / "run")
    html = " ".join(report(run, problems=12).read_text().split())
    assert re.search(r"<small>image [+−]0\.\d\d</small>", html)
    assert "<h3>Visual dependence</h3>" in html
    for arm in ("policy", "mpo"):
        folder = run / "test" / arm / "scored"
        write_groups(folder, [unscored_without_picture(group) for group in read_groups(folder)])
    html = report(run, problems=12).read_text()
    for words in ("<small>picture", "Visual dependence", "Image-blind"):
        assert words not in html


def test_warnings_and_yields_are_shown(tmp_path):
    run = make_run(tmp_path / "run")
    path = run / "pairs" / "report.json"
    content = json.loads(path.read_text())
    content |= {
        "warnings": ["<b>picking the longest</b>"],
        "yields": {"prm_margin": {"pairs": 7, "problems_with_pairs": 3}},
    }
    path.write_text(json.dumps(content))
    path = run / "test" / "mpo" / "best_of_n" / "results.json"
    trust = [{"name": "image_blind", "message": "as good without <img>"}, "plain words"]
    path.write_text(json.dumps({**json.loads(path.read_text()), "warnings": trust}))
    html = " ".join(report(run, problems=0).read_text().split())
    assert "run, pairs:</span> &lt;b&gt;picking the longest&lt;/b&gt;" in html
    assert "run, best of k, MPO:</span> as good without &lt;img&gt;" in html
    assert "plain words" in html
    assert '<th scope="row">prm margin</th><td>7<span class="range">3 problems</span></td>' in html
    other = make_run(tmp_path / "other", problems=40, samples=2, ks=(1,), optional=False)
    assert "Before you trust" not in report(other, problems=0).read_text()
    shutil.copytree(other / "test" / "mpo" / "greedy", other / "test" / "mpo" / "swapped", dirs_exist_ok=True)
    html = report(other, problems=0).read_text()  # now the policy answers as well with another image
    assert "MPO:</span> that the policy looks at the image is not shown" in html


def test_calibration_and_differences_are_drawn_from_the_run(tmp_path):
    run = make_run(tmp_path / "run", problems=40)
    (_, (_, found)) = calibration_charts([run])
    scored = [json.loads(line) for line in (run / "test" / "mpo" / "scored" / "groups.jsonl").read_text().splitlines()]
    rollouts = [rollout for group in scored for rollout in group["rollouts"]]
    read = [rollout for rollout in rollouts if rollout["verdict"] in ("correct", "wrong")]
    assert sum(one.count for one in found.bins) == len(read) < len(rollouts)  # what could not be read is in no bin
    right = sum(one.count * one.right for one in found.bins)
    assert right == pytest.approx(sum(rollout["verdict"] == "correct" for rollout in rollouts))
    assert [chart.caption for chart in pair_charts([run])] == [
        "Length: chosen minus rejected",
        "Reward: chosen minus rejected",
    ]


def test_plots_are_files_too(tmp_path):
    run = make_run(tmp_path / "run")
    html = report(run, problems=0).read_text()
    found = sorted((run / "plots").iterdir())
    assert len(found) == 2 * html.count("<svg")
    for path in found:
        if path.suffix == ".svg":
            text = path.read_text()
            assert "var(--" not in text
            assert not re.search(r"#0101\d\d", text)
        else:
            assert load_image(path).size[0] > 1000
    before = {path.name: path.read_bytes() for path in found if path.suffix == ".svg"}
    report(run, problems=0)
    assert {name: (run / "plots" / name).read_bytes() for name in before} == before


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
    for folder in ("pairs", "prm_labelled", "mpo", "test/mpo", "test/policy/best_of_n"):
        shutil.rmtree(run / folder)
    (run / "world" / "images" / "test-0.png").write_bytes(b"no image")
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
    assert {kind: len(found) for kind, found in views.items()} == {"changes": 3, "test": 4, "pairs": 3, "labels": 2}
    mixed = [len({r.verdict == "right" for r in [*view.shown, *view.folded]}) == 2 for view in views["test"]]
    assert sum(mixed) >= 3
    assert any(view.disagrees for view in views["test"])
    for view in views["test"]:
        rewards = [r.reward for r in view.shown]
        assert rewards == sorted(rewards, reverse=True)
        assert view.top == view.shown[0].verdict


def test_the_part_that_carried_the_gradient_is_marked():
    """Borders inside steps, over several steps, and in the whitespace between them."""
    rollout = Rollout(Completion("ab\n\n cd \n\nef"), W)
    marks = {
        (0, 2): ["<ab>", "cd", "ef"],
        (1, 6): ["a<b>", "<c>d", "ef"],
        (2, 5): ["ab", "cd", "ef"],
        (5, 12): ["ab", "<cd>", "<ef>"],
    }
    for span, expected in marks.items():
        steps = _steps(rollout, None, span)
        shown = ["".join(f"<{text}>" if inside else text for text, inside in step.parts) for step in steps]
        assert shown == expected, span


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
