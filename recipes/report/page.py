"""`mpo report`: one self-contained HTML page of a run, or of several seeds.

The page needs no network and no JavaScript. Questions and answers are untrusted text: everything is escaped, images
are decoded and re-encoded, and a content security policy lets only this page's one script run.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from recipes.report.charts import calibration_charts, pair_charts
from recipes.report.figures import Chart, best_at_k_figure, training_charts
from recipes.report.pairs import yield_rows
from recipes.report.problems import problem_views
from recipes.report.summary import BASELINE, TRAINED, label, runs_of, summarise
from recipes.report.tables import SELECTOR_LABELS, caption, markdown_tables, samples_of, verdict, warning_text
from recipes.stage.folder import manifest_of
from recipes.stage.numbers import change, columns, percent, points
from recipes.stage.order import stages_in

TEMPLATES = Path(__file__).parent / "templates"
MAX_BYTES = 10_000_000
BLIND = ("random", "first", "longest", "shortest")
PLOTS = "plots"  # folder beside the page
Cells = Mapping[tuple[str, str, int], Any]  # (arm, selector, k) → its row of the summary
LOGS = ("trainer_state.json", "log_history.json")
KINDS = {
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


@dataclass(frozen=True)
class Card:
    """A number at the top of the page."""

    name: str
    value: str
    note: str


def report(run: str | Path, *, out: str | Path | None = None, problems: int = 24) -> Path:
    """Write `report.html` for a run folder, or for an evidence folder with `seed…` folders; beside it its plots.

    Args:
        run: the folder.
        out: file to write; default `report.html` in `run`.
        problems: problems shown, of the first seed; fewer if the page would exceed 10 MB.

    Raises:
        ConfigError: `problems` is negative.
        StageError: the folder holds no test results.
    """
    if problems < 0:
        raise ConfigError(f"problems must be 0 or more, got {problems}")
    runs = runs_of(run)
    out = Path(out) if out is not None else Path(run) / "report.html"
    page = _view(Path(run), runs, summarise(runs))
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
    """`mpo report`: `report` with the command's settings, and print where the page is."""
    page = report(config.run, out=config.out, problems=config.problems)
    if config.markdown:
        print(markdown_tables(summarise(runs_of(config.run))))
    print(f"report: {page}")
    return page


def _render(page: Mapping[str, Any], problems: Mapping[str, Any]) -> str:
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
    }
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    style = Markup((TEMPLATES / "report.css").read_text(encoding="utf-8"))  # our own files, and nobody else's text
    template = environment.get_template("report.html.j2")
    return template.render(page, problems=problems, kinds=KINDS, style=style, script=Markup(script), script_hash=digest)


def _view(folder: Path, runs: Sequence[Path], summary: Mapping[str, Any]) -> dict[str, Any]:
    """Everything on the page but the problems."""
    k = summary["k"]
    cell = {(row["arm"], row["selector"], row["k"]): row for row in summary["best_of_n"]}
    return {
        "name": printable(folder.resolve().name),
        "summary": summary,
        "caption": caption(summary),
        "lede": _lede(summary, cell),
        "cards": _cards(summary, cell),
        "selectors": SELECTOR_LABELS,
        "curves": _curve_figures(summary),
        "best_rows": _best_rows(summary, cell),
        "claims": _claim_rows([*summary["claims"], *summary["comparisons"]]),
        "candidates": [(label(arm), _candidates(rows)) for arm, rows in summary["candidates"].items()],
        "blind": [
            (row["label"], [(SELECTOR_LABELS[name], cell.get((row["arm"], name, k))) for name in ("prm", *BLIND)])
            for row in summary["arms"]
            if (row["arm"], "prm", k) in cell
        ],
        "pair_charts": pair_charts(runs),
        "yields": yield_rows(summary["pairs"]),
        "pair_dependence": any(row.get("mean_dependence") for row in summary["pairs"]),
        "dependence": [row for row in summary["prm"] if "dependence_right" in row or "dependence_wrong" in row],
        "calibration": calibration_charts(runs),
        "warnings": _warnings(runs, summary),
        "training": _training(runs[0]),
        "stages": [{**row, "notes": _counts(row["counts"])} for row in summary["stages"]],
        "settings": _settings(runs[0]),
    }


def _lede(summary: Mapping[str, Any], cell: Mapping[tuple[str, str, int], Mapping[str, Any]]) -> str:
    """The result in two sentences, as far as the run shows it."""
    sampled = {row["arm"]: row["sampled"]["mean"] for row in summary["arms"] if "sampled" in row}
    parts = []
    if BASELINE in sampled and TRAINED in sampled:
        moved = f"{percent(sampled[BASELINE])} % to {percent(sampled[TRAINED])} %"
        parts.append(f"MPO takes the share of right answers from {moved} on {summary['problems']} held-out problems.")
    best = cell.get((TRAINED, "prm", summary["k"]))
    if best:
        parts.append(f"Letting the PRM choose among {summary['k']} responses gives {percent(best['mean'])} %.")
    return " ".join(parts)


