"""From policy samples to step rewards, preference pairs and a chosen answer.

These are the names that scripts start with; everything else is imported from its own module. They are loaded on first
use (PEP 562), so that `import rewards` costs neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rewards.choosing.best_of_n import Answer as Answer
    from rewards.choosing.best_of_n import BestOfN as BestOfN
    from rewards.choosing.curves import best_at_k as best_at_k
    from rewards.choosing.curves import pass_at_k as pass_at_k
    from rewards.choosing.evaluation import SELECTORS as SELECTORS
    from rewards.choosing.evaluation import accuracy_at_k as accuracy_at_k
    from rewards.choosing.evaluation import evaluate as evaluate
    from rewards.choosing.selection import best_of_n as best_of_n
    from rewards.choosing.selection import majority as majority
    from rewards.choosing.selection import weighted_vote as weighted_vote
    from rewards.interchange.trl_rows import read_trl_parquet as read_trl_parquet
    from rewards.interchange.trl_rows import to_trl_row as to_trl_row
    from rewards.interchange.trl_rows import write_trl_parquet as write_trl_parquet
    from rewards.pairing.limits import Limits as Limits
    from rewards.pairing.rules import RULES as RULES
    from rewards.pairing.rules import build_pairs as build_pairs
    from rewards.prm.formats import PRMFormat as PRMFormat
    from rewards.prm.labelling.labels import LabelledGroup as LabelledGroup
    from rewards.prm.labelling.labels import LabelledSolution as LabelledSolution
    from rewards.prm.labelling.monte_carlo import label_steps as label_steps
    from rewards.prm.model_prm import ModelPRM as ModelPRM
    from rewards.prm.reward_function import PRMReward as PRMReward
    from rewards.prm.server_prm import ServerPRM as ServerPRM
    from rewards.prm.trainer import PRMTrainer as PRMTrainer
    from rewards.sampling.generator import Generator as Generator
    from rewards.sampling.generator import SamplingParams as SamplingParams
    from rewards.sampling.openai_generator import OpenAIGenerator as OpenAIGenerator
    from rewards.sampling.transformers_generator import TransformersGenerator as TransformersGenerator
    from rewards.scoring.aggregation import AGGREGATIONS as AGGREGATIONS
    from rewards.scoring.aggregation import aggregate as aggregate
    from rewards.scoring.groups import score_groups as score_groups
    from rewards.scoring.process_reward_model import ProcessRewardModel as ProcessRewardModel
    from rewards.statistics import mean_with_interval as mean_with_interval
    from rewards.steps import split_on_blank_lines as split_on_blank_lines
    from rewards.types import Completion as Completion
    from rewards.types import PreferencePair as PreferencePair
    from rewards.types import Problem as Problem
    from rewards.types import Rollout as Rollout
    from rewards.types import RolloutGroup as RolloutGroup
    from rewards.types import Step as Step
    from rewards.types import StepScores as StepScores
    from rewards.types import Verdict as Verdict
    from rewards.verifying.math_verifier import MathVerifier as MathVerifier
    from rewards.verifying.verification import VERIFIERS as VERIFIERS
    from rewards.verifying.verification import verify_many as verify_many

    __version__: str

_MODULES: dict[str, tuple[str, ...]] = {
    "rewards.choosing.best_of_n": ("Answer", "BestOfN"),
    "rewards.choosing.curves": ("best_at_k", "pass_at_k"),
    "rewards.choosing.evaluation": ("SELECTORS", "accuracy_at_k", "evaluate"),
    "rewards.choosing.selection": ("best_of_n", "majority", "weighted_vote"),
    "rewards.interchange.trl_rows": ("read_trl_parquet", "to_trl_row", "write_trl_parquet"),
    "rewards.pairing.limits": ("Limits",),
    "rewards.pairing.rules": ("RULES", "build_pairs"),
    "rewards.prm.formats": ("PRMFormat",),
    "rewards.prm.labelling.labels": ("LabelledGroup", "LabelledSolution"),
    "rewards.prm.labelling.monte_carlo": ("label_steps",),
    "rewards.prm.model_prm": ("ModelPRM",),
    "rewards.prm.reward_function": ("PRMReward",),
    "rewards.prm.server_prm": ("ServerPRM",),
    "rewards.prm.trainer": ("PRMTrainer",),
    "rewards.sampling.generator": ("Generator", "SamplingParams"),
    "rewards.sampling.openai_generator": ("OpenAIGenerator",),
    "rewards.sampling.transformers_generator": ("TransformersGenerator",),
    "rewards.scoring.aggregation": ("AGGREGATIONS", "aggregate"),
    "rewards.scoring.process_reward_model": ("ProcessRewardModel",),
    "rewards.scoring.groups": ("score_groups",),
    "rewards.statistics": ("mean_with_interval",),
    "rewards.steps": ("split_on_blank_lines",),
    "rewards.types": (
        "Completion",
        "PreferencePair",
        "Problem",
        "Rollout",
        "RolloutGroup",
        "Step",
        "StepScores",
        "Verdict",
    ),
    "rewards.verifying.math_verifier": ("MathVerifier",),
    "rewards.verifying.verification": ("VERIFIERS", "verify_many"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_HOME)


if (_found := find_spec("mpo")) and _found.origin and Path(_found.origin).parents[1] != Path(__file__).parents[1]:
    raise ImportError(
        f"rewards needs the package `mpo` of mpo-prm, but `import mpo` gives {_found.origin}, which hides it: rename it"
    )


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("mpo").__version__
    if name not in _HOME:
        raise AttributeError(f"module 'rewards' has no attribute {name!r}; it has {', '.join(__all__)}")
    try:
        return getattr(import_module(_HOME[name]), name)
    except ModuleNotFoundError as error:
        if error.name not in ("openai", "tenacity"):
            raise
        raise ImportError(f"rewards.{name} needs the extra: pip install -e '.[server]' ({error})") from error


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
