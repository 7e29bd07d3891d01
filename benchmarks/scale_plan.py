"""The plan to 1000 GPUs on paper: samples, tokens, hours and bytes of every stage, for `docs/scale.md`.

    python -m benchmarks.scale_plan

Arithmetic from published sizes and the assumptions below; nothing of it has been measured on a GPU. What is not
counted: loading, saving, stragglers, attention's own products, and communication (but see `gather_seconds`).
"""

from __future__ import annotations

from dataclasses import dataclass

TFLOPS = 300.0  # assumed sustained rate of a GPU in training and prefill, as in benchmarks/scale_estimates.py
DECODED = 5_000.0  # assumed new tokens/s of a GPU in a server that batches continuously, for an 8B model
CHECKS = 25.0  # answers/s of a worker, math-verify on LaTeX, its slowest set (docs/performance.md, "Verification")
STORED = 210.0  # bytes of a sample in the store besides its text: 57.6 MiB for 160,000 of 170 characters
LINK = 50e9  # bytes/s between nodes a GPU has (400 Gbit/s), and
NVLINK = 400e9  # inside a node: both assumed, sustained


@dataclass(frozen=True)
class Model:
    """Weights that a token passes (decoder layers), that a read position passes (LM head), that a patch passes."""

    layers: float
    head: float
    vision: float

    @property
    def total(self) -> float:
        """All weights, the input embeddings among them."""
        return self.layers + 2 * self.head + self.vision


INTERNVL_8B = Model(layers=6.53e9, head=0.544e9, vision=0.30e9)  # InternVL3-8B: Qwen2.5-7B and InternViT-300M


@dataclass(frozen=True)
class Data:
    """A data set to make: questions, what is drawn for each, and how long everything is in tokens."""

    questions: float
    responses: int
    prompt: int  # with the image's tokens
    patches: int  # of the image, before merging
    response: float
    steps: float = 0.0
    continuations: int = 0
    picture: float = 150e3  # bytes of a stored image, assumed

    @property
    def samples(self) -> float:
        """Responses that are drawn."""
        return self.questions * self.responses


@dataclass(frozen=True)
class Cost:
    """Of one stage: pieces of work (responses, checks, pairs, …), tokens through a model, GPU and CPU-core hours."""

    pieces: float
    tokens: float
    gpu_hours: float = 0.0
    core_hours: float = 0.0


def forward_flops(model: Model, tokens: float, *, read: float = 0.0, patches: float = 0.0) -> float:
    """2 FLOP a weight and token, LM head at `read` positions only."""
    return 2.0 * (model.layers * tokens + model.head * read + model.vision * patches)


def hours(flops: float = 0.0, decoded: float = 0.0) -> float:
    """GPU hours of this much arithmetic and this many decoded tokens."""
    return (flops / (TFLOPS * 1e12) + decoded / DECODED) / 3600.0


def sampling(data: Data, model: Model) -> Cost:
    """Every question is read once for all its responses."""
    new = data.samples * data.response
    read = forward_flops(model, data.questions * data.prompt, patches=data.questions * data.patches)
    return Cost(data.samples, data.questions * data.prompt + new, hours(read, new))


def verification(answers: float) -> Cost:
    """On CPU cores, one worker a core."""
    return Cost(answers, 0.0, core_hours=answers / CHECKS / 3600.0)


def monte_carlo(data: Data, model: Model, *, together: int | None = None) -> Cost:
    """K continuations from the end of each step.

    A continuation of step i of S writes what is left, (1 − i/S)·R tokens: over the steps (S − 1)/2S·R on the mean.

    Args:
        data: with `steps` and `continuations`.
        model: that continues.
        together: this many continuations of one step share one reading of the prompt and the steps before. None: a
            cache keeps both, so a question is read once and a response once.
    """
    drawn = data.samples * data.steps * data.continuations
    new = drawn * data.response * (data.steps - 1) / (2 * data.steps)
    if together is None:
        tokens, pictures = data.questions * data.prompt + data.samples * data.response, data.questions
    else:
        before = data.response * (data.steps + 1) / (2 * data.steps)
        tokens, pictures = drawn / together * (data.prompt + before), drawn / together
    read = forward_flops(model, tokens, patches=pictures * data.patches)
    return Cost(drawn, tokens + new, hours(read, new))


def scoring(data: Data, model: Model) -> Cost:
    """A question's responses in one packed row; the head is read at two labels per step, which is nothing."""
    tokens = data.questions * (data.prompt + data.responses * data.response)
    return Cost(data.samples, tokens, hours(forward_flops(model, tokens, patches=data.questions * data.patches)))


