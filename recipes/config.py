"""What each stage may be told: one flat dataclass a stage, so that a flag, a YAML key and a field are one thing.

Paths named `out` are folders that the stage creates; other paths are folders (or files) that an earlier stage,
or the user, has made.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

# The values that a field may have; `--help` lists them, and a test holds them to the tables behind them.
AfterError = Literal["unlabelled", "wrong"]
Aggregation = Literal["mean", "min", "prod", "last", "max"]
Algorithm = Literal["grpo", "gspo", "dr_grpo"]
Arm = Literal[
    "mpo",
    "mpo_paper",
    "mpo_first_error",
    "mpo_all_wrong",
    "dpo",
    "dpo_lm",
    "rft",
    "rft_filter",
    "rft_all_wrong",
    "mpo_random_span",
    "mpo_mc_span",
    "mpo_exact_span",
    "grpo",
    "mpo_grpo",
    "mpo_first_error_grpo",
    "rft_grpo",
]
BenchmarkKind = Literal["visualprocessbench", "processbench", "groups"]
Budget = Literal["full", "sequential", "bisect"]
Choose = Literal["all", "middle", "mixed", "uncertain", "random"]
DataFormat = Literal["trl", "mmpr", "groups", "visualprm", "visualprm_conversations", "stepwise"]
Engine = Literal["local", "ray"]
Jpeg = Literal["none", "marked", "all"]
NumberType = Literal["auto", "float32", "bfloat16"]
OneReward = Literal["self_certainty", "scores", "reward_model", "judge"]
OnChange = Literal["refuse", "segment"]
PublishedForm = Literal[
    "visualprm400k",
    "prm800k",
    "math_shepherd",
    "stepwise",
    "mmpr",
    "rlaif_v",
    "llava",
    "swift",
    "sharegpt",
    "chat",
    "visualprocessbench",
    "processbench",
    "problems",
]
Read = Literal["token_ids", "choice", "top"]
RejectedPart = Literal["full", "first_bad_step", "up_to_first_bad_step"]
Role = Literal["policy", "model", "checkpoint"]
Rule = Literal["correctness", "correctness_and_prm", "prm_margin", "step_prefix", "dropout_ntp"]
Scored = Literal["solution", "thought", "both"]
StepLoss = Literal["cross_entropy", "binomial"]
Selector = Literal["prm", "lower_bound", "weighted_vote", "vote_prod", "vote_min", "vote_min_4", "majority"]
SpanSource = Literal["prm", "mc", "exact", "random"]
Tracker = Literal["none", "wandb", "tensorboard", "trackio"]
VoteBy = Literal["reward", "mean", "min", "prod", "last", "max"]
# Models: a folder, or org/name or org/name@revision on the hub (`recipes/stage/models.py`). A policy answers, so it is
# no PRM; a checkpoint is as its authors published it, in whatever layout.
PolicyPath = Annotated[Path, "policy"]
ModelPath = Annotated[Path, "model"]
CheckpointPath = Annotated[Path, "checkpoint"]

# What numbers may be; NaN and infinity never are. Outside these a command is refused before anything is imported.
Count = Annotated[int, Ge(1)]
Whole = Annotated[int, Ge(0)]
Port = Annotated[int, Ge(0), Le(65535)]
NotNegative = Annotated[float, Ge(0)]
Positive = Annotated[float, Gt(0)]
Share = Annotated[float, Ge(0), Le(1)]
Between = Annotated[float, Gt(0), Lt(1)]
TopP = Annotated[float, Gt(0), Le(1)]
Warmup = Annotated[float, Ge(0), Lt(1)]
Group = Annotated[int, Ge(2)]
Factor = Annotated[float, Ge(1)]


@dataclass
class EngineConfig:
    """Where calls are made; what they give does not depend on it."""

    engine: Engine = field(
        default="local",
        kw_only=True,
        metadata={"help": "where the model runs: in this process, or in several Ray workers"},
    )
    actors: Count = field(
        default=2, kw_only=True, metadata={"help": "with --engine ray: number of workers; each loads the model"}
    )


@dataclass
class OwnServerConfig:
    """A server of the stage's own, which answers in place of a model in this process."""

    serve: bool = field(
        default=False,
        kw_only=True,
        metadata={"help": "start a server with --policy by --serve_command, ask it, and end it with the stage"},
    )
    serve_command: str = field(
        default="vllm serve {model} --host 127.0.0.1 --port {port}",
        kw_only=True,
        metadata={
            "help": "with --serve true: what starts it, without a shell; {model} and {port} are filled in. Any server "
            "with OpenAI's chat completions will do"
        },
    )


@dataclass
class PromptConfig:
    """How a question is put to the policy."""

    prompt: str = field(
        default="cot",
        kw_only=True,
        metadata={
            "help": "how the question is put to the policy: direct (the bare question), cot, cot_boxed, r1, or a text "
            "file with {question} in it"
        },
    )
    system: str = field(
        default="", kw_only=True, metadata={"help": "system message, instead of the one that the prompt brings"}
    )


@dataclass
class ColumnsConfig:
    """What the columns of a table of problems are called."""

    columns: list[str] = field(
        default_factory=list,
        kw_only=True,
        metadata={
            "help": "for problems with other column names: part=column, such as question=query answer=label; parts are "
            "id, question, image, answer, choices, hint"
        },
    )


@dataclass(kw_only=True)
class ServedPRMConfig:
    """Where a PRM runs, if not in this process."""

    prm_base_url: list[str] = field(
        default_factory=list,
        metadata={"help": "server that runs the PRM, such as http://host:8000/v1; several may be given"},
    )
    prm_model: str | None = field(default=None, metadata={"help": "name of the PRM on its server"})
    prm_read: Read = field(
        default="token_ids",
        metadata={"help": "how to read scores from its server: token_ids needs vLLM, top works with any server"},
    )


@dataclass(kw_only=True)
class WeightTraining:
    """Warm-up, number type, memory, and which weights are trained."""

    warmup: Warmup = field(
        default=0.05, metadata={"help": "share of the steps during which the learning rate rises to its peak"}
    )
    per_device_batch: Whole = field(
        default=0,
        metadata={"help": "rows per micro-batch on each device; 0 takes a device's whole share of the step at once"},
    )
    dtype: NumberType = field(
        default="auto",
        metadata={
            "help": "number type of the forward and backward pass; auto takes the checkpoint's. Trained weights are "
            "float32"
        },
    )
    gradient_checkpointing: bool = field(
        default=False,
        metadata={"help": "recompute activations in the backward pass, which saves memory and costs time"},
    )
    lora_rank: Whole = field(
        default=0, metadata={"help": "train LoRA adapters of this rank; 0 trains the weights themselves"}
    )
    lora_alpha: Count = field(default=32, metadata={"help": "the adapters' output is scaled by lora_alpha / lora_rank"})
    lora_targets: list[str] = field(
        default_factory=lambda: ["all-linear"],
        metadata={"help": "layers that get adapters, for example q_proj v_proj; the LM head never gets one"},
    )
    freeze_vision: bool = field(
        default=False, metadata={"help": "leave the vision tower as it is and train the language model"}
    )
    save_steps: Whole = field(
        default=100, metadata={"help": "steps between checkpoints, from which the same command resumes; 0 saves none"}
    )


