"""The page of a matrix: VisualPRM's Figure 4 (mean over benchmarks against N) and Table 2, and what is behind them.

It needs no network and no JavaScript; names are untrusted text, and everything is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from mpo.multimodal.files import write_atomic
from mpo.multimodal.text import printable
from recipes.evaluating.tables import (
    ORACLE,
    OVERALL,
    blind_table,
    caption,
    curve_table,
    difference_table,
    largest,
    layout,
    overlap_table,
    own_critics,
    response_table,
)
from recipes.report.page import PLOTS, TEMPLATES
from recipes.report.shown.figures import Chart, Palette, label_ends, plain
from recipes.stage.numbers import columns, percent, points

PAGE = "evaluation.html"
# Colours of the critics of the settings file, in their order; the rulers have their own.
COLOURS = ("prm", "orm", "vote_prod", "weighted_vote", "ink", "muted")
RULERS = {"majority": ("majority", "--"), "random": ("random", ":"), "oracle": ("oracle", ":")}


def write_page(evaluation: Mapping[str, Any], out: Path) -> Path:
    """Write the page, and its figures beside it as SVG and PNG."""
    charts = curves(evaluation)
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"printable": printable, "percent": percent, "points": points}
    text = environment.get_template("evaluation.html.j2").render(
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),  # our own file
        evaluation=evaluation,
        columns=[*(one["name"] for one in evaluation["benchmarks"]), OVERALL],
        lines=layout(evaluation),
        overall=OVERALL,
        charts=charts,
        caption=caption(evaluation),
        lede=_lede(evaluation),
        tables=_tables(evaluation),
        breakdowns=_breakdowns(evaluation),
    )
    write_atomic(out / PAGE, text)
    for chart in charts:
        chart.write(out / PLOTS)
    return out / PAGE


def curves(evaluation: Mapping[str, Any]) -> list[Chart]:
    """A chart per policy: the mean over benchmarks against N, one line per critic, on one scale."""
    rows = [one for one in evaluation["overall"] if one["critic"] in _drawn(evaluation)]
    low = max(0.0, min(one["official"]["low"] for one in rows) - 0.02)
    high = min(1.0, max(one["official"]["high"] for one in rows) + 0.02)
    return [
        Chart(
            policy,
            f"Mean over benchmarks against the number of responses, {printable(policy)}",
            partial(_curve, [one for one in rows if one["policy"] == policy], _drawn(evaluation), low=low, high=high),
        )
        for policy in evaluation["policies"]
        if len({one["n"] for one in rows if one["policy"] == policy}) > 1
    ]


def _drawn(evaluation: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Critic → colour and style of its line."""
    own = [one for one in evaluation["critics"] if not one["ruler"]]
    free = iter([*COLOURS] * (1 + len(own) // len(COLOURS)))
    found = {one["name"]: RULERS[one["selector"]] if one["selector"] in RULERS else (next(free), "-") for one in own}
    rulers = {
        one["name"]: RULERS[one["selector"]]
        for one in evaluation["critics"]
        if one["ruler"] and one["selector"] in RULERS
    }
    return found | rulers


def _curve(
    rows: Sequence[Mapping[str, Any]],
    drawn: Mapping[str, tuple[str, str]],
    colours: Palette,
    *,
    low: float,
    high: float,
) -> Figure:
    figure = Figure(figsize=(5.6, 3.9))
    axes = figure.subplots(gridspec_kw={"left": 0.1, "right": 0.74, "bottom": 0.13, "top": 0.97})
    ns = sorted({row["n"] for row in rows})
    ends: list[tuple[float, str, str]] = []
    for critic, (name, style) in drawn.items():
        points_ = sorted((row for row in rows if row["critic"] == critic), key=lambda row: row["n"])
        if not points_:
            continue
        found, colour = [row["official"] for row in points_], colours[name]
        xs = [row["n"] for row in points_]
        axes.fill_between(
            xs, [one["low"] for one in found], [one["high"] for one in found], color=colour, alpha=0.10, linewidth=0
        )
        own = [one["mean"] for one in found]
        marker = "o" if style == "-" or name == "majority" else None
        axes.plot(xs, own, style, color=colour, linewidth=2.4 if style == "-" else 1.7, marker=marker, markersize=3.5)
        ends.append((own[-1], _cut(critic), colour))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(columns(ns)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:g}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{percent(share, digits=0)} %"))
    axes.set_ylim(low, high)
    axes.set_xlabel("responses N", color=colours["muted"])
    label_ends(axes, ends, x=ns[-1], gap=(high - low) * 0.062)
    plain(axes, colours)
    return figure


def _cut(name: str) -> str:
    text = printable(name).replace("$", r"\$")  # matplotlib would set mathematics between two of them
    return text if len(text) <= 20 else f"{text[:19]}…"


def _lede(evaluation: Mapping[str, Any]) -> str:
    """The best critic of the file in one sentence per policy, at most three."""
    totals = {(one["policy"], one["critic"], one["n"]): one for one in evaluation["overall"]}
    sentences = []
    for policy in evaluation["policies"][:3]:
        n = largest(evaluation, policy)
        found = [(totals[policy, name, n]["official"]["mean"], name) for name in own_critics(evaluation)]
        if found:
            best, name = max(found)
            one = totals[policy, "pass@1", min(evaluation["ns"])]["official"]["mean"]
            sentences.append(f"{policy}: {percent(one)} % alone, {percent(best)} % with {name} choosing among {n}.")
    return " ".join(sentences)


def _tables(evaluation: Mapping[str, Any]) -> list[tuple[str, str, str, tuple[Any, Any]]]:
    """(anchor, title, what it shows, table)."""
    every = [
        ("curve", "Against N", "The mean over benchmarks, with its 95 % interval.", curve_table(evaluation)),
        (
            "differences",
            "Beside the vote",
            "Differences in percentage points on the same problems. At equal tokens the vote draws the further "
            "responses that the critic’s reading would have paid for.",
            difference_table(evaluation),
        ),
        (
            "blind",
            "Beside blind rulers",
            "Rules that read neither image nor reasoning. A critic that does not beat them has learned length.",
            blind_table(evaluation),
        ),
        (
            "responses",
            "Responses",
            "In per cent of the responses: cut at the token limit; without an answer that can be read; not decided by "
            "the verifier; not checked. The last column is the share of answers on which two verifiers disagree.",
            response_table(evaluation),
        ),
        (
            "overlap",
            "Near-duplicates in the training problems",
            "Test problems whose image and question come near a training problem’s. “Image alone” is the number of "
            "others whose image does.",
            overlap_table(evaluation),
        ),
    ]
    return [one for one in every if one[3][1]]


def _breakdowns(evaluation: Mapping[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """(title, header, rows): the accuracy of pass@1 and the file's critics by subject, per policy and benchmark."""
    shown = ["pass@1", *own_critics(evaluation), ORACLE]
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for one in evaluation["breakdown"]:
        if one["critic"] in shown:
            found.setdefault((one["policy"], one["benchmark"]), {})[one["critic"]] = one["by"]
    views = []
    for (policy, benchmark), by_critic in found.items():
        names = [name for name in shown if name in by_critic]
        rows = [
            [group, str(first["problems"]), *(percent(by_critic[name][group]["accuracy"]) for name in names)]
            for group, first in by_critic[names[0]].items()
        ]
        views.append((f"{policy}, {benchmark}", ["", "problems", *names], rows))
    return views
