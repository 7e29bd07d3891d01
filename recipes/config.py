"""What each stage may be told: one flat dataclass a stage, so that a flag, a YAML key and a field are one thing.

Paths named `out` are folders that the stage creates; other paths are folders (or files) that an earlier stage,
or the user, has made.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from recipes.config_engine import EngineConfig
from recipes.config_mpo import RoundsConfig as RoundsConfig
from recipes.config_mpo import TrainMPOConfig as TrainMPOConfig
from recipes.config_prm import TrainPRMConfig as TrainPRMConfig
from recipes.config_test_time import AnswerConfig as AnswerConfig
from recipes.config_test_time import BeamSearchConfig as BeamSearchConfig
from recipes.config_test_time import BestOfNConfig as BestOfNConfig
from recipes.config_worlds import DeepenConfig as DeepenConfig
from recipes.config_worlds import EasyVQAConfig as EasyVQAConfig
from recipes.config_worlds import ExactLabelConfig as ExactLabelConfig
from recipes.config_worlds import WarmStartConfig as WarmStartConfig
from recipes.config_worlds import WorldConfig as WorldConfig


@dataclass
class SampleConfig(EngineConfig):
    """`mpo sample`: draw N completions a problem, from a policy in this process or behind a server."""

    problems: Path = field(metadata={"help": "questions.jsonl; its images are resolved inside its folder"})
    out: Path = field(metadata={"help": "folder for samples.sqlite and groups.jsonl; the same command goes on there"})
    policy: Path | None = field(default=None, metadata={"help": "model that answers in this process"})
    base_url: list[str] = field(
        default_factory=list, metadata={"help": "server that answers instead, http://host:8000/v1, or several"}
    )
    model: str | None = field(default=None, metadata={"help": "the server's name of the model"})
    num_samples: int = field(default=8, metadata={"help": "completions a problem; may be raised later"})
    temperature: float = field(default=1.0, metadata={"help": "0 is greedy"})
    top_p: float = field(default=1.0, metadata={"help": "nucleus; 1 is off"})
    top_k: int = field(default=0, metadata={"help": "0 is off"})
    max_new_tokens: int = field(default=512, metadata={"help": "a longer answer is cut and never chosen"})
    batch_rows: int = field(default=64, metadata={"help": "rows a forward pass, in this process"})
    concurrency: int = field(default=16, metadata={"help": "requests at a time, to each server"})
    samples_a_request: int = field(default=0, metadata={"help": "largest n of a request to a server; 0 is all"})
    logprobs: bool = field(default=False, metadata={"help": "keep the log-probability of every sampled token"})
    seed: int = field(default=0, metadata={"help": "the same seed draws the same text"})
    swap_images: bool = field(default=False, metadata={"help": "canary: ask with the picture of another problem"})
    on_change: str = field(
        default="refuse", metadata={"help": "folder with other settings: refuse, or segment: keep both in its store"}
    )
    parquet: bool = field(default=False, metadata={"help": "write samples.parquet too, with the images' bytes"})


@dataclass
class VerifyConfig:
    """`mpo verify`: check final answers."""

    groups: Path = field(metadata={"help": "folder with groups.jsonl"})
    out: Path = field(metadata={"help": "folder for the verified groups"})
    verifier: str = field(
        default="math",
        metadata={"help": "exact, math, choice, number, relaxed, anls, or your own package.module:function"},
    )
    workers: int = field(default=1, metadata={"help": "worker processes"})
    timeout_s: float = field(default=5.0, metadata={"help": "a check that takes longer is killed"})


@dataclass
class LabelConfig(EngineConfig):
    """`mpo label-steps`: Monte-Carlo labels, K continuations from the end of each step, fewer on a smaller budget."""

    groups: Path = field(metadata={"help": "folder with verified groups"})
    policy: Path = field(metadata={"help": "model that continues"})
    out: Path = field(metadata={"help": "folder for the labelled groups"})
    budget: str = field(default="full", metadata={"help": "full, sequential or bisect; soft labels need full"})
    num_continuations: int = field(default=16, metadata={"help": "K, 16 in VisualPRM"})
    responses: int = field(default=8, metadata={"help": "responses labelled a problem; right and wrong ones balanced"})
    mixed_only: bool = field(default=True, metadata={"help": "only problems with right and wrong responses"})
    temperature: float = field(default=1.0, metadata={"help": "of the continuations"})
    max_new_tokens: int = field(default=512, metadata={"help": "of the continuations"})
    batch_rows: int = field(default=64, metadata={"help": "rows a forward pass"})
    seed: int = field(default=0, metadata={"help": "draw"})
    keep_continuations: bool = field(default=False, metadata={"help": "their texts too, for pairs by step_prefix"})


@dataclass
class ConvertConfig:
    """`mpo convert`: an InternVL chat or VisualPRM checkpoint of the hub into transformers' own classes."""

    checkpoint: Path = field(metadata={"help": "folder as the hub has it: config.json, safetensors, tokenizer files"})
    out: Path = field(metadata={"help": "folder for the native model; with prm.json if it is a PRM"})
    prm: bool = field(default=False, metadata={"help": "it is a VisualPRM, though its architecture may not say so"})
    system: str | None = field(default=None, metadata={"help": "the PRM's system message; default: the checkpoint's"})
    shard_gb: float = field(default=2.0, metadata={"help": "largest file of weights, in GiB; bounds the memory"})


