"""The configs of answering: what `recipes/config.py` says, for the commands that choose among samples."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class BestOfNConfig:
    """`mpo best-of-n`: every selector at every k, with intervals."""

    groups: Path = field(metadata={"help": "folder with verified and scored groups"})
    out: Path = field(metadata={"help": "folder for results.json"})
    ks: list[int] = field(default_factory=lambda: [1, 2, 4, 8], metadata={"help": "numbers of candidates"})


@dataclass
class AnswerConfig:
    """`mpo answer`: one question, N candidates, the best of them."""

    question: str = field(metadata={"help": "what to ask"})
    image: list[Path] = field(default_factory=list, metadata={"help": "pictures, in the order of the prompt"})
    policy: Path | None = field(default=None, metadata={"help": "model that answers in this process"})
    base_url: list[str] = field(
        default_factory=list, metadata={"help": "server that answers instead, http://host:8000/v1, or several"}
    )
    model: str | None = field(default=None, metadata={"help": "the server's name of the model"})
    prm: Path | None = field(default=None, metadata={"help": "folder of a PRM; majority needs none"})
    prm_base_url: list[str] = field(
        default_factory=list, metadata={"help": "server that runs the PRM, http://host:8000/v1, or several"}
    )
    prm_model: str | None = field(default=None, metadata={"help": "the server's name of the PRM"})
    prm_read: str = field(default="token_ids", metadata={"help": "of its server: token_ids (vLLM), choice, top"})
    n: int = field(default=8, metadata={"help": "candidates; at most so many with error"})
    selector: str = field(default="prm", metadata={"help": "prm, weighted_vote or majority"})
    aggregation: str = field(default="mean", metadata={"help": "mean, min, prod, last or max"})
    error: float | None = field(
        default=None, metadata={"help": "adaptive N: stop when more candidates change the answer at most so probably"}
    )
    wave: int = field(default=4, metadata={"help": "with error: candidates between two looks"})
    temperature: float = field(default=1.0, metadata={"help": "of the candidates"})
    top_p: float = field(default=1.0, metadata={"help": "nucleus; 1 is off"})
    top_k: int = field(default=0, metadata={"help": "0 is off"})
    max_new_tokens: int = field(default=512, metadata={"help": "a longer answer is cut"})
    seed: int = field(default=0, metadata={"help": "the same seed draws the same candidates"})
    json: bool = field(default=False, metadata={"help": "print one JSON object instead of a table"})


@dataclass
class BeamSearchConfig:
    """`mpo beam-search`: answers found step by step, guided by a PRM."""

    problems: Path = field(metadata={"help": "questions.jsonl; its images are resolved inside its folder"})
    prm: Path = field(metadata={"help": "folder of a PRM (with prm.json)"})
    out: Path = field(metadata={"help": "folder for groups.jsonl (one answer a problem) and searches.jsonl"})
    policy: Path | None = field(default=None, metadata={"help": "model that answers in this process"})
    base_url: list[str] = field(
        default_factory=list, metadata={"help": "server that answers instead, http://host:8000/v1, or several"}
    )
    model: str | None = field(default=None, metadata={"help": "the server's name of the model"})
    width: int = field(default=4, metadata={"help": "W, unfinished prefixes kept a problem"})
    expand: int = field(default=4, metadata={"help": "m, continuations of each; W*m at the first step"})
    max_rounds: int = field(default=12, metadata={"help": "steps of an answer at most"})
    aggregation: str = field(default="mean", metadata={"help": "mean, min, prod, last or max"})
    temperature: float = field(default=1.0, metadata={"help": "of the continuations"})
    top_p: float = field(default=1.0, metadata={"help": "nucleus; 1 is off"})
    top_k: int = field(default=0, metadata={"help": "0 is off"})
    max_new_tokens: int = field(
        default=512, metadata={"help": "of one extension; about a step's length, as what follows the step is cut off"}
    )
    batch_rows: int = field(default=64, metadata={"help": "rows a forward pass, in this process"})
    concurrency: int = field(default=16, metadata={"help": "requests at a time, to each server"})
    problems_a_call: int = field(default=64, metadata={"help": "problems searched together"})
    seed: int = field(default=0, metadata={"help": "the same seed finds the same answers"})
