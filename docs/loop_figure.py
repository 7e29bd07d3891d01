"""Draw `docs/loop.svg`, the README's figure: one pair and one choice, taken from a run of the digits world.

    python docs/loop_figure.py runs/demo docs/loop.svg

The images, responses, step scores and rewards are read from the run. Two problems are picked for being easy to
read: the short pair with the widest margin in reward, and the held-out problem whose samples disagree most among
those on which the PRM's choice is right. So the figure shows how the loop works, not how often it succeeds.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from html import escape
from pathlib import Path

from recipes.report.shown.pairs import PairTexts, read_pairs
from recipes.report.shown.pictures import pictures_of
from recipes.stage.groups import read_groups
from rewards.steps import split_into
from rewards.types import Problem, Rollout, RolloutGroup, Step, Verdict
from rewards.verifying.answers import canonical_answer

WIDTH, HEIGHT = 1200, 560
MOST_STEPS = 8  # of a response that is drawn
LINE = 23  # pixels from one step to the next
INK, MUTED, PAPER, RULE = "#1f2430", "#667085", "#ffffff", "#d0d5dd"
GOOD, BAD, ACCENT = "#0f7b4f", "#b42318", "#3f51b5"
STYLE = f"""
  text {{ font-family: ui-sans-serif, system-ui, 'Segoe UI', 'Helvetica Neue', Arial, sans-serif; fill: {INK}; }}
  .title {{ font-size: 16px; font-weight: 650; }}
  .body {{ font-size: 14px; }}
  .small {{ font-size: 12.5px; fill: {MUTED}; }}
  .mono {{ font-family: ui-monospace, 'SF Mono', Menlo, Consolas, monospace; font-size: 13px; }}
"""


def figure(run: Path) -> str:
    """The SVG of one finished run."""
    group, chosen, rejected = _widest_pair(read_groups(run / "preference" / "scored"), read_pairs(run))
    test = _most_divided(read_groups(run / "test" / "mpo" / "scored"))
    parts = [
        f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="14" fill="{PAPER}" stroke="{RULE}"/>',
        *_problem(group.problem, x=24, y=24),
        *_response(chosen, x=330, y=24, title="chosen", colour=GOOD),
        *_response(rejected, x=632, y=24, title="rejected", colour=BAD),
        *_training(x=934, y=24),
        *_choice(test, x=24, y=322),
        *_arrow(300, 158, 322),
        *_arrow(904, 158, 926),
    ]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
    return "\n".join([head, f"<style>{STYLE}</style>", *parts, "</svg>\n"])


def _widest_pair(
    groups: Iterable[RolloutGroup], pairs: dict[str, list[PairTexts]]
) -> tuple[RolloutGroup, Rollout, Rollout]:
    """The pair of two short, finished responses whose rewards differ most."""
    found: list[tuple[RolloutGroup, Rollout, Rollout]] = []
    for group in groups:
        by_text = {rollout.completion.text: rollout for rollout in group.rollouts if _drawable(rollout)}
        for pair in pairs.get(group.problem.id, []):
            if pair.chosen in by_text and pair.rejected in by_text:
                found.append((group, by_text[pair.chosen], by_text[pair.rejected]))
    if not found:
        raise SystemExit(f"no pair of the run has two scored responses of at most {MOST_STEPS} steps")
    return max(found, key=lambda pair: (pair[1].reward or 0) - (pair[2].reward or 0))


def _most_divided(groups: Iterable[RolloutGroup]) -> RolloutGroup:
    """Of the problems on which the PRM's choice is right, the one with the most different answers."""
    right = [group for group in groups if _best_of(group).verdict is Verdict.CORRECT]
    if not right:
        raise SystemExit("the PRM's choice is right on no held-out problem of the run")
    return max(right, key=lambda group: len({_answer_of(rollout) for rollout in group.rollouts}))


def _drawable(rollout: Rollout) -> bool:
    """Scored, short enough, and with a glyph for every character: an unprintable step shows nothing."""
    readable = all(
        step.text.isprintable() and "\N{REPLACEMENT CHARACTER}" not in step.text for step in _steps_of(rollout)
    )
    return readable and rollout.reward is not None and 0 < len(_steps_of(rollout)) <= MOST_STEPS


def _best_of(group: RolloutGroup) -> Rollout:
    return max(group.rollouts, key=lambda rollout: -1.0 if rollout.reward is None else rollout.reward)


def _answer_of(rollout: Rollout) -> str:
    return canonical_answer(rollout.completion.text) or "none"


def _steps_of(rollout: Rollout) -> tuple[Step, ...]:
    scores = rollout.step_scores
    return tuple(split_into(rollout.completion.text, len(scores.values))) if scores else ()


def _problem(asked: Problem, *, x: int, y: int) -> list[str]:
    return [
        _text(x, y + 16, "1. One problem, 8 responses", "title"),
        _text(x, y + 38, "sampled from the policy itself", "small"),
        _image_of(asked, x=x, y=y + 56, width=264, height=120),
        *(_text(x, y + 204 + 19 * i, line, "body") for i, line in enumerate(_wrapped(asked.question, 38))),
        _text(x, y + 248, f"reference answer: {asked.answer}", "small"),
    ]


