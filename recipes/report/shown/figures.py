"""Curves as inline SVG whose colours are the page's CSS variables, so that one figure serves light, dark and print;
and as SVG and PNG files.

Drawn with matplotlib without pyplot: no global state, the same numbers give the same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from recipes.stage.numbers import columns, percent

Palette = Mapping[str, str]  # name of a colour → what matplotlib writes

SERIES = {
    "oracle": ("oracle", ":"),
    "prm": ("PRM best of k", "-"),
    "lower_bound": ("PRM lower bound", "--"),
    "vote_prod": ("vote by product", "-"),
    "weighted_vote": ("vote by reward", "-"),
    "majority": ("majority", "--"),
    "orm": ("last step (ORM)", "-."),
    "random": ("random", ":"),
}
LINES = ("prm", "majority", "weighted_vote", "orm")
# The colours of a plot in a file: the page's light scheme.
PAPER: Palette = {
    **{"ink": "#1d2127", "muted": "#646c77", "rule": "#e4e5e8", "oracle": "#7b828c", "prm": "#1f5fae"},
    **{
        "lower_bound": "#5f4bb6",
        "vote_prod": "#1d8a6b",
        "weighted_vote": "#2f9fc4",
        "majority": "#c96a00",
        "orm": "#a0568f",
        "random": "#9aa1ab",
    },
}
# Stand-ins that become the page's variables, so that a figure follows the reader's colour scheme.
PAGE: Palette = {name: f"#0101{index:02x}" for index, name in enumerate(PAPER, start=1)}
_METADATA: dict[str, Any] = {"Date": None, "Creator": None, "Format": None, "Type": None}

FEW_POINTS = 12  # of a line; each is marked
LOSSES = {"loss/preference": "preference", "loss/quality": "quality", "loss/generation": "generation"}
REWARDS = {
    "rewards/margins": "margin",
    "rewards/chosen": "chosen",
    "rewards/rejected": "rejected",
    "bco/delta": "shift δ",
}
ACCURACIES = {"rewards/accuracies": "chosen first", "step_accuracy": "steps"}


@dataclass(frozen=True)
class Chart:
    """A figure that can be drawn in the page's colours or in those of a file.

    Attributes:
        caption: the text above it.
        title: what it shows, for readers who cannot see it.
        draw: palette → the figure.
    """

    caption: str
    title: str
    draw: Callable[[Palette], Figure]

    def inline(self) -> Markup:
        """The figure as an `<svg>` that scales, reads its colours from the page and has a name."""
        return _inline(self.draw(PAGE), self.title)

    def write(self, folder: Path) -> list[Path]:
        """Write the figure as SVG and as PNG, named after its title; the same figure gives the same SVG bytes."""
        folder.mkdir(parents=True, exist_ok=True)
        stem = re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")[:80] or "plot"
        figure = self.draw(PAPER)
        figure.patch.set_facecolor("white")
        paths = [folder / f"{stem}.{kind}" for kind in ("svg", "png")]
        with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": self.title}):
            figure.savefig(paths[0], metadata=_METADATA)
        figure.savefig(paths[1], dpi=200)
        return paths


def best_at_k_figure(rows: Sequence[Mapping[str, Any]], colours: Palette, *, low: float, high: float) -> Figure:
    """Accuracy against k, one line per selector, 95 % bands, labels at the lines' ends.

    Args:
        rows: rows of `summary["best_of_n"]` of one arm.
        colours: `PAGE` or `PAPER`.
        low, high: the accuracy axis, so that the figures of several arms compare.
    """
    figure = Figure(figsize=(5.6, 3.9))
    axes = figure.subplots(gridspec_kw={"left": 0.085, "right": 0.79, "bottom": 0.13, "top": 0.97})
    ends: list[tuple[float, str, str]] = []
    ks = sorted({row["k"] for row in rows})
    marker = "o" if columns(ks) == ks else None  # many of them would hide the line
    for name, (text, style) in SERIES.items():
        colour = colours[name]
        points = sorted((row for row in rows if row["selector"] == name), key=lambda row: row["k"])
        if not points:
            continue
        means = [point["mean"] for point in points]
        axes.fill_between(
            ks, [p["low"] for p in points], [p["high"] for p in points], color=colour, alpha=0.10, linewidth=0
        )
        axes.plot(
            ks, means, style, color=colour, linewidth=2.4 if name == "prm" else 1.7, marker=marker, markersize=3.5
        )
        ends.append((means[-1], text, colour))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(columns(ks)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda k, _: f"{k:g}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{percent(share, digits=0)} %"))
    axes.set_ylim(low, high)
    axes.set_xlabel("responses k", color=colours["muted"])
    label_ends(axes, ends, x=ks[-1], gap=(high - low) * 0.062)
    plain(axes, colours)
    return figure


def training_charts(history: Sequence[Mapping[str, Any]], *, name: str) -> list[Chart]:
    """Loss parts (or the loss alone), implicit rewards and accuracy, a chart each; none if too little was logged."""
    losses = LOSSES if any("loss/preference" in row for row in history) else {"loss": "loss"}
    panels = {"loss": losses, "implicit reward": REWARDS, "accuracy in training": ACCURACIES}
    columns = {panel: _columns(history, names) for panel, names in panels.items()}
    return [
        Chart(f"{name}: {panel}", f"Training of {name}, {panel}", partial(_training_figure, found))
        for panel, found in columns.items()
        if found
    ]


def _training_figure(columns: Sequence[tuple[str, list[tuple[int, float]]]], colours: Palette) -> Figure:
    figure = Figure(figsize=(5.6, 3.2))
    axes = figure.subplots(gridspec_kw={"left": 0.085, "right": 0.79, "bottom": 0.15, "top": 0.95})
    ends: list[tuple[float, str, str]] = []
    for line, (text, points) in zip(LINES, columns, strict=False):
        marker = "o" if len(points) <= FEW_POINTS else None
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, color=colours[line], linewidth=1.2 if marker else 1.8, marker=marker, markersize=4)
        ends.append((points[-1][1], text, colours[line]))
    low, high = axes.get_ylim()
    label_ends(axes, ends, x=max(points[-1][0] for _, points in columns), gap=(high - low) * 0.075)
    axes.set_xlabel("optimizer step", color=colours["muted"])
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    plain(axes, colours)
    return figure


def _columns(
    history: Sequence[Mapping[str, Any]], names: Mapping[str, str]
) -> list[tuple[str, list[tuple[int, float]]]]:
    columns = []
    for name, text in names.items():
        points = [(row["step"], row[name]) for row in history if name in row and "step" in row]
        if len(points) > 1:
            columns.append((text, points))
    return columns


def label_ends(axes: Axes, ends: Sequence[tuple[float, str, str]], *, x: float, gap: float) -> None:
    """Write each line's name at its end, moved apart so that no two overlap."""
    for y, (_, text, colour) in zip(
        _apart([v for v, _, _ in sorted(ends)], gap, (axes.get_ylim()[0] + gap / 2, axes.get_ylim()[1])),
        sorted(ends),
        strict=True,
    ):
        axes.annotate(
            text,
            (x, y),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=colour,
            annotation_clip=False,
        )


