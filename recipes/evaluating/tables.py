"""The matrix as tables in the layout of VisualPRM's Table 2: a row per policy, one per critic below it, and its gain.

For the terminal, as Markdown and LaTeX; and every cell as a line of CSV.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from mpo.multimodal.text import one_line
from recipes.stage.numbers import Header, Rows, interval, percent, points, rich_table, short, signed

ONE, ORACLE = "pass@1", "oracle"
OVERALL = "Overall"


@dataclass(frozen=True)
class Line:
    """One line of the layout.

    Attributes:
        policy: whose it is.
        label: of the line.
        kind: policy, critic, gain or oracle.
        values: benchmark (and `OVERALL`) → share, or a difference of shares; None where there is none.
    """

    policy: str
    label: str
    kind: str
    values: Mapping[str, float | None]


def layout(evaluation: Mapping[str, Any]) -> list[Line]:
    """The lines of the table, of each policy at the largest N that all its benchmarks have."""
    cells = {(one["policy"], one["critic"], one["n"], one["benchmark"]): one for one in evaluation["cells"]}
    totals = {(one["policy"], one["critic"], one["n"]): one for one in evaluation["overall"]}
    lines = []
    for policy in evaluation["policies"]:
        n, least = largest(evaluation, policy), min(evaluation["ns"])

        def row(critic: str, k: int, policy: str = policy) -> dict[str, float | None]:
            found = {
                bench["name"]: _mean(cells.get((policy, critic, k, bench["name"])))
                for bench in evaluation["benchmarks"]
            }
            return {**found, OVERALL: _mean(totals.get((policy, critic, k)))}

        one = row(ONE, least)
        lines.append(Line(policy, policy, "policy", one))
        for critic in _shown(evaluation):
            values = row(critic, n)
            lines.append(Line(policy, f"+ {critic} (best of {n})", "oracle" if critic == ORACLE else "critic", values))
            if critic != ORACLE:
                lines.append(Line(policy, "gain", "gain", {name: _minus(values[name], one[name]) for name in values}))
    return lines


def largest(evaluation: Mapping[str, Any], policy: str) -> int:
    """The largest N that all of a policy's benchmarks have."""
    return max(one["n"] for one in evaluation["overall"] if one["policy"] == policy)


def curve_table(evaluation: Mapping[str, Any]) -> tuple[Header, Rows]:
    """The mean over benchmarks at every N, one line per policy and critic."""
    totals = {(one["policy"], one["critic"], one["n"]): one for one in evaluation["overall"]}
    rows = []
    for policy in evaluation["policies"]:
        for critic in (ONE, *_shown(evaluation)):
            found = [totals.get((policy, critic, n)) for n in evaluation["ns"]]
            rows.append([policy, critic, *(interval(one and one["official"]) for one in found)])
    return ["policy", "critic", *(f"N = {n}" for n in evaluation["ns"])], rows


def difference_table(evaluation: Mapping[str, Any]) -> tuple[Header, Rows]:
    """What each critic is worth beside the vote, at equal N and at equal tokens, in percentage points.

    "–" where the further responses that a vote of equal tokens takes were not drawn.
    """
    rows = []
    for one in evaluation["overall"]:
        if one["n"] > 1 and one["critic"] in own_critics(evaluation) and not _is_vote(evaluation, one["critic"]):
            equal = one["minus_majority_equal_tokens"]
            against = f" (N = {one['equal_tokens_k']})" if equal else ""
            told = [signed(one["gain"]), signed(one["minus_majority"]), signed(equal) + against if equal else "–"]
            rows.append([one["policy"], one["critic"], str(one["n"]), *told])
    return [
        "policy",
        "critic",
        "N",
        "minus pass@1",
        "minus vote, equal N",
        "minus vote, equal tokens",
    ], rows


def blind_table(evaluation: Mapping[str, Any]) -> tuple[Header, Rows]:
    """The critics beside rulers that read neither image nor reasoning."""
    rulers = [one["name"] for one in evaluation["critics"] if one["ruler"] and one["name"] != ORACLE]
    totals = {(one["policy"], one["critic"], one["n"]): one["official"] for one in evaluation["overall"]}
    names = [*own_critics(evaluation), *rulers]
    rows = [
        [policy, *(short(totals.get((policy, name, largest(evaluation, policy)))) for name in names)]
        for policy in evaluation["policies"]
    ]
    return ["policy", *names], rows


