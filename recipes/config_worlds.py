"""The configs of the small worlds: problems that come with this project, and their first policies."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class WorldConfig:
    """`mpo world`: compose the digit problems and write an untrained policy."""

    out: Path = field(metadata={"help": "folder to write: <split>.jsonl, images/, policy/"})
    seed: int = field(default=0, metadata={"help": "which problems, and the policy's initial weights"})
    num_warm_start: int = field(default=1500, metadata={"help": "demonstrated problems"})
    num_prm: int = field(default=1000, metadata={"help": "problems whose samples train the PRM"})
    num_preference: int = field(default=800, metadata={"help": "problems whose samples become pairs"})
    num_development: int = field(default=200, metadata={"help": "problems on which choices are made"})
    vision_steps: int = field(default=300, metadata={"help": "steps of vision pretraining on warm-start scans"})
    num_test: int = field(default=500, metadata={"help": "held-out problems, for the published table only"})
    solutions: int = field(default=4, metadata={"help": "demonstrated answers a warm-start problem"})


@dataclass
class EasyVQAConfig:
    """`mpo easy-vqa`: problems of the package easy-vqa and an untrained policy."""

    out: Path = field(metadata={"help": "folder to write: <split>.jsonl, images/, policy/"})
    seed: int = field(default=0, metadata={"help": "which questions, and the policy's initial weights"})
    num_warm_start: int = field(default=1500, metadata={"help": "demonstrated questions"})
    num_prm: int = field(default=500, metadata={"help": "questions whose samples train the PRM"})
    num_preference: int = field(default=500, metadata={"help": "questions whose samples become pairs"})
    num_development: int = field(default=200, metadata={"help": "questions on which choices are made"})
    num_test: int = field(default=500, metadata={"help": "questions of the package's test split"})
    solutions: int = field(default=2, metadata={"help": "demonstrated answers a warm-start question"})


@dataclass
class WarmStartConfig:
    """`mpo warm-start`: a short supervised stage on demonstrated answers."""

    policy: Path = field(metadata={"help": "model to train"})
    demonstrations: Path = field(metadata={"help": "folder with groups.jsonl of right answers"})
    out: Path = field(metadata={"help": "folder for the trained policy"})
    max_steps: int = field(default=800, metadata={"help": "optimizer steps"})
    batch_size: int = field(default=32, metadata={"help": "answers a step"})
    learning_rate: float = field(default=2e-3, metadata={"help": "peak, cosine decay"})
    seed: int = field(default=0, metadata={"help": "order of the rows"})


@dataclass
class ExactLabelConfig:
    """`mpo label-exact`: the digits world's own step labels; an upper bound for Monte-Carlo ones."""

    groups: Path = field(metadata={"help": "folder with verified groups of the digits world"})
    policy: Path = field(metadata={"help": "model whose control tokens no response may contain"})
    out: Path = field(metadata={"help": "folder for the labelled groups"})
    responses: int = field(default=8, metadata={"help": "responses labelled a problem; right and wrong ones balanced"})
    mixed_only: bool = field(default=True, metadata={"help": "only problems with right and wrong responses"})
    seed: int = field(default=0, metadata={"help": "choice of the responses"})


@dataclass
class DeepenConfig:
    """`mpo deepen`: the digits policy with more layers, for its PRM to start from."""

    policy: Path = field(metadata={"help": "model to deepen"})
    out: Path = field(metadata={"help": "folder for the deeper model"})
    extra_layers: int = field(default=2, metadata={"help": "decoder layers added on top"})
    seed: int = field(default=0, metadata={"help": "their initial weights"})
