"""A summary as tables: in the terminal (rich), and in Markdown for the README. Numbers in per cent, 95 % intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from mpo.multimodal.text import one_line
from recipes.stage.numbers import (
    Header,
    Rows,
    change,
    columns,
    interval,
    percent,
    points,
    rich_table,
    short,
    signed,
)
from rewards.statistics import verdict_of

SELECTOR_LABELS = {
    "prm": "PRM best of k",
    "lower_bound": "PRM lower bound, best of k",
    "weighted_vote": "vote weighted by reward",
    "vote_prod": "vote weighted by product of steps",
    "vote_min": "vote weighted by lowest step",
    "vote_min_4": "vote weighted by lowest step^4",
    "majority": "majority vote",
    "orm": "last step's score (ORM)",
    "first": "first",
    "longest": "longest",
    "shortest": "shortest",
    "random": "random (pass@1)",
    "oracle": "oracle (pass@k)",
}
# the columns of the table of all arms at one k, with names that are short enough for it
AT_K = {
    "random": "one response",
    "majority": "majority vote",
    "prm": "PRM best",
    "vote_prod": "vote by product",
    "oracle": "oracle",
}
LEADS = "Above the majority vote, in percentage points"
_DEPENDENCES = ("dependence_right", "dependence_wrong")


def arms_table(summary: Mapping[str, Any]) -> tuple[Header, Rows]:
    """One row per arm: accuracy greedy, sampled and with another image; share of degenerate answers."""
    header = ["arm", "greedy", "sampled", "other image", "truncated", "no answer", "repetition"]
    rows = []
    for arm in summary["arms"]:
        shares = arm["degenerate"]
        reasons = [percent(shares[r]["mean"]) if r in shares else "–" for r in _REASONS]
        rows.append([arm["label"], *(interval(arm.get(key)) for key in ("greedy", "sampled", "swapped")), *reasons])
    return header, rows


def best_of_n_table(summary: Mapping[str, Any]) -> tuple[Header, Rows]:
    """One row per arm and selector, one column per k, each with its interval; arms that were sampled to the last k."""
    ks = columns(summary["ks"])
    header = ["arm", "selector", *(f"k = {k}" for k in ks)]
    cells: dict[tuple[str, str], dict[int, str]] = {}
    for row in in_full(summary):
        cells.setdefault((row["label"], row["selector"]), {})[row["k"]] = interval(row)
    rows = [
        [label, SELECTOR_LABELS[selector], *(by_k.get(k, "–") for k in ks)] for (label, selector), by_k in cells.items()
    ]
    return header, rows


def in_full(summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The rows of best of k of the arms that were sampled up to the largest k."""
    return [row for row in summary["best_of_n"] if row["arm"] in summary["in_full"]]


def at_k_table(summary: Mapping[str, Any], cell: Callable[[Any], Any] = interval) -> tuple[Header, list[list[Any]]]:
    """One row per arm: what the selectors choose among k responses; `cell` is how an estimate is shown."""
    found = {(row["arm"], row["selector"]): row for row in summary["best_of_n"] if row["k"] == summary["k"]}
    rows = [
        [arm["label"], *(cell(found.get((arm["arm"], name))) for name in AT_K)]
        for arm in summary["arms"]
        if (arm["arm"], "prm") in found
    ]
    return ["arm", *AT_K.values()], rows


def leads_table(summary: Mapping[str, Any]) -> tuple[Header, Rows]:
    """One row per arm and selector, one column per k: points above the majority vote of as many responses."""
    ks = [k for k in columns(summary["ks"]) if k > 1]
    cells: dict[tuple[str, str], dict[int, str]] = {}
    for row in summary["leads"]:
        cells.setdefault((row["label"], row["selector"]), {})[row["k"]] = signed(row["difference"])
    rows = [
        [label, SELECTOR_LABELS[selector], *(by_k.get(k, "–") for k in ks)] for (label, selector), by_k in cells.items()
    ]
    return ["arm", "selector", *(f"k = {k}" for k in ks)], rows


def claims_table(summary: Mapping[str, Any]) -> tuple[Header, Rows]:
    """Claims and comparisons as paired differences in percentage points."""
    header = ["claim", "difference", "each seed", "verdict"]
    rows = [
        [claim["name"], signed(claim["difference"]), _seeds(claim["difference"]), verdict(claim)]
        for claim in [*summary["claims"], *summary["comparisons"]]
    ]
    return header, rows