@dataclass(kw_only=True)
class ModelTraining(WeightTraining):
    """The same of training on rows that are there beforehand; a row is a pair of MPO, a problem of a PRM."""

    epochs: NotNegative = field(
        default=0.0, metadata={"help": "passes over the rows, in place of --max_steps; 1 if neither is given"}
    )
    min_steps: Whole = field(
        default=20,
        metadata={
            "help": "with --epochs: least optimizer steps; the batch shrinks until there are as many; 0 leaves it as "
            "it is"
        },
    )
    max_length: Count | None = field(
        default=None,
        metadata={
            "help": "most tokens of a prompt with its response, images included; longer rows are rejected and "
            "counted, never cut"
        },
    )
    jpeg_augmentation: Jpeg = field(
        default="marked",
        metadata={
            "help": "training images that are compressed as JPEG at a random quality from 75 to 100, anew in every "
            "epoch: those that the data marks (data_augment in MMPR's meta.json), all, or none"
        },
    )
    dataloader_num_workers: Whole | None = field(
        default=None, metadata={"help": "processes that make batches ahead; default: 4 with an accelerator, else none"}
    )


@dataclass(kw_only=True)
class GuardedTraining(PromptConfig, ColumnsConfig, ServedPRMConfig):
    """A run that samples from its policy: how it asks, what judges the responses, and the guard that may end it."""

    verifier: str = field(
        default="auto", metadata={"help": "what checks answers, as for `mpo verify`; judge is not possible here"}
    )
    workers: Count = field(default=1, metadata={"help": "processes that check answers"})
    timeout_s: Positive = field(
        default=5.0,
        metadata={"help": "seconds after which a check is stopped; its response is then neither right nor wrong"},
    )
    prm: ModelPath | None = field(
        default=None,
        metadata={
            "help": "PRM (with prm.json), needed for one on a server too: its scores are a reward of train-grpo, and "
            "the guard measures how much of them remains without the right image"
        },
    )
    aggregation: Aggregation = field(
        default="mean", metadata={"help": "how the step scores of a response become the PRM's reward"}
    )
    guard: Path | None = field(
        default=None,
        metadata={
            "help": "questions.jsonl of the guard, held out, which are asked with --prompt; without it train-mpo has "
            "no guard, and that of train-grpo looks at the first of the problems trained on"
        },
    )
    guard_every: Whole = field(
        default=20, metadata={"help": "steps between two looks of the guard; 0 turns the guard off"}
    )
    guard_problems: Count = field(default=16, metadata={"help": "most problems that the guard looks at"})
    guard_stop: bool = field(
        default=True,
        metadata={"help": "whether the guard ends training, or only logs; its limits are checked in either case"},
    )
    guard_remaining: Share = field(
        default=0.95,
        metadata={"help": "guard: largest share of the PRM's reward that may remain without the right image"},
    )
    guard_repetition: Share = field(
        default=0.5, metadata={"help": "guard: largest share of responses that may repeat themselves"}
    )
    guard_drift: Factor = field(
        default=3.0, metadata={"help": "guard: largest factor by which the mean length may grow or shrink"}
    )
    guard_patience: Count = field(
        default=2, metadata={"help": "guard: looks in a row that must agree before training ends"}
    )
    image_root: Path | None = field(
        default=None, metadata={"help": "folder of the images, anywhere below it; default: that of the problems' file"}
    )


@dataclass
class WorldConfig:
    """`mpo world`: compose the digit problems and write an untrained policy."""

    out: Path = field(metadata={"help": "folder for the problems (SPLIT.jsonl), images/ and policy/"})
    seed: Whole = field(default=0, metadata={"help": "chooses the problems and the policy's initial weights"})
    kinds: list[str] = field(
        default_factory=lambda: ["sum", "range", "number"],
        metadata={"help": "kinds of questions: sum, range, number, triple; every digit counts in all but range"},
    )
    num_warm_start: Whole = field(default=1500, metadata={"help": "problems with demonstrated responses"})
    num_prm: Whole = field(default=1000, metadata={"help": "problems whose samples train the PRM"})
    num_preference: Whole = field(default=800, metadata={"help": "problems whose samples become pairs"})
    num_development: Whole = field(default=200, metadata={"help": "problems on which design choices are made"})
    vision_steps: Whole = field(
        default=300, metadata={"help": "steps of pretraining for the vision tower, on the warm-start scans"}
    )
    num_test: Whole = field(default=500, metadata={"help": "held-out problems, for the reported numbers alone"})
    solutions: Count = field(default=4, metadata={"help": "demonstrated responses per warm-start problem"})


@dataclass
class EasyVQAConfig:
    """`mpo easy-vqa`: problems of the package easy-vqa and an untrained policy."""

    out: Path = field(metadata={"help": "folder for the problems (SPLIT.jsonl), images/ and policy/"})
    seed: Whole = field(default=0, metadata={"help": "chooses the questions and the policy's initial weights"})
    num_warm_start: Whole = field(default=1500, metadata={"help": "questions with demonstrated responses"})
    num_prm: Whole = field(default=500, metadata={"help": "questions whose samples train the PRM"})
    num_preference: Whole = field(default=500, metadata={"help": "questions whose samples become pairs"})
    num_development: Whole = field(default=200, metadata={"help": "questions on which design choices are made"})
    num_test: Whole = field(default=500, metadata={"help": "held-out questions, from the package's test split"})
    solutions: Count = field(default=2, metadata={"help": "demonstrated responses per warm-start question"})


@dataclass
class WarmStartConfig:
    """`mpo warm-start`: a short supervised stage on demonstrated answers."""

    policy: PolicyPath = field(metadata={"help": "model to train"})
    demonstrations: Path = field(metadata={"help": "folder with a groups.jsonl of right responses"})
    out: Path = field(metadata={"help": "folder for the trained policy"})
    max_steps: Whole = field(default=800, metadata={"help": "optimizer steps"})
    batch_size: Count = field(default=32, metadata={"help": "responses per step"})
    learning_rate: Positive = field(default=0.002, metadata={"help": "peak learning rate; it decays along a cosine"})
    seed: Whole = field(default=0, metadata={"help": "order of the rows"})


@dataclass
class ExactLabelConfig:
    """`mpo label-exact`: the digits world's own step labels; an upper bound for Monte-Carlo ones."""

    groups: Path = field(metadata={"help": "folder with verified groups of the digits world"})
    policy: ModelPath = field(metadata={"help": "model whose control tokens may not occur in a response"})
    out: Path = field(metadata={"help": "folder for the labelled groups"})
    responses: Count = field(
        default=8, metadata={"help": "responses to label per problem, balanced between right and wrong ones"}
    )
    mixed_only: bool = field(
        default=True, metadata={"help": "skip problems whose responses are all right or all wrong"}
    )
    seed: Whole = field(default=0, metadata={"help": "chooses the responses"})


@dataclass
class DeepenConfig:
    """`mpo deepen`: the digits policy with more layers, for its PRM to start from."""

    policy: PolicyPath = field(metadata={"help": "model to deepen"})
    out: Path = field(metadata={"help": "folder for the deeper model"})
    extra_layers: Whole = field(default=2, metadata={"help": "decoder layers to add on top"})
    seed: Whole = field(default=0, metadata={"help": "initial weights of the new layers"})


