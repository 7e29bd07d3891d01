"""`mpo report`: one self-contained HTML page of a run, or of several seeds.

The page needs no network and no JavaScript. Questions and answers are untrusted text: everything is escaped, images
are decoded and re-encoded, and a content security policy lets only this page's one script run.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from mpo.multimodal.errors import ConfigError
from mpo.multimodal.files import read_json, write_atomic
from mpo.multimodal.text import printable
from recipes.config import ReportConfig
from recipes.report.breakdown import KINDS as BREAKDOWN_KINDS
from recipes.report.compare import compare, print_comparison
from recipes.report.headline import Cells, cards, lede
from recipes.report.identity import counts_text, identity, settings_of
from recipes.report.measures import VERDICTS as VERDICT_NAMES
from recipes.report.shown.changes import ORDER as CHANGE_KINDS
from recipes.report.shown.changes import change_tables
from recipes.report.shown.charts import calibration_charts, pair_charts
from recipes.report.shown.figures import Chart, best_at_k_figure, training_charts
from recipes.report.shown.pairs import yield_rows
from recipes.report.shown.problems import ProblemView, problem_views
from recipes.report.summary import BASELINE, TRAINED, label, runs_of, summarise
from recipes.report.tables import (
    LEADS,
    SELECTOR_LABELS,
    at_k_table,
    caption,
    in_full,
    leads_table,
    markdown_tables,
    verdict,
    warning_text,
)
from recipes.stage.folder import RESULTS
from recipes.stage.numbers import change, columns, percent, points, real_minus

TEMPLATES = Path(__file__).parent / "templates"
MAX_BYTES = 10_000_000
TOPS = {"right": "Best response right", "wrong unclear": "Best response wrong"}
MOST_VALUES = 8  # of a kind of problem, for which there are buttons
BLIND = ("random", "first", "longest", "shortest")
PLOTS = "plots"  # folder beside the page
LOGS = ("trainer_state.json", "log_history.json")
KINDS = {
    "changes": (
        "Before and after",
        f"The same test problem answered by {label(BASELINE)} and by {label(TRAINED)}: those that were fixed or broken "
        "first.",
    ),
    "test": (
        "Test problems",
        "Every response to one problem, best reward first. The colour is the PRM’s score of a step.",
    ),
    "pairs": (
        "Preference pairs",
        "What MPO learns from: the same colours. The marked part of a rejected response carried the gradient; without "
        "a mark, all of it did.",
    ),
    "labels": (
        "Step labels",
        "What the PRM learns from: k/n continuations from a step’s end reached the right answer.",
    ),
}


def report(
    run: str | Path,
    *,
    out: str | Path | None = None,
    problems: int = 48,
    summary: Mapping[str, Any] | None = None,
) -> Path:
    """Write `report.html` for a run folder, or for an evidence folder with `seed…` folders; beside it its plots.

    Args:
        run: the folder.
        out: file to write; default `report.html` in `run`.
        problems: problems shown, of the first seed; fewer if the page would exceed 10 MB.
        summary: of the run, from `summarise` or its file; None: it is made here, which reads every response.

    Raises:
        ConfigError: `problems` is negative.
        StageError: the folder holds no test results.
    """
    if problems < 0:
        raise ConfigError(f"problems must be 0 or more, got {problems}")
    runs = runs_of(run)
    out = Path(out) if out is not None else Path(run) / "report.html"
    page = _view(Path(run), runs, summary or summarise(runs))
    html = _render(page, problem_views(runs[0], problems) if problems else {})
    while len(html.encode()) > MAX_BYTES and problems:
        problems //= 2
        html = _render(page, problem_views(runs[0], problems) if problems else {})
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, html)
    for chart in page["curves"] + page["pair_charts"] + [c for c, _ in page["calibration"]] + page["training"]:
        chart.write(out.parent / PLOTS)
    return out


def report_stage(config: ReportConfig) -> Path:
    """`mpo report`: `report` with the command's settings, or the comparison of two runs; print where the page is."""
    if config.against is not None:
        return _compare(config.run, config.against, config.out)
    summary = summarise(runs_of(config.run))
    page = report(config.run, out=config.out, problems=config.problems, summary=summary)
    if config.markdown:
        print(markdown_tables(summary))
    print(f"report: {page}")
    return page