def prm_table(summary: Mapping[str, Any]) -> tuple[Header, Rows]:
    """What the PRM knows: ranking within a problem (per cent; 50 is chance), and how it reacts to another image."""
    header = [
        "answers of",
        "within-problem AUC",
        "AUC, other image",
        "reward lost with another image",
        "visual dependence, right / wrong",
    ]
    rows = [
        [
            row["label"],
            interval(row.get("auc")),
            interval(row.get("auc_swapped")),
            signed(row["swap_drop"]) if "swap_drop" in row else "–",
            " / ".join(change(row[name]["mean"]) if name in row else "–" for name in _DEPENDENCES),
        ]
        for row in summary["prm"]
    ]
    return header, rows


def verdict(claim: Mapping[str, Any]) -> str:
    """In words: whether the difference is shown, by interval and test."""
    found = claim["difference"]
    return verdict_of(found["low"], found["high"], found["p"])


def caption(summary: Mapping[str, Any]) -> str:
    """What the numbers are averaged over."""
    seeds = len(summary["seeds"])
    return (
        f"{summary['problems']} test problems, {samples_of(summary)} samples per problem, "
        f"{seeds} seed{'s' if seeds != 1 else ''}; per cent, 95 % interval over problems"
    )


def samples_of(summary: Mapping[str, Any]) -> str:
    """How many samples per problem the arms have: `16`, or `4 to 16` where they differ."""
    fewest, most = summary["samples"], summary["most_samples"]
    return str(most) if fewest == most else f"{fewest} to {most}"


def print_summary(summary: Mapping[str, Any], *, console: Console | None = None) -> None:
    """Print the arms, best of k for each arm, and the claims, in 80 columns.

    Names from folders are printed as text, never as markup or control codes.
    """
    console = console or Console()
    console.print(rich_table("Accuracy", *_short_arms(summary)))
    for label in dict.fromkeys(row["label"] for row in in_full(summary)):
        console.print(rich_table(f"Best of k, {label}", *_short_best_of_n(summary, label)))
    header, rows = at_k_table(summary, short)
    if len(rows) > len(summary["in_full"]):
        console.print(rich_table(f"Chosen among {summary['k']} responses", header, rows))
    header, rows = claims_table(summary)
    if rows:
        console.print(
            rich_table("Claims, in percentage points", [*header[:2], header[3]], [[*r[:2], r[3]] for r in rows])
        )
    console.print(Text(caption(summary), style="dim"))


def markdown_tables(summary: Mapping[str, Any]) -> str:
    """All tables for the README, with their intervals."""
    parts = [f"**{title}**\n\n{_markdown_table(header, rows)}" for title, (header, rows) in _titled(summary) if rows]
    return "\n\n".join([*parts, f"{caption(summary)[0].upper()}{caption(summary)[1:]}."]) + "\n"


_REASONS = ("truncated", "no_final_answer", "repetition")


def _titled(summary: Mapping[str, Any]) -> list[tuple[str, tuple[Header, Rows]]]:
    return [
        ("Accuracy of the arms", arms_table(summary)),
        ("Best of k", best_of_n_table(summary)),
        (f"Chosen among {summary['k']} responses", at_k_table(summary)),
        (LEADS, leads_table(summary)),
        ("Claims, in percentage points", claims_table(summary)),
        ("Process reward model", prm_table(summary)),
    ]


def _short_arms(summary: Mapping[str, Any]) -> tuple[Header, Rows]:
    rows = []
    for arm in summary["arms"]:
        cells = [short(arm.get(key)) for key in ("greedy", "sampled", "swapped")]
        total = percent(sum(share["mean"] for share in arm["degenerate"].values())) if arm["degenerate"] else "–"
        rows.append([arm["label"], *cells, total])
    return ["arm", "greedy", "sampled", "other image", "degenerate"], rows


def _short_best_of_n(summary: Mapping[str, Any], label: str) -> tuple[Header, Rows]:
    cells: dict[str, dict[int, str]] = {}
    for row in summary["best_of_n"]:
        if row["label"] == label:
            cells.setdefault(row["selector"], {})[row["k"]] = short(row)
    ks = columns(summary["ks"])
    rows = [[name.replace("_", " "), *(at.get(k, "–") for k in ks)] for name, at in cells.items()]
    return ["selector", *(f"k = {k}" for k in ks)], rows


def _seeds(estimate: Mapping[str, Any]) -> str:
    return ", ".join(points(value) for value in estimate["seeds"])


def _markdown_table(header: Sequence[str], rows: Rows) -> str:
    aligned = [":--" if not i or name in ("selector", "verdict") else "--:" for i, name in enumerate(header)]
    lines = [header, aligned, *([one_line(cell).replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def warning_text(warning: object) -> str:
    """The sentence of a warning in a `results.json`, which names what it warns of."""
    return str(warning["message"] if isinstance(warning, dict) else warning)