@dataclass
class SplitConfig:
    """`mpo split`: one file of questions in parts that share no image."""

    problems: Path = field(metadata={"help": "questions.jsonl; its images lie in its folder, or below --image_root"})
    out: Path = field(metadata={"help": "folder for a file per part, such as test.jsonl, and their images"})
    prm: Share = field(default=0.4, metadata={"help": "share of the questions whose responses train a PRM"})
    preference: Share = field(default=0.3, metadata={"help": "share whose responses become pairs"})
    development: Share = field(default=0.0, metadata={"help": "share for choices between settings, such as a guard"})
    test: Share = field(default=0.3, metadata={"help": "share that is held out for the reported numbers"})
    seed: Whole = field(default=0, metadata={"help": "another seed draws other parts"})
    image_root: Path | None = field(
        default=None,
        metadata={"help": "folder of the images, anywhere below it; they stay there, and the parts need it too"},
    )


@dataclass
class SampleConfig(EngineConfig, OwnServerConfig, PromptConfig, ColumnsConfig):
    """`mpo sample`: draw N completions per problem, from a policy in this process or behind a server."""

    problems: Path = field(
        metadata={
            "help": "problems: JSON lines, a VLMEvalKit TSV, Parquet, a folder that datasets saved, or "
            "hub:NAME[:CONFIG][:SPLIT]; images lie in the folder of the file, or below --image_root"
        }
    )
    out: Path = field(
        metadata={"help": "folder for samples.sqlite and groups.jsonl; the same command resumes an interrupted run"}
    )
    policy: PolicyPath | None = field(default=None, metadata={"help": "model that answers in this process"})
    base_url: list[str] = field(
        default_factory=list,
        metadata={"help": "server that answers instead of --policy, such as http://host:8000/v1; several may be given"},
    )
    model: str | None = field(default=None, metadata={"help": "name of the model on the server"})
    num_samples: Count = field(
        default=8, metadata={"help": "responses per problem; a later run may ask for more and keeps these"}
    )
    temperature: NotNegative = field(default=1.0, metadata={"help": "sampling temperature; 0 is greedy decoding"})
    top_p: TopP = field(
        default=1.0,
        metadata={"help": "sample from the most likely tokens that together have this probability; 1 turns it off"},
    )
    top_k: Whole = field(default=0, metadata={"help": "sample from this many most likely tokens; 0 turns it off"})
    max_new_tokens: Count = field(
        default=512, metadata={"help": "most tokens of a response; one that is cut there is never chosen in a pair"}
    )
    batch_rows: Count | None = field(
        default=None,
        metadata={"help": "responses per forward pass; default: 64 on a CPU, what memory holds on a GPU, up to 256"},
    )
    concurrency: Count = field(default=16, metadata={"help": "requests in flight per server"})
    samples_a_request: Whole = field(
        default=0,
        metadata={"help": "most responses to ask for in one request to a server; 0 asks for all of a problem's"},
    )
    logprobs: bool = field(default=False, metadata={"help": "keep the log-probability of every sampled token"})
    seed: Whole = field(default=0, metadata={"help": "the same seed draws the same responses"})
    swap_images: bool = field(
        default=False,
        metadata={"help": "ask every question with another problem's image, to see what the image is worth"},
    )
    on_change: OnChange = field(
        default="refuse",
        metadata={
            "help": "if the folder holds samples of other settings: refuse to run, or keep both in separate segments "
            "of its store"
        },
    )
    parquet: bool = field(default=False, metadata={"help": "also write samples.parquet, which contains the images"})
    image_root: Path | None = field(
        default=None, metadata={"help": "folder of the images, anywhere below it; default: that of the problems' file"}
    )


@dataclass
class ImportConfig(ColumnsConfig):
    """`mpo import FORM SOURCE`: published data, as the commands here read it."""

    form: PublishedForm = field(metadata={"help": "FORM, what SOURCE is; docs/formats.md describes each"})
    source: Path = field(
        metadata={"help": "SOURCE: a file, the folder of a release, or for tables hub:NAME[:CONFIG][:SPLIT]"}
    )
    out: Path = field(
        metadata={"help": "folder to write: pairs.parquet, groups.jsonl, test.jsonl or problems.jsonl, and images/"}
    )
    sample: Whole = field(default=0, metadata={"help": "take so many rows of each file, to look first; 0 takes all"})
    image_root: Path | None = field(
        default=None, metadata={"help": "folder that image paths are relative to; default: the source's own"}
    )


@dataclass
class ImportResponsesConfig(ColumnsConfig):
    """`mpo import-responses`: responses made elsewhere become a folder of samples."""

    responses: list[Path] = field(
        metadata={
            "help": "files of responses, such as own JSON lines with response or responses, in any form that "
            "docs/formats.md lists; of several files each gives further samples"
        }
    )
    out: Path = field(metadata={"help": "folder for groups.jsonl, problems.jsonl and images/"})
    problems: Path | None = field(
        default=None,
        metadata={
            "help": "problems that the responses answer, by id: anything that --problems of `mpo sample` takes; "
            "default: the questions in the files themselves"
        },
    )
    image_root: Path | None = field(
        default=None, metadata={"help": "folder that image paths are relative to; default: each file's own"}
    )


@dataclass
class VerifyConfig:
    """`mpo verify`: check final answers."""

    groups: Path = field(metadata={"help": "folder of `mpo sample`"})
    out: Path = field(metadata={"help": "folder for the verified groups"})
    verifier: str = field(
        default="auto",
        metadata={
            "help": "auto (picks one for each problem by its reference and choices), auto_rounded (the same, with "
            "numbers as close as benchmarks ask), math, number, rounded, choice, yes_no, short, exact, relaxed, anls, "
            "vqa, your own package.module:function, or judge (a model behind base_url)"
        },
    )
    second_verifier: str = field(
        default="",
        metadata={
            "help": "check every response with this verifier too; a response on which the two disagree is in no pair"
        },
    )
    base_url: list[str] = field(
        default_factory=list,
        metadata={"help": "for judge: its server, such as http://host:8000/v1; several may be given"},
    )
    model: str | None = field(default=None, metadata={"help": "for judge: name of the model on the server"})
    concurrency: Count = field(default=16, metadata={"help": "for judge: requests in flight per server"})
    workers: Count = field(default=1, metadata={"help": "processes that check answers"})
    timeout_s: Positive = field(
        default=5.0,
        metadata={
            "help": "seconds after which a check is stopped; its response then counts as neither right nor wrong"
        },
    )


@dataclass
class ContinuerConfig(EngineConfig, OwnServerConfig):
    """The model that continues responses: in this process, or behind one server or several."""

    policy: PolicyPath | None = field(
        default=None,
        kw_only=True,
        metadata={"help": "model that continues the responses in this process, usually the one that wrote them"},
    )
    base_url: list[str] = field(
        default_factory=list,
        kw_only=True,
        metadata={
            "help": "server that continues them instead, such as http://host:8000/v1; several may be given, and each "
            "image keeps to one"
        },
    )
    model: str | None = field(default=None, kw_only=True, metadata={"help": "name of the model on the server"})
    concurrency: Count = field(default=16, kw_only=True, metadata={"help": "requests in flight per server"})
    samples_a_request: Whole = field(
        default=0,
        kw_only=True,
        metadata={"help": "most continuations to ask for in one request to a server; 0 asks for all of a step's"},
    )