def prm_training(data: Data, model: Model) -> Cost:
    """One epoch, frozen vision, checkpointing: forward, forward again and backward are 4 passes, the tower's is 1."""
    tokens = data.questions * (data.prompt + data.responses * data.response)
    flops = 4 * forward_flops(model, tokens) + forward_flops(model, 0, patches=data.questions * data.patches)
    return Cost(data.samples, tokens, hours(flops))


def mpo_training(pairs: float, data: Data, model: Model) -> Cost:
    """One epoch, every weight, checkpointing: 4 passes and the reference's; the prompt once per pair, tower too."""
    tokens = pairs * (data.prompt + 2 * data.response)
    once = forward_flops(model, tokens, read=2 * pairs * data.response, patches=pairs * data.patches)
    return Cost(pairs, tokens, hours(5 * once))


def wall_hours(cost: Cost, *, gpus: int, at_most: int | None = None) -> float:
    """Hours on this many GPUs, of which the stage can use `at_most`, evenly loaded."""
    return cost.gpu_hours / min(gpus, at_most or gpus)


def gather_seconds(model: Model, *, bandwidth: float, passes: int = 3) -> float:
    """Seconds in which a GPU takes in all shards in bfloat16, once a pass over the layers of one micro-batch."""
    return passes * 2.0 * model.total / bandwidth


def stored_bytes(data: Data) -> float:
    """Images once, and each response once in the store (4 bytes per token of text)."""
    return data.questions * data.picture + data.samples * (4.0 * data.response + STORED)


def checkpoint_bytes(model: Model) -> float:
    """Weights and two Adam states in float32."""
    return 12.0 * model.total


# 3 million pairs: 15 of each of 200,000 questions with right and wrong responses, and as many without.
MMPR_PAIRS = 3e6
MMPR = Data(questions=4e5, responses=32, prompt=1920, patches=7 * 1025, response=300)
# 400,000 responses, 4 a question, 5.6 steps of 22.6 words (arXiv 2503.10291) at 1.33 tokens per word; 16 continuations.
VISUALPRM400K = Data(
    questions=1e5, responses=4, prompt=1920, patches=7 * 1025, response=5.6 * 22.6 * 1.33, steps=5.6, continuations=16
)


def main() -> None:
    """Print the table of `docs/scale.md`, "1000 GPUs on paper"."""
    model = INTERNVL_8B
    labels = monte_carlo(VISUALPRM400K, model)
    rows: list[tuple[str, str, Cost, int | None]] = [
        ("VisualPRM400K", "sample 4", sampling(VISUALPRM400K, model), None),
        ("", "label, 16 continuations per step, cached prefixes", labels, None),
        (
            "",
            "the same as `mpo label-steps` reads: once per step",
            monte_carlo(VISUALPRM400K, model, together=16),
            None,
        ),
        ("", "the same, prefix read for each", monte_carlo(VISUALPRM400K, model, together=1), None),
        ("", "verify", verification(VISUALPRM400K.samples + labels.pieces), None),
        ("", "train-prm, 128 problems per step", prm_training(VISUALPRM400K, model), 128),
        ("MMPR", "sample 32", sampling(MMPR, model), None),
        ("", "verify", verification(MMPR.samples), None),
        ("", "score", scoring(MMPR, model), None),
        ("", "train-mpo, 256 pairs per step", mpo_training(MMPR_PAIRS, MMPR, model), 256),
    ]
    print("| data | stage | pieces, million | tokens, billion | GPU h | core h | GPUs used | hours on 1000 GPUs |")
    print("|---" * 8 + "|")
    for data, stage, cost, most in rows:
        sizes = f"{cost.pieces / 1e6:.1f} | {cost.tokens / 1e9:.1f} | {cost.gpu_hours:,.0f} | {cost.core_hours:,.0f}"
        wall = f"{most or 1000} | {wall_hours(cost, gpus=1000, at_most=most):.2f}" if cost.gpu_hours else "0 | –"
        print(f"| {data} | {stage} | {sizes} | {wall} |")
    for name, data in (("VisualPRM400K", VISUALPRM400K), ("MMPR", MMPR)):
        print(f"{name}: {stored_bytes(data) / 1e9:.1f} GB of images and responses")
    print(f"checkpoint: {checkpoint_bytes(model) / 1e9:.0f} GB")
    for name, bandwidth in (("between nodes", LINK), ("inside a node", NVLINK)):
        print(f"gathering the shards {name}: {gather_seconds(model, bandwidth=bandwidth):.2f} s per micro-batch")


if __name__ == "__main__":
    main()