def response_table(evaluation: Mapping[str, Any]) -> tuple[Header, Rows]:
    """What the responses are like, in per cent of them."""
    shares = ("truncated", "unparsable", "undecided", "unverified")
    rows = []
    for one in evaluation["responses"]:
        tokens = "–" if one["tokens"] is None else f"{one['tokens']:.0f}"
        disputed = "–" if one["disputed"] is None else percent(one["disputed"])
        told = [str(one["problems"]), str(one["responses"]), tokens, *(percent(one[name]) for name in shares), disputed]
        rows.append([one["policy"], one["benchmark"], *told])
    return ["policy", "benchmark", "problems", "responses", "tokens", *shares, "verifiers disagree"], rows


def overlap_table(evaluation: Mapping[str, Any]) -> tuple[Header, Rows]:
    """What benchmarks and training problems have in common; empty where nothing was compared."""
    rows = []
    for bench in evaluation["benchmarks"]:
        if found := bench["overlap"]:
            share = percent(found["near"] / max(1, found["problems"]))
            rows.append(
                [bench["name"], *(str(found[name]) for name in ("problems", "near", "identical", "images")), share]
            )
    return ["benchmark", "problems", "near-duplicates", "identical", "image alone", "per cent"], rows


def own_critics(evaluation: Mapping[str, Any]) -> list[str]:
    """The critics of the settings file."""
    return [one["name"] for one in evaluation["critics"] if not one["ruler"]]


def markdown(evaluation: Mapping[str, Any]) -> str:
    """All tables as Markdown."""
    names = _columns(evaluation)
    main = [[line.label, *(_cell(line, name) for name in names)] for line in layout(evaluation)]
    titled = [
        ("Official metric of each benchmark, per cent", (["policy", *names], main)),
        ("Mean over benchmarks against N", curve_table(evaluation)),
        ("What a critic is worth beside the vote, percentage points", difference_table(evaluation)),
        ("Beside blind rulers", blind_table(evaluation)),
        ("Responses", response_table(evaluation)),
        ("Near-duplicates in the training problems", overlap_table(evaluation)),
    ]
    parts = [f"**{title}**\n\n{_markdown(header, rows)}" for title, (header, rows) in titled if rows]
    return "\n\n".join([*parts, caption(evaluation)]) + "\n"