@dataclass
class LabelConfig(ContinuerConfig):
    """`mpo label-steps`: Monte-Carlo labels, K continuations from the end of each step, fewer on a smaller budget."""

    groups: Path = field(metadata={"help": "folder of `mpo verify`"})
    out: Path = field(metadata={"help": "folder for the labelled groups"})
    budget: Budget = field(
        default="full",
        metadata={
            "help": "how continuations are spent: full gives every step all of them, the others stop early; "
            "--soft_labels of train-prm needs full"
        },
    )
    num_continuations: Count = field(
        default=16, metadata={"help": "K, continuations from the end of each step; VisualPRM takes 16"}
    )
    prm_format: str = field(
        default="visualprm",
        metadata={
            "help": "the PRM's format, as in train-prm: responses with more steps than it takes are merged first"
        },
    )
    responses: Count = field(
        default=8, metadata={"help": "responses to label per problem, balanced between right and wrong ones"}
    )
    mixed_only: bool = field(
        default=True, metadata={"help": "skip problems whose responses are all right or all wrong"}
    )
    choose: Choose = field(
        default="all",
        metadata={
            "help": "which problems to label: those that are right about half of the time (middle), with right and "
            "wrong responses (mixed), whose scored steps the PRM is least sure of (uncertain), or, as a control, any"
        },
    )
    choose_fraction: TopP | None = field(
        default=None,
        metadata={"help": "with --choose: share of the problems that could be labelled; the best are taken"},
    )
    max_continuations: Whole = field(
        default=0,
        metadata={
            "help": "label only as many problems, in random order, as this many continuations surely suffice for; "
            "0 is no limit"
        },
    )
    temperature: NotNegative = field(default=1.0, metadata={"help": "sampling temperature of the continuations"})
    max_new_tokens: Count = field(default=512, metadata={"help": "most tokens of a continuation"})
    batch_rows: Count | None = field(
        default=None,
        metadata={
            "help": "continuations per forward pass, in this process; default: 64 on a CPU, what memory holds on a "
            "GPU, up to 256"
        },
    )
    seed: Whole = field(default=0, metadata={"help": "the same seed draws the same continuations"})
    keep_continuations: bool = field(
        default=False, metadata={"help": "keep the texts of the continuations too, for pairs with --rule step_prefix"}
    )
    max_tokens_total: Whole = field(
        default=0,
        metadata={
            "help": "stop when this many tokens have been generated, over all runs of the command; a larger number "
            "continues, 0 is no limit"
        },
    )
    price_per_million_tokens: NotNegative = field(
        default=0.0, metadata={"help": "of generated tokens; the estimate then says what they will cost"}
    )


@dataclass
class ConvertConfig:
    """`mpo convert`: an InternVL chat or VisualPRM checkpoint of the hub into transformers' own classes."""

    checkpoint: CheckpointPath = field(
        metadata={"help": "checkpoint as its authors published it: config.json, safetensors, tokenizer files"}
    )
    out: Path = field(metadata={"help": "folder for the converted model, with prm.json if it is a PRM"})
    prm: bool = field(
        default=False, metadata={"help": "treat it as a VisualPRM although its architecture does not say so"}
    )
    system: str | None = field(
        default=None, metadata={"help": "system message of the PRM; default: the checkpoint's own"}
    )
    shard_gb: Positive = field(
        default=2.0,
        metadata={"help": "size limit of a weight file in GiB; also bounds the memory that the conversion needs"},
    )


@dataclass
class ScoreConfig(EngineConfig):
    """`mpo score`: step scores and rewards from a PRM."""

    groups: Path = field(metadata={"help": "folder with a groups.jsonl, of `mpo verify` or `mpo sample`"})
    prm: ModelPath = field(
        metadata={"help": "PRM, with its prm.json or --prm_format; needed for a PRM on a server too"}
    )
    out: Path = field(metadata={"help": "folder for the scored groups"})
    prm_format: str | None = field(
        default=None,
        metadata={"help": "how to ask a PRM that has no prm.json: a name of rewards/prm/formats.py, or a YAML file"},
    )
    aggregation: Aggregation = field(
        default="mean", metadata={"help": "how the step scores of a response become its reward"}
    )
    score: Scored = field(
        default="solution",
        metadata={"help": "which steps to score where the policy thinks before it answers"},
    )
    base_url: list[str] = field(
        default_factory=list,
        metadata={"help": "server that runs the PRM, such as http://host:8000/v1; several may be given"},
    )
    model: str | None = field(default=None, metadata={"help": "name of the PRM on the server"})
    read: Read = field(
        default="token_ids",
        metadata={"help": "how to read scores from the server: token_ids needs vLLM, top works with any server"},
    )
    concurrency: Count = field(default=16, metadata={"help": "requests in flight per server"})
    batch_rows: Count = field(default=64, metadata={"help": "responses per forward pass"})
    visual_dependence: bool = field(
        default=False,
        metadata={
            "help": "score again with a blank image and with another problem's, to see how much the score depends on "
            "the image"
        },
    )


@dataclass
class RateConfig:
    """`mpo rate`: one reward per response, without a PRM."""

    groups: Path = field(metadata={"help": "folder with a groups.jsonl, of `mpo verify` or `mpo sample`"})
    out: Path = field(metadata={"help": "folder for the rated groups"})
    by: OneReward = field(
        default="self_certainty",
        metadata={
            "help": "self_certainty (from the log-probabilities that `mpo sample --logprobs` keeps), scores (of a "
            "critic that ran elsewhere), reward_model (one with a scalar head) or judge (any model, which is asked for "
            "a grade)"
        },
    )
    scores: Path | None = field(
        default=None,
        metadata={"help": "for scores: JSON lines with problem_id, index (place among its responses) and score"},
    )
    reward_model: ModelPath | None = field(
        default=None, metadata={"help": "for reward_model: its folder, with value_head.safetensors"}
    )
    judge: ModelPath | None = field(default=None, metadata={"help": "for judge: a model in this process"})
    base_url: list[str] = field(
        default_factory=list,
        metadata={"help": "for judge: its server, such as http://host:8000/v1; several may be given"},
    )
    model: str | None = field(default=None, metadata={"help": "for judge: name of the model on the server"})
    max_new_tokens: Count = field(default=1024, metadata={"help": "for judge: most tokens of its reply"})
    concurrency: Count = field(default=16, metadata={"help": "for judge: requests in flight per server"})
    batch_rows: Count = field(default=8, metadata={"help": "responses per forward pass, in this process"})


@dataclass
class OverlapConfig:
    """`mpo overlap`: near-duplicates between training and test problems."""

    training: list[Path] = field(
        metadata={"help": "what is trained on: files of problems, or folders of samples, scores or pairs"}
    )
    test: list[Path] = field(metadata={"help": "files of test problems, in any form that --problems takes"})
    out: Path = field(metadata={"help": "folder for near_duplicates.jsonl and overlap.json"})


@dataclass
class ContinueConfig(ContinuerConfig):
    """`mpo continue`: for problems whose samples are all wrong, continuations of their sound beginnings."""

    groups: Path = field(metadata={"help": "folder of `mpo score`"})
    out: Path = field(metadata={"help": "folder for the continued responses, verified; score them next"})
    prefixes: Count = field(default=4, metadata={"help": "most different beginnings per problem, the longest first"})
    num_continuations: Count = field(default=4, metadata={"help": "K, continuations of each beginning"})
    span_source: SpanSource = field(default="prm", metadata={"help": "what finds the first bad step"})
    bad_step_threshold: float | None = field(
        default=None,
        metadata={"help": "a step is bad below this score (default 0.5), or at most at this count (default 0)"},
    )
    temperature: NotNegative = field(default=1.0, metadata={"help": "sampling temperature of the continuations"})
    max_new_tokens: Count = field(default=512, metadata={"help": "most tokens of a continuation"})
    batch_rows: Count | None = field(
        default=None,
        metadata={
            "help": "continuations per forward pass, in this process; default: 64 on a CPU, what memory holds on a "
            "GPU, up to 256"
        },
    )
    seed: Whole = field(default=0, metadata={"help": "the same seed draws the same continuations"})


