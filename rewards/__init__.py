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
        "MonteCarloCount",
        "PreferencePair",
        "Problem",
        "Rollout",
        "RolloutGroup",
        "Splitter",
        "Step",
        "StepScores",
        "Unseen",
        "Verdict",
        "Verifier",
        "correctness_of",
    ),
    "rewards.errors": ("StepAlignmentError",),
    "rewards.steps": ("merge_to_at_most", "split_on_blank_lines"),
    "rewards.verifying.answers": ("canonical_answer", "extract_final_answer", "short_answer"),
    "rewards.verifying.math_verifier": ("MathVerifier",),
    "rewards.verifying.workers": ("WorkerVerifier",),
    "rewards.verifying.verification": (
        "VERIFIERS",
        "anls",
        "anls_verifier",
        "choice_verifier",
        "exact_verifier",
        "number_verifier",
        "relaxed_verifier",
        "verify_many",
    ),
    "rewards.scoring.aggregation": ("AGGREGATIONS", "aggregate"),
    "rewards.choosing.adaptive": ("Replay", "replay"),
    "rewards.choosing.best_of_n": ("Answer", "BestOfN"),
    "rewards.choosing.selection": (
        "CHOICES",
        "GroupSelector",
        "best_of_n",
        "majority",
        "weighted_vote",
    ),
    "rewards.choosing.curves": (
        "best_at_k",
        "pass_at_k",
        "ranked_at_k",
        "ranking",
        "vote_at_k",
    ),
    "rewards.choosing.evaluation": ("SELECTORS", "accuracy_at_k", "evaluate"),
    "rewards.statistics": ("Estimate", "mean_with_interval", "paired_difference"),
    "rewards.choosing.selector_warnings": ("TrustWarning", "selector_regret", "trust_warnings"),
    "rewards.sampling.generator": ("Generator",),
    "rewards.pairing.limits": ("Limits",),
    "rewards.pairing.rules": (
        "RULES",
        "Pairing",
        "build_pairs",
        "correctness",
        "correctness_and_prm",
        "prm_margin",
        "seen_by",
        "step_prefix",
    ),
    "rewards.pairing.report": ("PairingReport",),
    "rewards.pairing.dropout_ntp": ("dropout_ntp", "half_prefix"),
    "rewards.scoring.process_reward_model": ("ProcessRewardModel",),
    "rewards.scoring.groups": ("score_groups", "score_unseen"),
    "rewards.scoring.visual_dependence": ("dependence", "visual_dependence"),
    "rewards.prm.evaluating.benchmark": ("BenchmarkResponse", "ScoredResponse", "choose_threshold", "in_development"),
    "rewards.prm.evaluating.benchmark_metrics": ("image_drop",),
    "rewards.prm.evaluating.given_steps": ("score_given_steps",),
    "rewards.prm.evaluating.metrics": ("StepMetrics", "calibration", "step_metrics"),
    "rewards.prm.reward_function": ("PRMReward",),
    "rewards.interchange.mmpr": ("read_mmpr", "write_mmpr"),
    "rewards.interchange.processbench": ("read_processbench",),
    "rewards.interchange.visualprocessbench": ("read_visualprocessbench",),
    "rewards.interchange.trl_rows": ("from_trl_row", "read_trl_parquet", "to_trl_row", "write_trl_parquet"),
    "rewards.prm.labelling.source": ("counts_estimate_mc", "require_estimates"),
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
