"""What a run shows in two sentences and a handful of numbers: MPO's gain, and the best way to choose a response."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recipes.report.summary import BASELINE, TRAINED, label
from recipes.report.tables import SELECTOR_LABELS, samples_of, verdict
from recipes.stage.numbers import percent, points

SHOWN = {"holds": "shown", "reversed": "shown", "not shown": "not shown"}

Cells = Mapping[tuple[str, str, int], Any]  # (arm, selector, k) → its row of the summary


@dataclass(frozen=True)
class Card:
    """A number at the top of the page; `main` is the best that the run has to offer."""

    name: str
    value: str
    note: str
    main: bool = False


def lede(summary: Mapping[str, Any]) -> str:
    """The result as far as the run shows it: each difference with its interval and whether it is shown."""
    parts = []
    claims = {claim["name"]: claim for claim in summary["claims"]}
    sampled = {row["arm"]: row["sampled"]["mean"] for row in summary["arms"] if "sampled" in row}
    if BASELINE in sampled and TRAINED in sampled:
        claim = next((claims[name] for name in claims if name.endswith("(sampled)")), None)
        moved = f"{percent(sampled[BASELINE])} % to {percent(sampled[TRAINED])} %"
        shown = f", a difference of {_told(claim)}" if claim else ""
        parts.append(
            f"MPO takes the share of right responses from {moved} on {summary['problems']} held-out problems{shown}."
        )
    if best := summary["best_selector"]:
        name = SELECTOR_LABELS[best["selector"]].replace(" of k", "")
        text = f"Of {summary['k']} responses, the choice by {name} is right on {percent(best['mean'])} %"
        gain = best["gain"]
        parts.append(f"{text}; over a single response that is {_told(gain)}." if gain else f"{text}.")
    return " ".join(parts)


def cards(summary: Mapping[str, Any], cell: Cells) -> list[Card]:
    """The numbers at the top."""
    seeds, k, best = len(summary["seeds"]), summary["k"], summary["best_selector"]
    note = f"{samples_of(summary)} responses each, {seeds} seed{'s' if seeds != 1 else ''}"
    found = [Card("Test problems", str(summary["problems"]), note)]
    for row in summary["arms"]:
        if row["arm"] in (BASELINE, TRAINED) and "sampled" in row:
            found.append(_card(row["label"][:1].upper() + row["label"][1:], row["sampled"]))
    chosen: Sequence[tuple[str, str, bool]] = [("prm", "PRM best", False), ("oracle", "oracle", False)]
    if best:
        chosen = [(best["selector"], SELECTOR_LABELS[best["selector"]].replace("best of k", "best"), True), *chosen]
    arm = best["arm"] if best else TRAINED
    for selector, name, main in chosen:
        if (arm, selector, k) in cell and (main or not best or selector != best["selector"]):
            found.append(_card(f"{label(arm)}, {name} of {k}", cell[arm, selector, k], main=main))
    return found


def _told(claim: Mapping[str, Any]) -> str:
    found = claim["difference"]
    interval = f"[{points(found['low'])}, {points(found['high'])}]"
    return f"{points(found['mean'])} points {interval}, {SHOWN[verdict(claim)]}"


def _card(name: str, estimate: Mapping[str, Any], *, main: bool = False) -> Card:
    return Card(
        name, f"{percent(estimate['mean'])} %", f"{percent(estimate['low'])} to {percent(estimate['high'])}", main
    )