@dataclass
class PairsConfig(ContinuerConfig):
    """`mpo pairs`: chosen and rejected responses."""

    groups: Path = field(metadata={"help": "folder with verified responses, and scores if the rule needs them"})
    out: Path = field(metadata={"help": "folder for pairs.parquet, report.json and README.md"})
    rule: Rule = field(
        default="correctness_and_prm",
        metadata={"help": "how pairs are made; correctness, step_prefix and dropout_ntp need no PRM"},
    )
    max_pairs: Count = field(default=4, metadata={"help": "most pairs per problem"})
    format_negatives: bool = field(
        default=False,
        metadata={
            "help": "also reject responses that state no final answer at all, which teaches the policy to state one"
        },
    )
    disputed: bool = field(
        default=False,
        metadata={"help": "also use responses on which the two verifiers of `mpo verify` disagree"},
    )
    max_length_ratio: Positive | None = field(
        default=None,
        metadata={
            "help": "most times that one response of a pair may be longer than the other, in characters; 1.2 makes "
            "them about equal"
        },
    )
    min_visual_dependence: float | None = field(
        default=None,
        metadata={"help": "least visual dependence of a chosen response; needs `mpo score --visual_dependence`"},
    )
    min_step_score: float | None = field(
        default=None,
        metadata={"help": "least step score of a chosen response; 0 turns it off. Default: 0.5 for the PRM rules"},
    )
    rejected_span: RejectedPart | None = field(
        default=None,
        metadata={
            "help": "part of a rejected response that the preference and quality losses count; full is the paper's. "
            "Default: first_bad_step for the PRM rules and step_prefix, else full"
        },
    )
    span_source: SpanSource | None = field(
        default=None,
        metadata={
            "help": "what finds the first bad step: step scores, Monte-Carlo counts, exact labels, or chance, as a "
            "control. Default: mc for step_prefix, else prm"
        },
    )
    bad_step_threshold: float | None = field(
        default=None,
        metadata={"help": "a step is bad below this score (default 0.5), or at most at this count (default 0)"},
    )
    continued: Path | None = field(
        default=None,
        metadata={"help": "folder of `mpo continue`, scored: problems whose samples are all wrong give pairs too"},
    )
    margin: NotNegative = field(
        default=0.1, metadata={"help": "for prm_margin: least difference between the rewards of a pair"}
    )
    policy: PolicyPath | None = field(
        default=None,
        kw_only=True,
        metadata={"help": "for dropout_ntp: model that wrote the responses, in this process"},
    )
    base_url: list[str] = field(
        default_factory=list,
        kw_only=True,
        metadata={"help": "for dropout_ntp: server of that model instead, such as http://host:8000/v1, or several"},
    )
    temperature: NotNegative = field(
        default=1.0, metadata={"help": "for dropout_ntp: sampling temperature of the continuations"}
    )
    max_new_tokens: Count = field(default=512, metadata={"help": "for dropout_ntp: most tokens of a continuation"})
    batch_rows: Count = field(default=64, metadata={"help": "for dropout_ntp: continuations per forward pass"})
    seed: Whole = field(default=0, metadata={"help": "for dropout_ntp: the same seed draws the same continuations"})
    mmpr: bool = field(default=False, metadata={"help": "also write InternVL's MMPR format, to OUT/mmpr"})


@dataclass
class ConvertDataConfig:
    """`mpo convert-data FROM TO`: preference pairs (trl, mmpr), or labelled steps (the others)."""

    source_format: DataFormat = field(metadata={"help": "FROM, the format to read"})
    target_format: DataFormat = field(
        metadata={"help": "TO, the format to write: trl and mmpr hold pairs, the others labelled steps"}
    )
    source: Path = field(metadata={"help": "the file to read (Parquet, meta.json or JSON lines), or its folder"})
    out: Path = field(metadata={"help": "folder to write"})
    image_root: Path | None = field(
        default=None,
        metadata={"help": "for visualprm: folder that image paths are relative to; default: the file's own"},
    )
    after_error: AfterError = field(
        default="unlabelled",
        metadata={
            "help": "for visualprm: what steps with 0 of 0 continuations behind a first error are: without a label, "
            "or wrong, as InternVL's own conversion reads them"
        },
    )


@dataclass
class PRMEvalConfig:
    """`mpo prm-eval`: a PRM against the step labels of VisualProcessBench, ProcessBench or labelled groups."""

    prm: ModelPath = field(metadata={"help": "PRM (with prm.json)"})
    benchmark: Path = field(metadata={"help": "file of the benchmark, or folder of labelled groups"})
    out: Path = field(metadata={"help": "folder for results.json and scores.jsonl"})
    prm_format: str | None = field(
        default=None,
        metadata={"help": "how to ask a PRM that has no prm.json: a name of rewards/prm/formats.py, or a YAML file"},
    )
    kind: BenchmarkKind = field(default="visualprocessbench", metadata={"help": "what --benchmark is"})
    image_root: Path | None = field(
        default=None, metadata={"help": "folder that image paths are relative to; default: the file's own"}
    )
    development: Path | None = field(
        default=None,
        metadata={"help": "file or folder on which the threshold is chosen; default: a share of the benchmark"},
    )
    development_share: Between = field(
        default=0.2, metadata={"help": "share of the problems on which the threshold is chosen, without --development"}
    )
    seed: Whole = field(default=0, metadata={"help": "chooses the development problems"})
    fixed_threshold: Between = field(default=0.5, metadata={"help": "threshold that is reported beside the chosen one"})
    until_first_error: bool = field(
        default=False, metadata={"help": "ignore labels after the first wrong step of a response"}
    )
    source_key: str = field(
        default="source", metadata={"help": "for groups: key of a problem's meta that names its source"}
    )
    blank_images: bool = field(default=True, metadata={"help": "score again with blank images and report the drop"})
    swap_images: bool = field(
        default=True, metadata={"help": "score again with other problems' images of the same size and report the drop"}
    )
    batch_rows: Count = field(default=32, metadata={"help": "rows per forward pass"})
    base_url: list[str] = field(
        default_factory=list,
        metadata={"help": "server that runs the PRM, such as http://host:8000/v1; several may be given"},
    )
    model: str | None = field(default=None, metadata={"help": "name of the PRM on the server"})
    read: Read = field(
        default="token_ids",
        metadata={"help": "how to read scores from the server: token_ids needs vLLM, top works with any server"},
    )
    concurrency: Count = field(default=16, metadata={"help": "requests in flight per server"})


@dataclass
class ReportConfig:
    """`mpo report`: one self-contained HTML page of a run or of an evidence folder, or of what differs between two."""

    run: Path = field(metadata={"help": "folder of `mpo pipeline` or `mpo evidence`"})
    out: Path | None = field(
        default=None, metadata={"help": "page to write; default: RUN/report.html, or AGAINST/comparison.html"}
    )
    problems: Whole = field(default=48, metadata={"help": "problems to show with their responses"})
    markdown: bool = field(default=False, metadata={"help": "also print the tables as Markdown"})
    against: Path | None = field(
        default=None, metadata={"help": "another such folder: compare the two on the test problems that they share"}
    )


