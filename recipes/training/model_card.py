"""README.md of a trained model: what it was made from, with which settings and data, and how to load it.

The card is Markdown with the Hub's metadata block. Paths of this machine are cut to their last part; names that come
from outside are set as code. The licence is left out: it is the base model's and the data's, which are not known here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from mpo.multimodal.files import write_atomic
from mpo.multimodal.hub import NAME
from recipes.stage.cards import CARD, code, fenced, provenance, short, table
from rewards.prm.formats import PRMFormat
from rewards.prm.model_prm import contract_of

_HERE = "path/to/this/folder"
_LOAD_POLICY = f"""from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("{_HERE}")
processor = AutoProcessor.from_pretrained("{_HERE}")"""
_LOAD_PRM = f"""from rewards import Problem
from rewards.prm.model_prm import ModelPRM

prm = ModelPRM.load("{_HERE}")
problem = Problem("1", "How many?", images=("image.png",))
responses = ["Two and three.\\n\\nFinal answer: 5", "Two and two.\\n\\nFinal answer: 4"]
print(prm.select_best_response(problem, responses, return_scores=True))  # best first
print([scores.values for scores in prm.score(problem, responses)])  # P(correct up to here) of each step"""
LOGGED = (
    *("loss", "loss/preference", "loss/quality", "loss/generation", "bco/delta", "rewards/accuracies"),
    *("logps/chosen_per_token", "logps/chosen_per_token_reference"),
    *("step_accuracy", "f1_right", "f1_wrong", "auc", "within_problem_auc", "ece"),
)


def write_policy_card(
    folder: Path, fingerprint: Mapping[str, Any], counts: Mapping[str, Any], trainer: Any, account: Mapping[str, Any]
) -> None:
    """The card of a policy that `MPOTrainer` trained.

    Args:
        folder: of the model.
        fingerprint: `Stage.provenance` of the stage.
        counts: of the stage: pairs in, out and rejected by reason.
        trainer: after training.
        account: the stage's, of its training.
    """
    args, base = trainer.args, fingerprint["sources"]["policy"]
    guard = [("stopped by the guard", _stopped(account))] if "stopped" in account else []
    settings = [
        ("weights w_p, w_q, w_g", f"{args.preference_weight}, {args.quality_weight}, {args.generation_weight}"),
        ("β", args.beta),
        ("δ", f"{args.reward_shift}, {trainer.reward_shift.value:.4g} at the end"),
        ("L_g averages over", f"each {args.generation_average}"),
        *guard,
        *_common_settings(trainer),
    ]
    parts = [
        f"# {short(base)} after Mixed Preference Optimization\n\nTrained with `mpo train-mpo`: L = w_p·L_p + w_q·L_q + "
        "w_g·L_g on pairs of a chosen and a rejected response ([arXiv 2411.10442](https://arxiv.org/abs/2411.10442)). "
        "The reference is the base model itself.",
        "## How to load it\n\n" + fenced(_LOAD_POLICY, "python"),
        table("Settings", ("", "value"), settings),
        _data("pairs", counts),
    ]
    _write(folder, parts, fingerprint, trainer, base=base, tags=["mpo", "dpo", "preference"])


def write_grpo_card(
    folder: Path, fingerprint: Mapping[str, Any], counts: Mapping[str, Any], trainer: Any, account: Mapping[str, Any]
) -> None:
    """The card of a policy that TRL's `GRPOTrainer` trained; `account` is the stage's, of its training."""
    args, base = trainer.args, fingerprint["sources"]["policy"]
    named = zip(trainer.reward_func_names, args.reward_weights, strict=True)
    settings = [
        ("algorithm", fingerprint["settings"]["algorithm"]),
        ("rewards and their weights", ", ".join(f"{name} {weight:g}" for name, weight in named)),
        ("responses per problem", args.num_generations),
        ("β", args.beta),
        ("optimizer steps", account["steps"]),
        ("stopped by the guard", _stopped(account)),
        ("learning rate", f"{args.learning_rate:g}"),
        ("seed", args.seed),
    ]
    parts = [
        f"# {short(base)} after online reinforcement learning\n\nTrained with `mpo train-grpo`, which is TRL's "
        "`GRPOTrainer` with the verifier and the process reward model of this project as rewards.",
        "## How to load it\n\n" + fenced(_LOAD_POLICY, "python"),
        table("Settings", ("", "value"), settings),
        _data("problems", counts),
    ]
    _write(folder, parts, fingerprint, trainer, base=base, tags=["grpo", "reinforcement-learning"])


