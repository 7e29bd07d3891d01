"""README.md of an exported data set: where the pairs come from, what was kept and dropped, how the sides differ.

The card is Markdown with the Hub's metadata block. Paths of this machine are cut to their last part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCardData

from mpo.multimodal.files import write_atomic
from recipes.stage.cards import CARD, provenance, table
from rewards.pairing.report import PairingReport

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))

# kind of rows → title, what a row is, tags
KINDS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "pairs": (
        "Preference pairs",
        "pairs of responses, chosen and rejected, to questions with or without images",
        ("preference", "mpo", "dpo"),
    ),
    "steps": (
        "Labelled steps",
        "responses to questions with or without images, with a label for each step",
        ("process-reward-model", "prm", "stepwise"),
    ),
}


def write_card(
    folder: Path,
    *,
    pairs: int,
    data_file: str,
    fingerprint: Mapping[str, Any],
    report: PairingReport | None = None,
    yields: Mapping[str, PairingReport] | None = None,
    rejected: Mapping[str, int] | None = None,
    kind: str = "pairs",
) -> None:
    """Write the card of an export.

    Args:
        folder: of the export.
        pairs: rows in it.
        data_file: the file that the Hub's viewer shows, or that a loader starts from.
        fingerprint: of the stage that exports; its settings and those of the stages before it are the provenance.
        report: of the pairing, where this stage paired.
        yields: the other rules on the same rollouts.
        rejected: reason → rows left out, where this stage converted.
        kind: of the rows, a key of `KINDS`.
    """
    title, what, tags = KINDS[kind]
    parts = [
        f"# {title}\n\n{pairs} {what}, in `{data_file}`.\n\nThe texts were sampled from a model. The images keep the "
        "licence of their source: state it here before you publish.",
        *(_report_sections(report) if report else []),
        *([table("Left out", ("reason", "rows"), rejected.items())] if rejected else []),
        *([_yields(yields)] if yields else []),
        "\n".join(["## Provenance\n", *provenance(fingerprint)]),
    ]
    head = _metadata(pairs, data_file, tags)
    write_atomic(folder / CARD, f"---\n{head}\n---\n\n" + "\n\n".join(parts) + "\n")


def _metadata(pairs: int, data_file: str, tags: Sequence[str]) -> str:
    size = next((name for limit, name in SIZES if pairs < limit), "n>1M")
    viewer = [{"config_name": "default", "data_files": data_file}] if data_file.endswith(".parquet") else None
    return DatasetCardData(
        task_categories=["image-text-to-text", "visual-question-answering"],
        tags=[*tags, "trl", "mpo-prm"],
        size_categories=[size],
        configs=viewer,
    ).to_yaml()


def _report_sections(report: PairingReport) -> Iterator[str]:
    yield table(
        "Kept and dropped",
        ("", "number"),
        [
            ("problems in", report.problems_in),
            ("problems with pairs", report.problems_with_pairs),
            *((f"problems dropped: {reason}", number) for reason, number in report.dropped.items()),
            *((f"pairs by {source}", number) for source, number in report.sources.items()),
            *(
                (f"responses that take no side: {reason}", number)
                for reason, number in report.rejected_rollouts.items()
            ),
        ],
    )
    yield table(
        "How the sides differ",
        ("", "chosen", "rejected"),
        [
            ("mean characters", *(f"{report.mean_characters[side]:.1f}" for side in ("chosen", "rejected"))),
            ("mean steps", *(f"{report.mean_steps[side]:.2f}" for side in ("chosen", "rejected"))),
            ("characters that count in L_p and L_q", "100.0%", f"{report.rejected_counted:.1%}"),
            *(
                [("mean visual dependence", *(f"{v:.3f}" for v in report.mean_dependence.values()))]
                if report.mean_dependence
                else []
            ),
        ]
        if report.pairs
        else [],
    )
    rulers = [
        (f"pick the {name}", f"{share:.1%}", "{:.1%} to {:.1%}".format(*report.blind_intervals[name]))
        for name, share in report.blind_rulers.items()
    ]
    lines = [table("Blind rulers", ("ruler", "finds the chosen side", "95 % interval"), rulers)]
    yield "\n\n".join([*lines, *(f"**Warning:** {warning}." for warning in report.warnings)])


def _yields(yields: Mapping[str, PairingReport]) -> str:
    rows = [
        (name, found.pairs, found.problems_with_pairs, ", ".join(f"{n} {why}" for why, n in found.dropped.items()))
        for name, found in yields.items()
    ]
    return table("What each rule gives for these responses", ("rule", "pairs", "problems", "dropped"), rows)