@dataclass
class ViewConfig:
    """`mpo view`: the report at an address of this machine."""

    run: Path = field(metadata={"help": "folder with a report.html, or the page itself"})
    port: Port = field(default=0, metadata={"help": "port on 127.0.0.1; 0 takes a free one"})


@dataclass
class ServeConfig:
    """`mpo serve`: scores of a PRM over HTTP, for trainers and rerankers in other processes."""

    prm: ModelPath = field(metadata={"help": "PRM (with prm.json)"})
    prm_format: str | None = field(
        default=None,
        metadata={"help": "how to ask a PRM that has no prm.json: a name of rewards/prm/formats.py, or a YAML file"},
    )
    host: str = field(
        default="127.0.0.1",
        metadata={"help": "address to listen at; one that others can reach needs a token in MPO_SERVE_TOKEN"},
    )
    port: Port = field(default=8100, metadata={"help": "port to listen at; 0 takes a free one"})
    aggregation: Aggregation = field(
        default="mean", metadata={"help": "how a response's step scores become its reward"}
    )
    batch_rows: Count = field(default=32, metadata={"help": "responses per forward pass, of whoever asks"})
    most_waiting: Count = field(
        default=1024, metadata={"help": "responses that may wait; a request on top is told to come again"}
    )


@dataclass
class CheckConfig:
    """`mpo check`: whether every finished stage of a run still holds what it wrote."""

    run: Path = field(metadata={"help": "folder of a run, or of a stage"})


@dataclass
class SettingsConfig:
    """`mpo settings`: the settings files that come with the package."""

    name: str | None = field(default=None, metadata={"help": "file to print; without it, all are listed"})


@dataclass
class EnvConfig:
    """`mpo env`: what a bug report needs besides `accelerate env`."""

    json: bool = field(default=False, metadata={"help": "print one JSON object instead of lines"})


@dataclass
class OwnConfig(ColumnsConfig):
    """Section `own` of a run's settings: a model and problems of yours, in place of a world."""

    policy: PolicyPath = field(
        metadata={"help": "model that is sampled and trained; it must be able to answer already"}
    )
    preference_problems: Path = field(
        metadata={"help": "questions.jsonl with answers; responses to these become pairs"}
    )
    test_problems: Path = field(metadata={"help": "questions.jsonl with answers, held out for the reported numbers"})
    prm: ModelPath | None = field(
        default=None, metadata={"help": "a PRM that is ready to use (with prm.json, or score.prm_format)"}
    )
    prm_problems: Path | None = field(
        default=None, metadata={"help": "without prm: questions.jsonl with answers; responses to these train a PRM"}
    )
    prm_model: ModelPath | None = field(
        default=None, metadata={"help": "model that the PRM is trained from; default: policy"}
    )
    image_root: Path | None = field(
        default=None, metadata={"help": "folder of the images, anywhere below it; default: those of the files"}
    )


@dataclass
class PipelineArguments:
    """`mpo pipeline`: the whole loop, one seed."""

    settings: Path = field(
        metadata={"help": "YAML file with a section per stage, or a name of `mpo settings` such as digits_demo"}
    )
    run_dir: Path = field(metadata={"help": "folder of the run; the same command resumes where it stopped"})
    seed: Whole = field(default=0, metadata={"help": "seed of everything except the held-out problems"})
    arms: list[Arm] = field(
        default_factory=lambda: ["mpo"], metadata={"help": "methods to train on the same responses"}
    )


@dataclass
class EvidenceArguments:
    """`mpo evidence`: the whole loop with every arm and several seeds."""

    settings: Path = field(
        metadata={"help": "YAML file with a section per stage, or a name of `mpo settings` such as digits"}
    )
    run_dir: Path = field(metadata={"help": "folder for one run per seed"})
    seeds: list[Whole] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "one run each"})
    arms: list[Arm] = field(default_factory=list, metadata={"help": "methods to train; default: all of them"})
    jobs: Count = field(default=1, metadata={"help": "runs at a time, each in a process with its share of the cores"})


@dataclass
class TrainPRMConfig(ModelTraining):
    """`mpo train-prm`: train a process reward model on labelled steps."""

    groups: Path = field(metadata={"help": "folder of `mpo label-steps`"})
    model: ModelPath = field(metadata={"help": "model to start from"})
    out: Path = field(metadata={"help": "folder for the PRM"})
    prm_format: str = field(
        default="visualprm",
        metadata={"help": "how the PRM will be asked: a name of rewards/prm/formats.py, or a YAML file"},
    )
    soft_labels: bool = field(
        default=False,
        metadata={"help": "train on mc itself, the share of right continuations, instead of mc > threshold"},
    )
    loss: StepLoss = field(
        default="cross_entropy",
        metadata={
            "help": "what is minimised per step: the cross-entropy of its label, or the binomial likelihood of its "
            "count, right continuations of all that were drawn, which weighs a step by its draws"
        },
    )
    concentration: Positive | None = field(
        default=None,
        metadata={
            "help": "with --loss binomial: a Beta-Binomial of this concentration, for continuations of a step that "
            "are alike; the smaller it is, the less more draws count. With --concentration_head: of every step before "
            "training"
        },
    )
    concentration_head: bool = field(
        default=False,
        metadata={
            "help": "with --loss binomial: train a small head that predicts the concentration of each step; the PRM "
            "then tells the spread of its step scores"
        },
    )
    threshold: NotNegative = field(
        default=0.0, metadata={"help": "a step counts as right if mc, its share of right continuations, is above this"}
    )
    good_above: Share | None = field(
        default=None,
        metadata={"help": "with --bad_below: a step is right if mc is above this; steps between the two are ignored"},
    )
    bad_below: Share | None = field(
        default=None, metadata={"help": "with --good_above: a step is wrong if mc is below this"}
    )
    consensus: Path | None = field(
        default=None,
        metadata={
            "help": "folder of labels of the same responses from a second source; a step counts only where both agree, "
            "and disagreements are listed in disagreements.jsonl"
        },
    )
    earlier: list[Path] = field(
        default_factory=list,
        metadata={
            "help": "folders of earlier labels, which are trained on too, so that a PRM that continues does not forget "
            "what it learned from them"
        },
    )
    earlier_share: Between = field(
        default=0.5,
        metadata={"help": "with --earlier: share of the problems that are earlier ones, drawn at random"},
    )
    until_first_error: bool = field(default=False, metadata={"help": "ignore steps after the first one with mc = 0"})
    text_weight: NotNegative = field(
        default=0.0, metadata={"help": "weight of a language-model loss on right responses; VisualPRM has none"}
    )
    as_released: bool = field(
        default=False,
        metadata={
            "help": "train on rows as VisualPRM's own code: true signs in the history, sign and end of turn predicted "
            "over the whole vocabulary"
        },
    )
    advantage: NotNegative | None = field(
        default=None,
        metadata={"help": "label the change of mc from step to step as +, = or -; changes within this value are ="},
    )
    balance_classes: bool = field(
        default=False, metadata={"help": "let right and wrong steps weigh the same in the loss"}
    )
    max_doubt: Share = field(
        default=1.0,
        metadata={
            "help": "drop labels that are on the wrong side of the threshold with more than this probability; 1 keeps "
            "all"
        },
    )
    num_problems: Whole = field(default=0, metadata={"help": "train on this many of the first problems; 0 takes all"})
    injected: Whole = field(
        default=0,
        metadata={"help": "right responses per problem that are repeated with one wrong digit, as wrong ones"},
    )
    visual_contrasts: Whole = field(
        default=0,
        metadata={"help": "right responses per problem that are repeated with another problem's image, as wrong ones"},
    )
    max_steps: Whole = field(default=0, metadata={"help": "optimizer steps, in place of --epochs; 0 is off"})
    batch_groups: Count = field(
        default=32, metadata={"help": "problems per step over all processes, each with all its responses"}
    )
    learning_rate: Positive = field(
        default=1e-05, metadata={"help": "peak learning rate, with cosine decay; the default is VisualPRM's for 8B"}
    )
    seed: Whole = field(default=0, metadata={"help": "order of the rows"})


