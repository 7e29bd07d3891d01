"""What each stage may be told: one flat dataclass a stage, so that a flag, a YAML key and a field are one thing.

Paths named `out` are folders that the stage creates; other paths are folders (or files) that an earlier stage,
or the user, has made.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class EngineConfig:
    """Where calls are made; what they give does not depend on it."""

    engine: str = field(default="local", kw_only=True, metadata={"help": "local, or ray: several workers"})
    actors: int = field(default=2, kw_only=True, metadata={"help": "workers of engine ray, each loads the model"})


@dataclass(kw_only=True)
class ModelTraining:
    """Schedule, number type, memory, and which weights are trained; a row is a pair of MPO, a problem of a PRM."""

    epochs: float = field(default=0.0, metadata={"help": "passes over the rows, instead of max_steps; 0 is off"})
    warmup: float = field(default=0.05, metadata={"help": "share of the steps in which the learning rate rises"})
    per_device_batch: int = field(default=0, metadata={"help": "rows of a micro-batch; 0: all of a process's at once"})
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
        default=None,
        metadata={
            "help": "most tokens of a prompt with a response, images included; longer ones are rejected and counted"
        },
    )
    dataloader_num_workers: int | None = field(
        default=None, metadata={"help": "processes that make batches ahead; default: 4 with an accelerator, else none"}
    )
    save_steps: int = field(
        default=0,
        metadata={"help": "steps from one checkpoint to the next; the same command goes on there; 0 for none"},
    )


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
    solutions: int = field(default=4, metadata={"help": "demonstrated answers per warm-start problem"})


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
    solutions: int = field(default=2, metadata={"help": "demonstrated answers per warm-start question"})


@dataclass
class WarmStartConfig:
    """`mpo warm-start`: a short supervised stage on demonstrated answers."""

    policy: Path = field(metadata={"help": "model to train"})
    demonstrations: Path = field(metadata={"help": "folder with groups.jsonl of right answers"})
    out: Path = field(metadata={"help": "folder for the trained policy"})
    max_steps: int = field(default=800, metadata={"help": "optimizer steps"})
    batch_size: int = field(default=32, metadata={"help": "answers per step"})
    learning_rate: float = field(default=2e-3, metadata={"help": "peak, cosine decay"})
    seed: int = field(default=0, metadata={"help": "order of the rows"})


@dataclass
class ExactLabelConfig:
    """`mpo label-exact`: the digits world's own step labels; an upper bound for Monte-Carlo ones."""

    groups: Path = field(metadata={"help": "folder with verified groups of the digits world"})
    policy: Path = field(metadata={"help": "model whose control tokens no response may contain"})
    out: Path = field(metadata={"help": "folder for the labelled groups"})
    responses: int = field(
        default=8, metadata={"help": "responses labelled per problem; right and wrong ones balanced"}
    )
    mixed_only: bool = field(default=True, metadata={"help": "only problems with right and wrong responses"})
    seed: int = field(default=0, metadata={"help": "choice of the responses"})


@dataclass
class DeepenConfig:
    """`mpo deepen`: the digits policy with more layers, for its PRM to start from."""

    policy: Path = field(metadata={"help": "model to deepen"})
    out: Path = field(metadata={"help": "folder for the deeper model"})
    extra_layers: int = field(default=2, metadata={"help": "decoder layers added on top"})
    seed: int = field(default=0, metadata={"help": "their initial weights"})


