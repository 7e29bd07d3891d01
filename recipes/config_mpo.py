"""What `mpo train-mpo`, `mpo doctor` and `mpo rounds` may be told; for other stages see `recipes/config.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class TrainMPOConfig:
    """`mpo train-mpo`: Mixed Preference Optimization; weights (1, 0, 0) are DPO, (0, 0, 1) the LM loss alone."""

    policy: Path = field(metadata={"help": "model to train; as it is given, it is the reference too"})
    pairs: Path = field(metadata={"help": "folder with pairs.parquet, or a parquet file"})
    out: Path = field(metadata={"help": "folder for the trained policy"})
    max_steps: int = field(default=200, metadata={"help": "optimizer steps"})
    epochs: float = field(default=0.0, metadata={"help": "passes over the pairs, instead of max_steps; 0 is off"})
    batch_size: int = field(default=16, metadata={"help": "pairs a step, over all micro-batches and processes"})
    per_device_batch: int = field(default=0, metadata={"help": "pairs of a micro-batch; 0: all of a process's at once"})
    learning_rate: float = field(default=2e-4, metadata={"help": "peak, cosine decay"})
    warmup: float = field(default=0.05, metadata={"help": "share of the steps in which the learning rate rises"})
    beta: float = field(default=0.1, metadata={"help": "β of the implicit reward"})
    preference_weight: float = field(default=0.8, metadata={"help": "w_p"})
    quality_weight: float = field(default=0.2, metadata={"help": "w_q"})
    generation_weight: float = field(default=1.0, metadata={"help": "w_g"})
    dtype: str = field(
        default="auto",
        metadata={"help": "the pass runs in float32 or bfloat16; auto: the checkpoint's. Trained weights are float32"},
    )
    gradient_checkpointing: bool = field(default=False, metadata={"help": "compute activations again to save memory"})
    lora_rank: int = field(default=0, metadata={"help": "train adapters of this rank only; 0 trains the weights"})
    lora_alpha: int = field(default=32, metadata={"help": "the adapters' output is scaled by lora_alpha / lora_rank"})
    lora_targets: list[str] = field(
        default_factory=lambda: ["all-linear"],
        metadata={"help": "layers that get adapters, e.g. q_proj v_proj; the LM head never does"},
    )
    freeze_vision: bool = field(default=False, metadata={"help": "train the language model only"})
    max_length: int | None = field(
        default=None, metadata={"help": "most tokens of a pair, images included; longer ones are rejected and counted"}
    )
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
    save_steps: int = field(
        default=0,
        metadata={"help": "steps from one checkpoint to the next; the same command goes on there; 0 for none"},
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
