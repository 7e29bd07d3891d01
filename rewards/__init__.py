"""From policy samples to step rewards, preference pairs and a chosen answer.

Names are imported when first used (PEP 562): `import rewards` loads nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_MODULES: dict[str, tuple[str, ...]] = {
    "rewards.types": (
        "Aggregator",
        "Completion",
        "FinishReason",
        "Generator",
        "MonteCarloCount",
        "PreferencePair",
        "Problem",
        "ProcessRewardModel",
        "Rollout",
        "RolloutGroup",
        "Selector",
        "Splitter",
        "Step",
        "StepScores",
        "Verdict",
        "Verifier",
    ),
    "rewards.errors": ("StepAlignmentError",),
    "rewards.splitting": ("merge_to_at_most", "split_on_blank_lines"),
    "rewards.verification": ("MathVerifier", "canonical_answer", "exact_verifier", "extract_final_answer"),
    "rewards.aggregation": ("AGGREGATIONS", "aggregate"),
    "rewards.selection": ("SELECTORS", "AnswerOf", "GroupSelector", "best_of_n", "majority", "weighted_vote"),
    "rewards.curves": (
        "Estimate",
        "best_at_k",
        "correctness_of",
        "mean_with_interval",
        "paired_difference",
        "pass_at_k",
        "ranked_at_k",
        "ranking",
        "selected_at_k",
    ),
    "rewards.pairs": ("RULES", "PairingReport", "build_pairs", "correctness", "correctness_and_prm"),
    "rewards.label_source": ("counts_estimate_mc", "require_estimates"),
    "rewards.interchange.trl_rows": ("read_trl_parquet", "to_trl_row", "write_trl_parquet"),
    "rewards.interchange.visualprm": (
        "from_visualprm_row",
        "read_visualprm400k",
        "to_visualprm_row",
        "write_visualprm400k",
    ),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'rewards' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
