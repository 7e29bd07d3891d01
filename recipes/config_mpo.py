"""What `mpo train-mpo`, `mpo doctor` and `mpo rounds` may be told; for other stages see `recipes/config.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from recipes.config_training import ModelTraining


@dataclass
class TrainMPOConfig(ModelTraining):
    """`mpo train-mpo`: Mixed Preference Optimization; weights (1, 0, 0) are DPO, (0, 0, 1) the LM loss alone."""

    policy: Path = field(metadata={"help": "model to train; as it is given, it is the reference too"})
    pairs: Path = field(metadata={"help": "folder with pairs.parquet, or a parquet file"})
    out: Path = field(metadata={"help": "folder for the trained policy"})
    max_steps: int = field(default=200, metadata={"help": "optimizer steps"})
    batch_size: int = field(default=16, metadata={"help": "pairs a step, over all micro-batches and processes"})
    learning_rate: float = field(default=2e-4, metadata={"help": "peak, cosine decay"})
    beta: float = field(default=0.1, metadata={"help": "β of the implicit reward"})
    preference_weight: float = field(default=0.8, metadata={"help": "w_p"})
    quality_weight: float = field(default=0.2, metadata={"help": "w_q"})
    generation_weight: float = field(default=1.0, metadata={"help": "w_g"})
    group_by_prompt: bool = field(
        default=False, metadata={"help": "keep the pairs of a prompt together, so that they share it"}
    )
    balance_tokens: bool = field(
        default=False,
        metadata={"help": "micro-batches of one length, even over processes; without an epoch's incomplete step"},
    )
    max_row_tokens: int | None = field(
        default=None, metadata={"help": "longest packed row; a prompt with more responses is repeated"}
    )
    seed: int = field(default=0, metadata={"help": "order of the rows"})
    sample_every: int = field(default=0, metadata={"help": "steps from one look at samples to the next; 0 for none"})
    sample_problems: int = field(default=8, metadata={"help": "problems of the pairs asked at each look"})
    sample_tokens: int = field(default=128, metadata={"help": "tokens of a sample at most"})
    report_to: str = field(
        default="none", metadata={"help": "none, wandb (WANDB_MODE=offline keeps it here), tensorboard or trackio"}
    )


@dataclass
class RoundsConfig:
    """`mpo rounds`: sample, score, pair and train again and again, until the guard says that it no longer helps."""

    settings: Path = field(
        metadata={
            "help": "YAML file with a section a stage: preference_sample, verify, score, pairs, train_mpo, test_sample"
        }
    )
    policy: Path = field(metadata={"help": "model of the first round"})
    prm: Path = field(metadata={"help": "folder of a PRM (with prm.json)"})
    problems: Path = field(metadata={"help": "questions.jsonl whose samples become pairs, with answers"})
    guard: Path = field(metadata={"help": "questions.jsonl of held-out problems with answers, for the guard alone"})
    out: Path = field(metadata={"help": "folder for rounds.json and a folder a round"})
    rounds: int = field(default=3, metadata={"help": "at most; may be raised later"})
    seed: int = field(default=0, metadata={"help": "of the draws and the training"})