def write_prm_card(
    folder: Path, fingerprint: Mapping[str, Any], counts: Mapping[str, Any], trainer: Any, prm_format: PRMFormat
) -> None:
    """The card of a process reward model that `PRMTrainer` trained; arguments as above, and its format."""
    base = fingerprint["sources"]["model"]
    contract = {key: value for key, value in contract_of(prm_format, trainer.concentration_head).items() if value != ""}
    parts = [
        f"# A process reward model from {short(base)}\n\nIt gives each step of a response the probability that all is "
        "right up to it. Trained with `mpo train-prm`.",
        "## How to score with it\n\n" + fenced(_LOAD_PRM, "python"),
        "## Its format\n\nHow it was prompted in training, and has to be prompted (`prm.json`):\n\n"
        + fenced(json.dumps(contract, indent=2, ensure_ascii=False), "json"),
        table("Settings", ("", "value"), _common_settings(trainer)),
        _data("responses with labelled steps", counts),
    ]
    tags = ["process-reward-model", "prm", "reward-model"]
    _write(folder, parts, fingerprint, trainer, base=base, tags=tags)


def _stopped(account: Mapping[str, Any]) -> str:
    stopped = account["stopped"]
    return f"{stopped['reason']}: {stopped['words']}" if stopped else "no"


def _common_settings(trainer: Any) -> list[tuple[str, Any]]:
    args, state = trainer.args, trainer.state
    return [
        ("optimizer steps", state.global_step),
        (
            "pairs (for a PRM, problems) per step",
            args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        ),
        (
            "learning rate",
            f"{args.learning_rate:g}, {args.lr_scheduler_type.value}, weight decay {args.weight_decay:g}",
        ),
        ("seed", args.seed),
    ]


def _data(what: str, counts: Mapping[str, Any]) -> str:
    left_out = [(f"left out: {code(reason)}", number) for reason, number in counts["rejected"].items()]
    return table("Data", ("", "number"), [(f"{what} given", counts["in"]), ("trained on", counts["out"]), *left_out])


def _log(history: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [line for line in history if "loss" in line]
    if not lines:
        return []
    first, last = lines[0], lines[-1]
    names = [name for name in LOGGED if name in first and name in last]
    rows = [(code(name), f"{first[name]:.4g}", f"{last[name]:.4g}") for name in names]
    return [table("Log", ("", f"step {first['step']}", f"step {last['step']}"), rows)]


def _write(
    folder: Path, parts: list[str], fingerprint: Mapping[str, Any], trainer: Any, *, base: str, tags: list[str]
) -> None:
    metadata = ModelCardData(
        base_model=base.partition("@")[0] if "@" in base and NAME.fullmatch(base) else Path(base).name,
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        datasets=["local"],
        tags=[*tags, "trl", "mpo-prm"],
    ).to_yaml()
    told = {key: fingerprint[key] for key in ("settings", "inputs")}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
    where = "\n".join([f"## Provenance\n\nFingerprint of settings and inputs: `{digest}`.\n", *provenance(fingerprint)])
    parts = [*parts, *_log(trainer.state.log_history), where]
    write_atomic(folder / CARD, f"---\n{metadata}\n---\n\n" + "\n\n".join(parts) + "\n")