@dataclass
class ScoreConfig(EngineConfig):
    """`mpo score`: step scores and rewards from a PRM."""

    groups: Path = field(metadata={"help": "folder with groups.jsonl"})
    prm: Path = field(metadata={"help": "folder of a PRM (with prm.json), also of one that a server runs"})
    out: Path = field(metadata={"help": "folder for the scored groups"})
    prm_format: str | None = field(
        default=None, metadata={"help": "of a PRM without prm.json: a row of rewards/prm/formats.py, or a YAML file"}
    )
    aggregation: str = field(default="mean", metadata={"help": "mean, min, prod, last or max"})
    base_url: list[str] = field(
        default_factory=list, metadata={"help": "server that runs the PRM, http://host:8000/v1, or several"}
    )
    model: str | None = field(default=None, metadata={"help": "the server's name of the PRM"})
    read: str = field(default="token_ids", metadata={"help": "of a server: token_ids (vLLM), choice, top (any server)"})
    concurrency: int = field(default=16, metadata={"help": "requests at a time, to each server"})
    batch_rows: int = field(default=64, metadata={"help": "rows a forward pass"})
    visual_dependence: bool = field(
        default=False, metadata={"help": "score with a blank and with another problem's picture too"}
    )


@dataclass
class PairsConfig:
    """`mpo pairs`: chosen and rejected responses."""

    groups: Path = field(metadata={"help": "folder with verified and scored groups"})
    out: Path = field(metadata={"help": "folder for pairs.parquet, report.json and README.md"})
    rule: str = field(
        default="correctness_and_prm",
        metadata={"help": "correctness, correctness_and_prm, prm_margin, step_prefix or dropout_ntp"},
    )
    max_pairs: int = field(default=4, metadata={"help": "pairs a problem"})
    format_negatives: bool = field(default=True, metadata={"help": "reject responses without a final answer too"})
    max_length_ratio: float | None = field(
        default=None, metadata={"help": "longer side over shorter side in characters, at most; 1.2 matches lengths"}
    )
    min_visual_dependence: float | None = field(
        default=None, metadata={"help": "of a chosen response, at least; needs `mpo score --visual_dependence true`"}
    )
    margin: float = field(default=0.1, metadata={"help": "prm_margin: rewards of a pair differ by at least this"})
    policy: Path | None = field(default=None, metadata={"help": "dropout_ntp: model that wrote the responses"})
    temperature: float = field(default=1.0, metadata={"help": "dropout_ntp: of the continuations"})
    max_new_tokens: int = field(default=512, metadata={"help": "dropout_ntp: of the continuations"})
    batch_rows: int = field(default=64, metadata={"help": "dropout_ntp: rows a forward pass"})
    seed: int = field(default=0, metadata={"help": "dropout_ntp: draw"})
    mmpr: bool = field(default=False, metadata={"help": "write InternVL's format too, into OUT/mmpr"})


@dataclass
class ConvertDataConfig:
    """`mpo convert-data FROM TO`: preference pairs (trl, mmpr), or labelled steps (groups, visualprm, stepwise)."""

    source_format: str = field(metadata={"help": "FROM: trl, mmpr, groups, visualprm or stepwise"})
    target_format: str = field(metadata={"help": "TO: the other of trl and mmpr, or another of the three"})
    source: Path = field(metadata={"help": "its file (Parquet, meta.json or JSON lines), or its folder"})
    out: Path = field(metadata={"help": "folder for the other format"})
    image_root: Path | None = field(
        default=None, metadata={"help": "visualprm: folder that image paths are relative to; default: the file's own"}
    )