def _response(rollout: Rollout, *, x: int, y: int, title: str, colour: str) -> list[str]:
    """One side of the pair: its steps, each on the colour of its score."""
    mark = "✓ verified right" if rollout.verdict is Verdict.CORRECT else "✗ verified wrong"
    head = {"chosen": "2. The PRM scores every step", "rejected": "3. Two of them become a pair"}[title]
    scores = rollout.step_scores.values if rollout.step_scores else ()
    parts = [
        _text(x, y + 16, head, "title"),
        f'<text x="{x}" y="{y + 38}" class="small"><tspan fill="{colour}" font-weight="650">{title}</tspan> '
        f"{mark} · reward {rollout.reward:.2f}</text>",
    ]
    for i, (step, score) in enumerate(zip(_steps_of(rollout), scores, strict=True)):
        top = y + 56 + LINE * i
        parts += [
            f'<rect x="{x}" y="{top}" width="264" height="{LINE - 2}" rx="4" fill="{_shade(score)}"/>',
            _text(x + 8, top + 15, _clipped(step.text, 29), "mono"),
            f'<text x="{x + 256}" y="{top + 15}" class="mono" text-anchor="end">{score:.2f}</text>',
        ]
    return parts


def _training(*, x: int, y: int) -> list[str]:
    lines = [
        ("L_p", "chosen above rejected (DPO)"),
        ("L_q", "each side by itself (BCO, δ)"),
        ("L_g", "the chosen text (LM loss)"),
    ]
    parts = [
        _text(x, y + 16, "4. MPO trains the policy", "title"),
        _text(x, y + 38, "which then samples again", "small"),
        f'<rect x="{x}" y="{y + 56}" width="242" height="40" rx="8" fill="none" stroke="{ACCENT}" stroke-width="1.5"/>',
        _text(x + 14, y + 81, "L = 0.8·L_p + 0.2·L_q + L_g", "mono"),
    ]
    for i, (name, meaning) in enumerate(lines):
        parts += [_text(x, y + 128 + 24 * i, name, "mono"), _text(x + 36, y + 128 + 24 * i, meaning, "body")]
    return parts


def _choice(group: RolloutGroup, *, x: int, y: int) -> list[str]:
    """The held-out problem: one bar per sample, as high as its reward; the highest is the answer."""
    picked = _best_of(group)
    answers = [_answer_of(rollout) for rollout in group.rollouts]
    parts = [
        f'<line x1="{x}" y1="{y - 18}" x2="{WIDTH - 24}" y2="{y - 18}" stroke="{RULE}"/>',
        _text(x, y + 16, "5. At test time the same PRM picks the best of N", "title"),
        _text(x, y + 38, f"a held-out problem, {len(answers)} responses of the policy after MPO", "small"),
        _image_of(group.problem, x=x, y=y + 56, width=264, height=100),
        *(_text(x, y + 178 + 19 * i, line, "body") for i, line in enumerate(_wrapped(group.problem.question, 38))),
    ]
    gap = 846 // len(answers)
    for i, (rollout, answer) in enumerate(zip(group.rollouts, answers, strict=True)):
        reward = rollout.reward or 0.0
        left, height, base = 330 + gap * i, max(2, round(92 * reward)), y + 158
        right = rollout.verdict is Verdict.CORRECT
        colour, width = (GOOD if right else BAD), min(64, gap - 16)
        middle = left + width // 2
        parts.append(
            f'<rect x="{left}" y="{base - height}" width="{width}" height="{height}" rx="4" fill="{_shade(reward)}"/>'
        )
        if rollout is picked:
            parts.append(
                f'<rect x="{left - 6}" y="{y + 44}" width="{width + 12}" height="166" rx="8" fill="none" '
                f'stroke="{ACCENT}" stroke-width="2"/>'
            )
        parts += [
            f'<text x="{middle}" y="{base - height - 6}" class="small" text-anchor="middle">{reward:.2f}</text>',
            f'<text x="{middle}" y="{base + 20}" class="mono" text-anchor="middle">'
            f"{escape(_clipped(answer, 8))}</text>",
            f'<text x="{middle}" y="{base + 40}" class="body" text-anchor="middle" style="fill: {colour}">'
            f"{'✓' if right else '✗'}</text>",
        ]
    return parts


def _image_of(asked: Problem, *, x: int, y: int, width: int, height: int) -> str:
    """The problem's first image, as large as the box allows, with sharp pixels."""
    pictures, _ = pictures_of(asked)
    if not pictures:
        raise SystemExit(f"problem {asked.id!r} has no readable image")
    return (
        f'<image x="{x}" y="{y}" width="{width}" height="{height}" preserveAspectRatio="xMinYMid meet" '
        f'style="image-rendering: pixelated" href="{pictures[0].uri}"/>'
    )


def _arrow(x: int, y: int, to: int) -> list[str]:
    return [
        f'<line x1="{x}" y1="{y}" x2="{to - 6}" y2="{y}" stroke="{MUTED}" stroke-width="2"/>',
        f'<path d="M{to - 8},{y - 5} L{to},{y} L{to - 8},{y + 5} Z" fill="{MUTED}"/>',
    ]


def _text(x: int, y: int, content: str, kind: str) -> str:
    return f'<text x="{x}" y="{y}" class="{kind}">{escape(content)}</text>'


def _shade(score: float) -> str:
    """From red (0) over pale yellow (0.5) to green (1), light enough for dark text."""
    low, middle, high = (246, 190, 184), (253, 243, 208), (176, 226, 196)
    start, end, share = (low, middle, score * 2) if score < 0.5 else (middle, high, score * 2 - 1)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(start, end, strict=True))


def _clipped(content: str, most: int) -> str:
    line = " ".join(content.split())
    return line if len(line) <= most else line[: most - 1] + "…"


def _wrapped(content: str, most: int) -> list[str]:
    lines = [""]
    for word in content.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > most:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines[:2]


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(figure(Path(sys.argv[1])), encoding="utf-8")