@dataclass
class SampleConfig(EngineConfig):
    """`mpo sample`: draw N completions per problem, from a policy in this process or behind a server."""

    problems: Path = field(metadata={"help": "questions.jsonl; its images are resolved inside its folder"})
    out: Path = field(metadata={"help": "folder for samples.sqlite and groups.jsonl; the same command goes on there"})
    policy: Path | None = field(default=None, metadata={"help": "model that answers in this process"})
    base_url: list[str] = field(
        default_factory=list, metadata={"help": "server that answers instead, http://host:8000/v1, or several"}
    )
    model: str | None = field(default=None, metadata={"help": "the server's name of the model"})
    num_samples: int = field(default=8, metadata={"help": "completions per problem; may be raised later"})
    temperature: float = field(default=1.0, metadata={"help": "0 is greedy"})
    top_p: float = field(default=1.0, metadata={"help": "nucleus; 1 is off"})
    top_k: int = field(default=0, metadata={"help": "0 is off"})
    max_new_tokens: int = field(default=512, metadata={"help": "a longer answer is cut and never chosen"})
    batch_rows: int = field(default=64, metadata={"help": "rows per forward pass, in this process"})
    concurrency: int = field(default=16, metadata={"help": "requests at a time, to each server"})
    samples_a_request: int = field(default=0, metadata={"help": "largest n of a request to a server; 0 is all"})
    logprobs: bool = field(default=False, metadata={"help": "keep the log-probability of every sampled token"})
    seed: int = field(default=0, metadata={"help": "the same seed draws the same text"})
    swap_images: bool = field(default=False, metadata={"help": "canary: ask with the image of another problem"})
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
    responses: int = field(
        default=8, metadata={"help": "responses labelled per problem; right and wrong ones balanced"}
    )
    mixed_only: bool = field(default=True, metadata={"help": "only problems with right and wrong responses"})
    temperature: float = field(default=1.0, metadata={"help": "of the continuations"})
    max_new_tokens: int = field(default=512, metadata={"help": "of the continuations"})
    batch_rows: int = field(default=64, metadata={"help": "rows per forward pass"})
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
    batch_rows: int = field(default=64, metadata={"help": "rows per forward pass"})
    visual_dependence: bool = field(
        default=False, metadata={"help": "score with a blank and with another problem's image too"}
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
    max_pairs: int = field(default=4, metadata={"help": "pairs per problem"})
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
    batch_rows: int = field(default=64, metadata={"help": "dropout_ntp: rows per forward pass"})
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
    blank_images: bool = field(default=True, metadata={"help": "score again with blank images, report the drop"})
    swap_images: bool = field(default=True, metadata={"help": "score again with other problems' images of one size"})
    batch_rows: int = field(default=32, metadata={"help": "rows per forward pass"})


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
    """`mpo env`: what a bug report needs besides `accelerate env`."""

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

    settings: Path = field(
        metadata={"help": "YAML file with a section per stage, e.g. recipes/configs/digits_demo.yaml"}
    )
    run_dir: Path = field(metadata={"help": "folder of the run; running again goes on where it stopped"})
    seed: int = field(default=0, metadata={"help": "seed of everything but the held-out problems"})
    arms: list[str] = field(default_factory=lambda: ["mpo"], metadata={"help": "mpo, dpo, rft, dpo_lm"})


@dataclass
class EvidenceArguments:
    """`mpo evidence`: the whole loop with every arm and several seeds."""

    settings: Path = field(metadata={"help": "YAML file with a section per stage"})
    run_dir: Path = field(metadata={"help": "folder; one run a seed inside"})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "one run each"})
    jobs: int = field(default=1, metadata={"help": "seeds at a time, one process each with its share of the cores"})


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
    injected: int = field(default=0, metadata={"help": "right responses per problem to repeat with one wrong digit"})
    visual_contrasts: int = field(default=0, metadata={"help": "right responses per problem under another's images"})
    max_steps: int = field(default=400, metadata={"help": "optimizer steps"})
    batch_groups: int = field(
        default=4, metadata={"help": "problems per step over all processes, all their responses together"}
    )
    learning_rate: float = field(default=1e-3, metadata={"help": "peak, cosine decay"})
    seed: int = field(default=0, metadata={"help": "order of the rows"})


@dataclass
class TrainMPOConfig(ModelTraining):
    """`mpo train-mpo`: Mixed Preference Optimization; weights (1, 0, 0) are DPO, (0, 0, 1) the LM loss alone."""

    policy: Path = field(metadata={"help": "model to train; as it is given, it is the reference too"})
    pairs: Path = field(metadata={"help": "folder with pairs.parquet, or a parquet file"})
    out: Path = field(metadata={"help": "folder for the trained policy"})
    max_steps: int = field(default=200, metadata={"help": "optimizer steps"})
    batch_size: int = field(default=16, metadata={"help": "pairs per step, over all micro-batches and processes"})
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
            "help": "YAML file with one section per stage: preference_sample, verify, score, pairs, train_mpo, "
            "test_sample"
        }
    )
    policy: Path = field(metadata={"help": "model of the first round"})
    prm: Path = field(metadata={"help": "folder of a PRM (with prm.json)"})
    problems: Path = field(metadata={"help": "questions.jsonl whose samples become pairs, with answers"})
    guard: Path = field(metadata={"help": "questions.jsonl of held-out problems with answers, for the guard alone"})
    out: Path = field(metadata={"help": "folder for rounds.json and a folder per round"})
    rounds: int = field(default=3, metadata={"help": "at most; may be raised later"})
    seed: int = field(default=0, metadata={"help": "of the draws and the training"})


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
    image: list[Path] = field(default_factory=list, metadata={"help": "images, in the order of the prompt"})
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
    width: int = field(default=4, metadata={"help": "W, unfinished prefixes kept per problem"})
    expand: int = field(default=4, metadata={"help": "m, continuations of each; W*m at the first step"})
    max_rounds: int = field(default=12, metadata={"help": "steps of an answer at most"})
    aggregation: str = field(default="mean", metadata={"help": "mean, min, prod, last or max"})
    temperature: float = field(default=1.0, metadata={"help": "of the continuations"})
    top_p: float = field(default=1.0, metadata={"help": "nucleus; 1 is off"})
    top_k: int = field(default=0, metadata={"help": "0 is off"})
    max_new_tokens: int = field(
        default=512, metadata={"help": "of one extension; about a step's length, as what follows the step is cut off"}
    )
    batch_rows: int = field(default=64, metadata={"help": "rows per forward pass, in this process"})
    concurrency: int = field(default=16, metadata={"help": "requests at a time, to each server"})
    problems_a_call: int = field(default=64, metadata={"help": "problems searched together"})
    seed: int = field(default=0, metadata={"help": "the same seed finds the same answers"})
