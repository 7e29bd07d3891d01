"""What lies behind the averages: how pairs differ in length and reward, and whether step scores are calibrated."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from recipes.report.shown.figures import Chart, Palette, plain
from recipes.report.shown.pairs import read_pairs
from recipes.report.summary import BASELINE, TRAINED, label
from recipes.stage.folder import MANIFEST
from recipes.stage.groups import read_groups
from recipes.stage.numbers import change, percent
from rewards.prm.evaluating.metrics import Calibration, calibration
from rewards.types import Verdict

HISTOGRAM_BINS = 31


def pair_charts(runs: Sequence[Path]) -> list[Chart]:
    """Chosen minus rejected over the pairs of all seeds: characters, and the PRM's reward where both have one."""
    lengths: list[float] = []
    margins: list[float] = []
    for run in runs:
        scored = run / "preference" / "scored"
        rewards = {}
        if (scored / MANIFEST).exists():
            rewards = {(g.problem.id, r.completion.text): r.reward for g in read_groups(scored) for r in g.rollouts}
        for pair in (pair for pairs in read_pairs(run).values() for pair in pairs):
            lengths.append(len(pair.chosen) - len(pair.rejected))
            sides = [rewards.get((pair.problem_id, text)) for text in (pair.chosen, pair.rejected)]
            if sides[0] is not None and sides[1] is not None:
                margins.append(sides[0] - sides[1])
    drawn = [
        ("Length: chosen minus rejected", "characters", lengths),
        ("Reward: chosen minus rejected", "PRM", margins),
    ]
    return [
        Chart(caption, f"Pairs, {caption.lower()}, {unit}", partial(_histogram, values, unit))
        for caption, unit, values in drawn
        if values
    ]


def calibration_charts(runs: Sequence[Path]) -> list[tuple[Chart, Calibration]]:
    """The last step's score against the share of right answers on the test problems, over all seeds, one chart per arm.

    The last step's score estimates P(the answer is right) itself. Answers that are neither right nor wrong are left
    out.
    """
    charts = []
    for arm in (BASELINE, TRAINED):
        folders = [run / "test" / arm / "scored" for run in runs]
        rollouts = [r for f in folders if (f / MANIFEST).exists() for g in read_groups(f) for r in g.rollouts]
        scored = [
            (r.step_scores.values[-1], r.verdict is Verdict.CORRECT)
            for r in rollouts
            if r.step_scores and r.verdict and r.verdict.is_decided
        ]
        if scored:
            found = calibration([score for score, _ in scored], [right for _, right in scored])
            title = f"Calibration of the last step’s score, {label(arm)}"
            charts.append((Chart(label(arm), title, partial(_reliability, found)), found))
    return charts


def _histogram(values: Sequence[float], unit: str, colours: Palette) -> Figure:
    figure = Figure(figsize=(5.6, 2.9))
    axes = figure.subplots(gridspec_kw={"left": 0.085, "right": 0.97, "bottom": 0.18, "top": 0.91})
    reach = float(np.quantile(np.abs(values), 0.995)) or 1.0
    edges = np.linspace(-reach, reach, HISTOGRAM_BINS + 1)
    counts, _ = np.histogram(np.clip(values, -reach, reach), edges)  # the outermost bars hold what lies beyond
    axes.bar(edges[:-1], counts, np.diff(edges) * 0.9, align="edge", color=colours["prm"], linewidth=0)
    axes.axvline(0, color=colours["ink"], linewidth=1, linestyle="--")
    mean = float(np.mean(values))
    axes.axvline(mean, color=colours["majority"], linewidth=1.6)
    axes.annotate(
        f"mean {change(mean)}",
        (mean, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=9,
        color=colours["majority"],
    )
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_xlabel("characters" if unit == "characters" else "PRM reward", color=colours["muted"])
    plain(axes, colours)
    return figure


def _reliability(found: Calibration, colours: Palette) -> Figure:
    """Points on the diagonal are calibrated; their area shows how many responses a bin holds."""
    figure = Figure(figsize=(5.6, 3.6))
    axes = figure.subplots(gridspec_kw={"left": 0.12, "right": 0.97, "bottom": 0.15, "top": 0.95})
    axes.plot([0, 1], [0, 1], "--", color=colours["random"], linewidth=1.2)
    scores, right = [b.mean_score for b in found.bins], [b.right for b in found.bins]
    most = max(b.count for b in found.bins)
    axes.plot(scores, right, color=colours["prm"], linewidth=1.8)
    axes.scatter(scores, right, s=[20 + 160 * b.count / most for b in found.bins], color=colours["prm"], linewidth=0)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("score of the last step", color=colours["muted"])
    axes.set_ylabel("answers that are right", color=colours["muted"])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{percent(share, digits=0)} %"))
    plain(axes, colours)
    return figure