@dataclass
class TrainMPOConfig(ModelTraining, GuardedTraining):
    """`mpo train-mpo`: Mixed Preference Optimization; weights (1, 0, 0) are DPO, (0, 0, 1) the LM loss alone."""

    policy: PolicyPath = field(metadata={"help": "model to train; as it is at the start, it is also the reference"})
    pairs: Path = field(metadata={"help": "folder of `mpo pairs`, or a Parquet file of TRL rows"})
    out: Path = field(metadata={"help": "folder for the trained policy"})
    max_steps: Whole = field(default=0, metadata={"help": "optimizer steps, in place of --epochs; 0 is off"})
    batch_size: Count = field(default=64, metadata={"help": "pairs per step, over all micro-batches and processes"})
    learning_rate: Positive = field(
        default=1e-06,
        metadata={
            "help": "peak learning rate, with cosine decay; the default is safe for all weights of 1-8B, ten times as "
            "much for LoRA"
        },
    )
    beta: Positive = field(default=0.1, metadata={"help": "β, how strongly the policy is held to the reference"})
    preference_weight: NotNegative = field(default=0.8, metadata={"help": "w_p, weight of the preference loss (DPO)"})
    quality_weight: NotNegative = field(default=0.2, metadata={"help": "w_q, weight of the quality loss (BCO)"})
    generation_weight: NotNegative = field(
        default=1.0, metadata={"help": "w_g, weight of the language-model loss on chosen responses"}
    )
    group_by_prompt: bool = field(
        default=False, metadata={"help": "put the pairs of a prompt into one batch, so that they share its computation"}
    )
    balance_tokens: bool = field(
        default=False,
        metadata={
            "help": "fill micro-batches with rows of similar length, evenly over processes; drops an epoch's "
            "incomplete last step"
        },
    )
    max_row_tokens: Count | None = field(
        default=None, metadata={"help": "most tokens of a packed row; a prompt whose responses need more is repeated"}
    )
    master_weights: bool = field(
        default=False,
        metadata={
            "help": "keep the trained weights in bfloat16 and float32 copies in the optimizer: faster passes and a "
            "smaller reference, rounded a little differently; one process, no LoRA"
        },
    )
    seed: Whole = field(default=0, metadata={"help": "order of the rows"})
    sample_every: Whole = field(
        default=0, metadata={"help": "print sampled responses every so many steps; 0 never does"}
    )
    sample_problems: Count = field(default=8, metadata={"help": "problems to sample responses for"})
    sample_tokens: Count = field(default=128, metadata={"help": "most tokens of such a response"})
    guard_tokens: Count = field(default=512, metadata={"help": "guard: most tokens of a response that it looks at"})
    report_to: Tracker = field(
        default="none",
        metadata={"help": "where metrics are logged; wandb stays on this machine with WANDB_MODE=offline"},
    )


@dataclass
class TrainGRPOConfig(GuardedTraining, WeightTraining):
    """`mpo train-grpo`: online reinforcement learning with the verifier and the PRM as rewards (TRL's GRPOTrainer)."""

    policy: PolicyPath = field(metadata={"help": "model to train"})
    problems: Path = field(metadata={"help": "problems to answer in training, of any kind that `mpo sample` takes"})
    out: Path = field(metadata={"help": "folder for the trained policy"})
    algorithm: Algorithm = field(
        default="grpo",
        metadata={
            "help": "grpo: ratios of tokens, advantages divided by the group's deviation; gspo: ratios of whole "
            "responses; dr_grpo: no division by a response's length or by the deviation"
        },
    )
    max_steps: Count = field(default=100, metadata={"help": "optimizer steps"})
    batch_size: Count = field(
        default=64, metadata={"help": "responses per optimizer step, over all micro-batches and processes"}
    )
    num_generations: Group = field(default=8, metadata={"help": "G, responses per problem that are compared"})
    updates_per_generation: Count = field(
        default=1, metadata={"help": "optimizer steps that share one round of sampling; 1 is on-policy"}
    )
    learning_rate: Positive = field(
        default=1e-06, metadata={"help": "peak learning rate, constant after the warm-up; ten times as much for LoRA"}
    )
    beta: NotNegative = field(
        default=0.0, metadata={"help": "β, weight of the KL divergence from the policy at the start; 0 needs no copy"}
    )
    epsilon: Positive | None = field(
        default=None, metadata={"help": "ε, lower clip range of the ratio; default: 0.2, of gspo 0.0003"}
    )
    epsilon_high: Positive | None = field(
        default=None, metadata={"help": "upper clip range of the ratio; default: that of epsilon, of gspo 0.0004"}
    )
    temperature: Positive = field(default=1.0, metadata={"help": "sampling temperature"})
    top_p: TopP = field(
        default=1.0,
        metadata={"help": "sample from the most likely tokens that together have this probability; 1 turns it off"},
    )
    top_k: Whole = field(default=0, metadata={"help": "sample from this many most likely tokens; 0 turns it off"})
    max_new_tokens: Count = field(default=512, metadata={"help": "most tokens of a response"})
    vllm_base_url: str = field(
        default="", metadata={"help": "vLLM server (`trl vllm-serve`) that samples in place of this process"}
    )
    verifier_weight: NotNegative = field(
        default=1.0, metadata={"help": "weight of the verifier's reward, 1 for a right answer and 0 for a wrong one"}
    )
    prm_weight: NotNegative = field(default=1.0, metadata={"help": "with --prm: weight of its reward"})
    prm_gate: bool = field(
        default=False,
        metadata={"help": "count the PRM's reward only where the answer is right, if a reference answer exists"},
    )
    format_weight: NotNegative = field(
        default=0.1,
        metadata={"help": "weight of the format's reward: 1 for a response that ends and states an answer, else 0"},
    )
    length_weight: NotNegative = field(
        default=0.0, metadata={"help": "weight of the length's reward, from 0 down to -1 near --max_new_tokens"}
    )
    seed: Whole = field(default=0, metadata={"help": "order of the problems, and sampling"})
    report_to: Tracker = field(
        default="none",
        metadata={"help": "where metrics are logged; wandb stays on this machine with WANDB_MODE=offline"},
    )