def _cards(summary: Mapping[str, Any], cell: Mapping[tuple[str, str, int], Mapping[str, Any]]) -> list[Card]:
    seeds, k = len(summary["seeds"]), summary["k"]
    note = f"{samples_of(summary)} responses each, {seeds} seed{'s' if seeds != 1 else ''}"
    cards = [Card("Test problems", str(summary["problems"]), note)]
    for row in summary["arms"]:
        if row["arm"] in (BASELINE, TRAINED) and "sampled" in row:
            cards.append(_card(row["label"].capitalize() if row["arm"] == BASELINE else row["label"], row["sampled"]))
    for name, selector in ((f"{label(TRAINED)} + best of {k}", "prm"), (f"Oracle of {k}", "oracle")):
        if (TRAINED, selector, k) in cell:
            cards.append(_card(name, cell[TRAINED, selector, k]))
    return cards


def _card(name: str, estimate: Mapping[str, Any]) -> Card:
    return Card(name, f"{percent(estimate['mean'])} %", f"{percent(estimate['low'])} to {percent(estimate['high'])}")


def _curve_figures(summary: Mapping[str, Any]) -> list[Chart]:
    rows = [row for row in summary["best_of_n"] if row["selector"] not in ("first", "longest", "shortest")]
    low = max(0.0, min((row["low"] for row in rows), default=0.0) - 0.02)
    high = max((row["high"] for row in rows), default=1.0) + 0.02
    charts = []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        own = [row for row in rows if row["arm"] == arm]
        title = f"Accuracy against the number of responses, {printable(label(arm))}"
        charts.append(Chart(label(arm), title, partial(best_at_k_figure, own, low=low, high=high)))
    return charts


def _warnings(runs: Sequence[Path], summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(where, what): the warnings of the pairing reports and the best-of-N results of any seed."""
    found = [(f"{row['seed']}, pairs", text) for row in summary["pairs"] for text in row.get("warnings", ())]
    for run in runs:
        for path in sorted(run.glob("test/*/best_of_n/results.json")):
            results = read_json(path)
            arm = label(path.parts[-3])
            found += [(f"{run.name}, best of k, {arm}", warning_text(w)) for w in results.get("warnings", ())]
    return found


def _best_rows(summary: Mapping[str, Any], cell: Cells) -> list[tuple[str, str, list[Any]]]:
    keys = dict.fromkeys((row["arm"], row["label"], row["selector"]) for row in summary["best_of_n"])
    return [
        (name, SELECTOR_LABELS[s], [cell.get((arm, s, k)) for k in columns(summary["ks"])]) for arm, name, s in keys
    ]


def _claim_rows(claims: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Claims with their interval's place on a common axis, in per cent of its width; 50 is no difference."""
    ends = [abs(claim["difference"][end]) for claim in claims for end in ("low", "high")]
    reach = max([*ends, 0.01]) * 1.08

    def place(value: float) -> float:
        return round(50 + 50 * value / reach, 2)

    return [
        {
            **claim,
            "verdict": verdict(claim),
            **{end: place(claim["difference"][end]) for end in ("low", "mean", "high")},
        }
        for claim in claims
    ]


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


def _settings(run: Path) -> list[tuple[str, str]]:
    """Stage → its settings; of a path only its last two parts, since a report travels."""
    rows = []
    for folder in stages_in(run):
        manifest = manifest_of(folder)
        settings = manifest["fingerprint"]["settings"] | {name: at[0] for name, at in manifest["sources"].items()}
        settings |= manifest.get("hub", {})
        text = ", ".join(f"{name} = {_short(value)}" for name, value in sorted(settings.items()))
        rows.append((str(folder.relative_to(run)), text))
    return rows


def _short(value: Any) -> str:
    text = str(value)
    return "/".join(Path(text).parts[-2:]) if isinstance(value, str) and "/" in text else text


def _counts(counts: Sequence[Mapping[str, Any]]) -> str:
    """What a stage counted, each number over the seeds."""
    names = dict.fromkeys(name for row in counts for name in row)
    parts = []
    for name in names:
        values = dict.fromkeys(_flat(row.get(name)) for row in counts)
        if any(values):
            parts.append(f"{name} {' / '.join(values)}")
    return ", ".join(parts)


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_flat(inner)}" for key, inner in value.items())
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