@dataclass
class PRMEvalConfig:
    """`mpo prm-eval`: a PRM against the step labels of VisualProcessBench, ProcessBench or labelled groups."""

    prm: Path = field(metadata={"help": "folder of a PRM (with prm.json)"})
    benchmark: Path = field(metadata={"help": "file of rows, or folder of labelled groups"})
    out: Path = field(metadata={"help": "folder for results.json and scores.jsonl"})
    prm_format: str | None = field(
        default=None, metadata={"help": "of a PRM without prm.json: a row of rewards/prm/formats.py, or a YAML file"}
    )
    kind: str = field(default="visualprocessbench", metadata={"help": "visualprocessbench, processbench or groups"})
    image_root: Path | None = field(default=None, metadata={"help": "folder of the images; default: the file's own"})
    development: Path | None = field(default=None, metadata={"help": "file or folder for the threshold alone"})
    development_share: float = field(default=0.2, metadata={"help": "else this share of the problems, by their ids"})
    seed: int = field(default=0, metadata={"help": "which problems are the development ones"})
    fixed_threshold: float = field(default=0.5, metadata={"help": "reported beside the chosen one"})
    until_first_error: bool = field(default=False, metadata={"help": "no labels after a response's first wrong step"})
    source_key: str = field(default="source", metadata={"help": "groups: entry of a problem's meta with its source"})
    blank_images: bool = field(default=True, metadata={"help": "score again with blank pictures, report the drop"})
    swap_images: bool = field(default=True, metadata={"help": "score again with other problems' pictures of one size"})
    batch_rows: int = field(default=32, metadata={"help": "rows a forward pass"})


@dataclass
class ReportConfig:
    """`mpo report`: one self-contained HTML page of a run or of an evidence folder."""

    run: Path = field(metadata={"help": "folder of `mpo pipeline` or `mpo evidence`"})
    out: Path | None = field(default=None, metadata={"help": "page to write; default RUN/report.html"})
    problems: int = field(default=24, metadata={"help": "problems shown with their responses"})
    markdown: bool = field(default=False, metadata={"help": "print the tables as Markdown too"})


@dataclass
class ViewConfig:
    """`mpo view`: the report at an address of this machine."""

    run: Path = field(metadata={"help": "folder with report.html, or the page itself"})
    port: int = field(default=0, metadata={"help": "port on 127.0.0.1; 0 takes a free one"})


@dataclass
class EnvConfig:
    """`mpo env`: versions, devices and memory, for a bug report."""

    json: bool = field(default=False, metadata={"help": "one JSON object instead of lines"})


@dataclass
class OwnConfig:
    """Section `own` of a run's settings: a model and problems of yours, in place of a world."""

    policy: Path = field(metadata={"help": "model that is sampled and trained; it can answer already"})
    preference_problems: Path = field(metadata={"help": "questions.jsonl whose samples become pairs, with answers"})
    test_problems: Path = field(metadata={"help": "questions.jsonl of held-out problems, with answers"})
    prm: Path | None = field(default=None, metadata={"help": "a ready PRM (with prm.json, or score.prm_format)"})
    prm_problems: Path | None = field(
        default=None, metadata={"help": "else: questions.jsonl whose samples train a PRM, with answers"}
    )
    prm_model: Path | None = field(default=None, metadata={"help": "model that the PRM starts from; default: policy"})


@dataclass
class PipelineArguments:
    """`mpo pipeline`: the whole loop, one seed."""

    settings: Path = field(metadata={"help": "YAML file with a section a stage, e.g. recipes/configs/digits_demo.yaml"})
    run_dir: Path = field(metadata={"help": "folder of the run; running again goes on where it stopped"})
    seed: int = field(default=0, metadata={"help": "seed of everything but the held-out problems"})
    arms: list[str] = field(default_factory=lambda: ["mpo"], metadata={"help": "mpo, dpo, rft, dpo_lm"})


@dataclass
class EvidenceArguments:
    """`mpo evidence`: the whole loop with every arm and several seeds."""

    settings: Path = field(metadata={"help": "YAML file with a section a stage"})
    run_dir: Path = field(metadata={"help": "folder; one run a seed inside"})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "one run each"})
    jobs: int = field(default=1, metadata={"help": "seeds at a time, one process each with its share of the cores"})
