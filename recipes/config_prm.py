"""What `mpo train-prm` may be told; for other stages see `recipes/config.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from recipes.config_training import ModelTraining


@dataclass
class TrainPRMConfig(ModelTraining):
    """`mpo train-prm`: train a process reward model on labelled steps."""

    groups: Path = field(metadata={"help": "folder with labelled groups"})
    model: Path = field(metadata={"help": "model to start from"})
    out: Path = field(metadata={"help": "folder for the PRM"})
    prm_format: str = field(default="visualprm", metadata={"help": "a row of rewards/prm/formats.py, or a YAML file"})
    soft_labels: bool = field(default=False, metadata={"help": "label mc itself instead of [mc > threshold]"})
    threshold: float = field(default=0.0, metadata={"help": "a step is right if mc > threshold"})
    until_first_error: bool = field(default=False, metadata={"help": "no labels after the first step whose mc is 0"})
    text_weight: float = field(default=0.0, metadata={"help": "w of the LM loss on right responses; 0 in VisualPRM"})
    advantage: float | None = field(default=None, metadata={"help": "labels +, =, - of mc_i - mc_{i-1}, within this"})
    balance_classes: bool = field(default=False, metadata={"help": "right and wrong steps weigh the same in the loss"})
    max_doubt: float = field(default=1.0, metadata={"help": "no label where P(other side of threshold) is above this"})
    num_problems: int = field(default=0, metadata={"help": "train on the first so many problems; 0 for all"})
    injected: int = field(default=0, metadata={"help": "right responses a problem to repeat with one wrong digit"})
    visual_contrasts: int = field(default=0, metadata={"help": "right responses a problem under another's pictures"})
    max_steps: int = field(default=400, metadata={"help": "optimizer steps"})
    batch_groups: int = field(
        default=4, metadata={"help": "problems a step over all processes, all their responses together"}
    )
    learning_rate: float = field(default=1e-3, metadata={"help": "peak, cosine decay"})
    seed: int = field(default=0, metadata={"help": "order of the rows"})