def _compare(a: Path, b: Path, out: Path | None) -> Path:
    """The comparison in the terminal and as a page beside the second run's."""
    found = compare(a, b)
    print_comparison(found)
    out = out or b / "comparison.html"
    out.parent.mkdir(parents=True, exist_ok=True)
    style = Markup((TEMPLATES / "report.css").read_text(encoding="utf-8"))
    sides = [[row for row in identity(runs_of(folder)) if row[1]] for folder in (a, b)]
    template = _environment().get_template("comparison.html.j2")
    write_atomic(out, template.render(found=found, sides=sides, style=style))
    print(f"report: {out}")
    return out


def _render(page: Mapping[str, Any], problems: Mapping[str, Any]) -> str:
    environment = _environment()
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    style = Markup((TEMPLATES / "report.css").read_text(encoding="utf-8"))  # our own files, and nobody else's text
    template = environment.get_template("report.html.j2")
    return template.render(
        page,
        problems=problems,
        kinds=KINDS,
        filters=_filters(problems),
        style=style,
        script=Markup(script),
        script_hash=digest,
    )


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "points": points,
        "printable": printable,
        "change": change,
        "columns": columns,
        "real_minus": real_minus,
    }
    return environment


def _view(folder: Path, runs: Sequence[Path], summary: Mapping[str, Any]) -> dict[str, Any]:
    """Everything on the page but the problems."""
    k = summary["k"]
    cell = {(row["arm"], row["selector"], row["k"]): row for row in summary["best_of_n"]}
    return {
        "name": printable(folder.resolve().name),
        "summary": summary,
        "caption": caption(summary),
        "lede": lede(summary),
        "cards": cards(summary, cell),
        "identity": [row for row in identity(runs) if row[1]],
        "changes": change_tables(runs, before=BASELINE, after=TRAINED),
        "change_kinds": CHANGE_KINDS,
        "breakdown": summary["breakdown"],
        "verdict_names": list(dict.fromkeys(VERDICT_NAMES.values())),
        "label": label,
        "selectors": SELECTOR_LABELS,
        "curves": _curve_figures(summary),
        "best_rows": _best_rows(summary, cell),
        "at_k": at_k_table(summary, lambda estimate: estimate),
        "leads": (LEADS, *leads_table(summary)),
        **_claims([*summary["claims"], *summary["comparisons"]]),
        "candidates": [(label(arm), _candidates(summary["candidates"][arm])) for arm in summary["in_full"]],
        "blind": [
            (row["label"], [(SELECTOR_LABELS[name], cell.get((row["arm"], name, k))) for name in ("prm", *BLIND)])
            for row in summary["arms"]
            if row["arm"] in summary["in_full"]
        ],
        "pair_charts": pair_charts(runs),
        "yields": yield_rows(summary["pairs"]),
        "pair_dependence": any(row.get("mean_dependence") for row in summary["pairs"]),
        "dependence": [row for row in summary["prm"] if "dependence_right" in row or "dependence_wrong" in row],
        "calibration": calibration_charts(runs),
        "warnings": _warnings(runs, summary),
        "training": _training(runs[0]),
        "stages": [{**row, "notes": counts_text(row["counts"])} for row in summary["stages"]],
        "settings": settings_of(runs[0]),
    }


def _curve_figures(summary: Mapping[str, Any]) -> list[Chart]:
    rows = [row for row in in_full(summary) if row["selector"] not in ("first", "longest", "shortest")]
    low = max(0.0, min((row["low"] for row in rows), default=0.0) - 0.02)
    high = max((row["high"] for row in rows), default=1.0) + 0.02
    charts = []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        own = [row for row in rows if row["arm"] == arm]
        title = f"Accuracy against the number of responses, {printable(label(arm))}"
        charts.append(Chart(label(arm), title, partial(best_at_k_figure, own, low=low, high=high)))
    return charts