def latex(evaluation: Mapping[str, Any]) -> str:
    r"""The main table for a paper that loads booktabs."""
    names = _columns(evaluation)
    lines = [rf"\begin{{tabular}}{{l{'r' * len(names)}}}", r"\toprule"]
    lines.append(" & ".join(["Model", *map(_escaped, names)]) + r" \\")
    for line in layout(evaluation):
        if line.kind == "policy":
            lines.append(r"\midrule")
        indent = "" if line.kind == "policy" else r"\quad "
        label = r"\quad $\Delta$" if line.kind == "gain" else f"{indent}{_escaped(line.label)}"
        lines.append(" & ".join([label, *(_latex_cell(line, name) for name in names)]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", f"% {one_line(caption(evaluation))}"]) + "\n"


def cells_csv(evaluation: Mapping[str, Any]) -> str:
    """Every cell, a line each, shares as numbers."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    estimates = ("accuracy", "official", "minus_majority", "minus_majority_equal_tokens")
    ends = ("mean", "low", "high")
    writer.writerow(
        ["policy", "benchmark", "critic", "n", *(f"{name}_{end}" for name in estimates for end in ends),
         "equal_tokens_n", "unscored"]
    )  # fmt: skip
    for one in evaluation["cells"]:
        numbers = [one[name][end] if one[name] else "" for name in estimates for end in ends]
        names = [_harmless(one[key]) for key in ("policy", "benchmark", "critic")]
        writer.writerow([*names, one["n"], *numbers, one["equal_tokens_k"] or "", _blank(one["unscored"])])
    return buffer.getvalue()


FILES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "table.md": markdown,
    "table.tex": latex,
    "cells.csv": cells_csv,
}


def print_tables(evaluation: Mapping[str, Any], seconds: Sequence[Mapping[str, Any]]) -> None:
    """Print the main table, what each critic is worth, and the costs."""
    console = Console()
    names = _columns(evaluation)
    rows = [[line.label, *(_cell(line, name) for name in names)] for line in layout(evaluation)]
    console.print(rich_table("Official metric, per cent", ["policy", *names], rows))
    for title, (header, some) in (
        ("Mean over benchmarks, percentage points", _short_differences(evaluation)),
        ("Responses, per cent", _short_responses(evaluation)),
        ("Seconds", seconds_table(seconds)),
        ("Near-duplicates in the training problems", overlap_table(evaluation)),
    ):
        if some:
            console.print(rich_table(title, header, some))


def _short_differences(evaluation: Mapping[str, Any]) -> tuple[Header, Rows]:
    """At the largest N, and at equal tokens at the largest N whose vote was drawn; for the terminal."""
    rows = []
    for policy in evaluation["policies"]:
        for name in own_critics(evaluation):
            found = [one for one in evaluation["overall"] if (one["policy"], one["critic"]) == (policy, name)]
            if not found or _is_vote(evaluation, name):
                continue
            equal = [one for one in found if one["minus_majority_equal_tokens"]]
            told = [_short(found[-1][key]) for key in ("gain", "minus_majority")]
            last = _short(equal[-1]["minus_majority_equal_tokens"]) + f" @{equal[-1]['n']}" if equal else "–"
            rows.append([policy, name, *told, last])
    return ["policy", "critic", "gain", "− vote", "− vote of equal tokens"], rows


def _short(estimate: Mapping[str, Any] | None) -> str:
    if not estimate:
        return "–"
    low, high = (f"{100 * estimate[end]:+.0f}".replace("-", "−") for end in ("low", "high"))
    return f"{points(estimate['mean'])} [{low}, {high}]"


def _short_responses(evaluation: Mapping[str, Any]) -> tuple[Header, Rows]:
    header, rows = response_table(evaluation)
    names = {"truncated": "cut", "unparsable": "no answer", "verifiers disagree": "disputed"}
    kept = [place for place, name in enumerate(header) if name not in ("responses", "undecided")]
    return [names.get(header[place], header[place]) for place in kept], [[row[place] for place in kept] for row in rows]


def seconds_table(seconds: Sequence[Mapping[str, Any]]) -> tuple[Header, Rows]:
    """Of the runs that finished each stage."""
    critics = list(dict.fromkeys(name for one in seconds for name in one["critics"]))
    rows = [
        [one["policy"], one["benchmark"], *(f"{one[stage]:.0f}" for stage in ("responses", "verify")),
         *(f"{one['critics'][name]:.0f}" if name in one["critics"] else "–" for name in critics)]
        for one in seconds
    ]  # fmt: skip
    return ["policy", "benchmark", "responses", "verify", *critics], rows


def caption(evaluation: Mapping[str, Any]) -> str:
    """What the numbers are."""
    metrics = ", ".join(
        f"{one['name']} {one['metric']}" for one in evaluation["benchmarks"] if one["metric"] != "accuracy"
    )
    special = f" Accuracy, but {metrics}." if metrics else " Accuracy."
    return (
        f"{OVERALL} is the mean over benchmarks. Every number is an expectation over random subsets of the responses, "
        f"with a 95 % interval over problems where one is given.{special}"
    )


def _shown(evaluation: Mapping[str, Any]) -> list[str]:
    """The critics of the main table: the vote, those of the file, the oracle."""
    rulers = {one["selector"]: one["name"] for one in evaluation["critics"] if one["ruler"]}
    first = [rulers["majority"]] if "majority" in rulers else []
    return [*first, *own_critics(evaluation), ORACLE]


def _is_vote(evaluation: Mapping[str, Any], name: str) -> bool:
    return any(one["name"] == name and one["selector"] == "majority" for one in evaluation["critics"])


def _columns(evaluation: Mapping[str, Any]) -> list[str]:
    return [*(bench["name"] for bench in evaluation["benchmarks"]), OVERALL]


def _mean(found: Mapping[str, Any] | None) -> float | None:
    return found["official"]["mean"] if found else None


def _minus(a: float | None, b: float | None) -> float | None:
    return a - b if a is not None and b is not None else None


def _cell(line: Line, name: str) -> str:
    value = line.values[name]
    if value is None:
        return "–"
    return points(value) if line.kind == "gain" else percent(value)


def _latex_cell(line: Line, name: str) -> str:
    return _cell(line, name).replace("−", "$-$").replace("–", "--")


def _escaped(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(sign, f"\\{sign}" if sign in "&%$#_{}" else sign) for sign in one_line(text))


def _harmless(text: str) -> str:
    """A name that no spreadsheet takes for a formula."""
    return f"'{text}" if text[:1] in "=+-@\t\r" else text


def _blank(value: float | None) -> float | str:
    return "" if value is None else value


def _markdown(header: Sequence[str], rows: Rows) -> str:
    named = ("policy", "critic", "benchmark")
    aligned = [":--" if name in named else "--:" for name in header]
    lines = [header, aligned, *([one_line(cell).replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