def _apart(values: Sequence[float], gap: float, bounds: tuple[float, float]) -> list[float]:
    """Rising values moved as little as needed: neighbours closer than `gap` become evenly spaced around their mean.

    Example:
        >>> _apart([0.0, 1.0, 1.0], 0.5, (0.0, 2.0))
        [0.0, 0.75, 1.25]
        >>> _apart([0.0, 1.0, 1.0], 0.5, (0.0, 1.0))
        [0.0, 0.5, 1.0]
    """
    clusters: list[list[float]] = []
    for value in values:
        clusters.append([value])
        while len(clusters) > 1 and _spread(clusters[-1], gap)[0] - _spread(clusters[-2], gap)[-1] < gap:
            clusters[-2:] = [[*clusters[-2], *clusters[-1]]]
    placed = [y for cluster in clusters for y in _spread(cluster, gap)]
    floors = [bounds[0] + gap * index for index in range(len(placed))]
    ceilings = [bounds[1] - gap * index for index in range(len(placed))][::-1]
    return [min(max(y, floor), ceiling) for y, floor, ceiling in zip(placed, floors, ceilings, strict=True)]


def _spread(cluster: Sequence[float], gap: float) -> list[float]:
    start = sum(cluster) / len(cluster) - gap * (len(cluster) - 1) / 2
    return [start + gap * index for index in range(len(cluster))]


def plain(axes: Axes, colours: Palette) -> None:
    """A frame that stays in the background: a base line, and faint horizontal rules."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(colours["rule"])
    axes.tick_params(colors=colours["muted"], labelsize=9, length=0)
    axes.grid(axis="y", color=colours["rule"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.patch.set_visible(False)


def _inline(figure: Figure, title: str) -> Markup:
    figure.patch.set_visible(False)
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure.savefig(
            buffer,
            format="svg",
            metadata=_METADATA,
        )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    for name, colour in PAGE.items():
        svg = svg.replace(colour, f"var(--{name.replace('_', '-')})")
    prefix = re.sub(r"\W+", "-", title)
    svg = re.sub(r'id="', f'id="{prefix}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\1{prefix}-", svg)
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1))