@dataclass
class RoundsConfig(ColumnsConfig):
    """`mpo rounds`: sample, score, pair and train again and again, until the guard says that it no longer helps."""

    settings: Path = field(
        metadata={
            "help": "YAML file with the sections preference_sample, verify, score, pairs, train_mpo and test_sample, "
            "for a refresh also label_steps, train_prm and refresh_prm; or a name of `mpo settings`"
        }
    )
    policy: PolicyPath = field(metadata={"help": "model that the first round starts from"})
    prm: ModelPath = field(metadata={"help": "PRM (with prm.json)"})
    problems: Path = field(metadata={"help": "questions.jsonl with answers; responses to these become pairs"})
    guard: Path = field(metadata={"help": "questions.jsonl with answers, held out to decide when to stop"})
    out: Path = field(metadata={"help": "folder for rounds.json and one folder per round"})
    image_root: Path | None = field(
        default=None, metadata={"help": "folder of the images, anywhere below it; default: those of the files"}
    )
    rounds: Count = field(default=3, metadata={"help": "most rounds; a later run may ask for more"})
    refresh_budget: Whole = field(
        default=0,
        metadata={
            "help": "most continuations per round to label steps of the new policy's responses with, on which the PRM "
            "then continues its training; 0 leaves the PRM as it is"
        },
    )
    prm_labels: list[Path] = field(
        default_factory=list,
        metadata={
            "help": "with --refresh_budget: folders of `mpo label-steps` that the PRM was trained on; every refresh "
            "repeats some of them"
        },
    )
    seed: Whole = field(default=0, metadata={"help": "seed of sampling and training"})


@dataclass
class RerankConfig:
    """`mpo rerank`: scored responses, best first."""

    groups: Path = field(metadata={"help": "folder of `mpo score`"})
    top: Whole = field(default=0, metadata={"help": "print so many responses per problem; 0 prints all"})
    json: bool = field(default=False, metadata={"help": "print one JSON object per response"})


@dataclass
class BestOfNConfig:
    """`mpo best-of-n`: every selector at every k, with intervals."""

    groups: Path = field(metadata={"help": "folder with verified and scored responses"})
    out: Path = field(metadata={"help": "folder for results.json"})
    ks: list[Count] = field(
        default_factory=lambda: [1, 2, 4, 8], metadata={"help": "numbers of responses to choose among"}
    )
    scored: bool = field(
        default=True, metadata={"help": "whether the responses have rewards; without, only votes and blind rulers"}
    )
    skip_unverified: bool = field(
        default=False, metadata={"help": "leave out problems that no verifier could check, instead of refusing them"}
    )
    pessimism: NotNegative = field(
        default=1.0,
        metadata={"help": "for lower_bound: z, how many times its spread is taken off a response's score"},
    )
    aggregation: Aggregation | None = field(
        default=None,
        metadata={
            "help": "for lower_bound: how step scores and their spreads become one number; default: as they were scored"
        },
    )


@dataclass
class EvaluateArguments:
    """`mpo evaluate`: policies × critics × N on benchmarks, as one table and one page."""

    settings: Path = field(
        metadata={"help": "YAML file with policies, benchmarks and critics, or a name of `mpo settings`"}
    )
    out: Path = field(metadata={"help": "folder for every sample and score, and for results/"})


@dataclass
class AnswerConfig(PromptConfig, ServedPRMConfig):
    """`mpo answer`: one question, N responses, the best of them."""

    question: str = field(metadata={"help": "the question"})
    image: list[Path] = field(
        default_factory=list, metadata={"help": "image of the question; several are given in the order of the prompt"}
    )
    policy: PolicyPath | None = field(default=None, metadata={"help": "model that answers in this process"})
    base_url: list[str] = field(
        default_factory=list,
        metadata={"help": "server that answers instead of --policy, such as http://host:8000/v1; several may be given"},
    )
    model: str | None = field(default=None, metadata={"help": "name of the model on the server"})
    prm: ModelPath | None = field(default=None, metadata={"help": "PRM; --selector majority needs none"})
    n: Count = field(default=8, metadata={"help": "responses to draw; with --error, at most this many"})
    selector: Selector = field(default="prm", metadata={"help": "how one of the responses is chosen"})
    aggregation: Aggregation = field(
        default="mean", metadata={"help": "how the step scores of a response become its reward"}
    )
    vote_weight: VoteBy = field(
        default="reward",
        metadata={"help": "for weighted_vote: what weighs a vote, the reward or the step scores in one number"},
    )
    vote_power: float = field(default=1.0, metadata={"help": "for weighted_vote: power of the weight"})
    pessimism: NotNegative = field(
        default=1.0,
        metadata={"help": "for lower_bound: z, how many times its spread is taken off a response's score"},
    )
    error: Share | None = field(
        default=None,
        metadata={
            "help": "adaptive N: stop once the probability that more responses would change the answer is at most this"
        },
    )
    wave: Count = field(default=4, metadata={"help": "with --error: responses to draw between two checks"})
    temperature: NotNegative = field(default=1.0, metadata={"help": "sampling temperature; 0 is greedy decoding"})
    top_p: TopP = field(
        default=1.0,
        metadata={"help": "sample from the most likely tokens that together have this probability; 1 turns it off"},
    )
    top_k: Whole = field(default=0, metadata={"help": "sample from this many most likely tokens; 0 turns it off"})
    max_new_tokens: Count = field(default=512, metadata={"help": "most tokens of a response"})
    seed: Whole = field(default=0, metadata={"help": "the same seed draws the same responses"})
    json: bool = field(default=False, metadata={"help": "print one JSON object instead of a table"})


@dataclass
class BeamSearchConfig(PromptConfig, ColumnsConfig, ServedPRMConfig):
    """`mpo beam-search`: answers found step by step, guided by a PRM."""

    problems: Path = field(metadata={"help": "problems, of any kind that `mpo sample` takes"})
    prm: ModelPath = field(metadata={"help": "PRM (with prm.json)"})
    out: Path = field(metadata={"help": "folder for groups.jsonl, with one response per problem, and searches.jsonl"})
    policy: PolicyPath | None = field(default=None, metadata={"help": "model that answers in this process"})
    base_url: list[str] = field(
        default_factory=list,
        metadata={"help": "server that answers instead of --policy, such as http://host:8000/v1; several may be given"},
    )
    model: str | None = field(default=None, metadata={"help": "name of the model on the server"})
    width: Count = field(default=4, metadata={"help": "W, unfinished responses that are kept per problem"})
    expand: Count = field(
        default=4, metadata={"help": "m, continuations of each of them; the first step draws W times m"}
    )
    max_rounds: Count = field(default=12, metadata={"help": "most steps of a response"})
    aggregation: Aggregation = field(
        default="mean", metadata={"help": "how the step scores of a response become its reward"}
    )
    temperature: NotNegative = field(default=1.0, metadata={"help": "sampling temperature of the continuations"})
    top_p: TopP = field(
        default=1.0,
        metadata={"help": "sample from the most likely tokens that together have this probability; 1 turns it off"},
    )
    top_k: Whole = field(default=0, metadata={"help": "sample from this many most likely tokens; 0 turns it off"})
    max_new_tokens: Count = field(
        default=512,
        metadata={
            "help": "most tokens drawn per step; what follows the step's end is discarded, so a step's length is enough"
        },
    )
    batch_rows: Count = field(default=64, metadata={"help": "continuations per forward pass, in this process"})
    concurrency: Count = field(default=16, metadata={"help": "requests in flight per server"})
    problems_a_call: Count = field(default=64, metadata={"help": "problems that are searched side by side"})
    image_root: Path | None = field(
        default=None, metadata={"help": "folder of the images, anywhere below it; default: that of the problems' file"}
    )
    seed: Whole = field(default=0, metadata={"help": "the same seed finds the same responses"})