def _warnings(runs: Sequence[Path], summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(where, what): warnings of the pairing reports, of best of k of the arms shown in full, and of blind policies."""
    found = [(f"{row['seed']}, pairs", text) for row in summary["pairs"] for text in row.get("warnings", ())]
    for run in runs:
        for arm in summary["in_full"]:
            path = run / "test" / arm / "best_of_n" / RESULTS
            warnings = read_json(path).get("warnings", ()) if path.exists() else ()
            found += [(f"{run.name}, best of k, {label(arm)}", warning_text(w)) for w in warnings]
    for row in summary["arms"]:
        gain = row["image_gain"]
        if gain and gain["verdict"] != "holds":
            found.append(
                (
                    row["label"],
                    f"that the policy looks at the image is not shown: its greedy accuracy on {gain['n']} problems is "
                    f"{points(gain['mean'])} points [{points(gain['low'])}, {points(gain['high'])}] above that with "
                    "another problem's image",
                )
            )
    return found


def _best_rows(summary: Mapping[str, Any], cell: Cells) -> list[tuple[str, str, list[Any]]]:
    keys = dict.fromkeys((row["arm"], row["label"], row["selector"]) for row in in_full(summary))
    return [
        (name, SELECTOR_LABELS[s], [cell.get((arm, s, k)) for k in columns(summary["ks"])]) for arm, name, s in keys
    ]


def _claims(claims: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Claims with their interval's place on a common axis, in per cent of its width; 50 is no difference."""
    ends = [abs(claim["difference"][end]) for claim in claims for end in ("low", "high")]
    reach = max([*ends, 0.01]) * 1.08

    def place(value: float) -> float:
        return round(50 + 50 * value / reach, 2)

    rows = [
        {
            **claim,
            "verdict": verdict(claim),
            **{end: place(claim["difference"][end]) for end in ("low", "mean", "high")},
        }
        for claim in claims
    ]
    steps = [step * 10**power for power in (-3, -2, -1) for step in (1, 2, 5)]
    tick = max((step for step in steps if step <= 0.8 * reach), default=steps[0])
    return {"claims": rows, "ticks": [(place(at), f"{100 * at:+.3g}") for at in (-tick, tick)]}


def _filters(problems: Mapping[str, Sequence[ProblemView]]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Key → (value, text) of each button; keys without a choice have none. Within a key any value, keys together."""
    views = [view for listed in problems.values() for view in listed]
    keys = [
        ("list", [(kind, KINDS[kind][0]) for kind in problems]),
        ("change", [(kind, kind.capitalize()) for kind in CHANGE_KINDS if any(v.change == kind for v in views)]),
        ("top", [(value, text) for value, text in TOPS.items() if any(v.top in value.split() for v in views)]),
        ("disagrees", [("yes", "PRM disagrees with majority")] if any(view.disagrees for view in views) else []),
        ("blind", [("yes", "Image-blind")] if any(view.blind for view in views) else []),
    ]
    for by in BREAKDOWN_KINDS:
        values = sorted({view.kinds[by] for view in views if by in view.kinds})
        keys.append((by, [(value, f"{by}: {value}") for value in values] if 1 < len(values) <= MOST_VALUES else []))
    return [(key, choices) for key, choices in keys if choices and (key != "list" or len(choices) > 1)]


def _candidates(rows: Sequence[Mapping[str, Any]]) -> str:
    """How different the responses are, and how many the PRM could not read; over the seeds."""
    ks = [k for k in columns([int(k) for k in rows[0]["distinct_answers"]]) if k > 1]
    parts = ", ".join(f"{fmean(row['distinct_answers'][str(k)] for row in rows):.1f} of {k}" for k in ks)
    unscored, total = sum(row["unscored"] for row in rows), sum(row["problems"] * row["samples"] for row in rows)
    reading = f"{unscored} of {total} could not be scored and rank last" if unscored else f"all {total} could be scored"
    return f"{parts} responses give different answers; {reading}"


def _training(run: Path) -> list[Chart]:
    """Titled figures of each training folder that kept a log: MPO first, the warm start and PRM last."""
    folders = sorted({path.parent for name in LOGS for path in run.glob(f"*/{name}")})
    charts: list[Chart] = []
    for folder in sorted(folders, key=lambda folder: (folder.name != TRAINED, folder.name in (BASELINE, "prm"))):
        name = "PRM" if folder.name == "prm" else printable(label(folder.name))
        charts += training_charts(_history(folder), name=name)
    return charts


def _history(folder: Path) -> list[dict[str, Any]]:
    """The logged rows of a training folder: `trainer_state.json`, or a plain list; empty without either."""
    for name in LOGS:
        if (folder / name).exists():
            content = read_json(folder / name)
            return content["log_history"] if isinstance(content, dict) else content
    return []
