"""The parts of `benchmarks/gpu.py`, each a function of the report, the sizes and the measured rate of a product."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from _gpu_tools import Profile, Report, Sizes, peak_gib, seconds, wait
from _models import (
    Width,
    device,
    image_of,
    internvl,
    parameters,
    processor_of,
    prompt_tokens,
    scoring_flops,
    step_flops,
)
from torch import Tensor
from transformers import TrainerCallback

from mpo.multimodal import shared_prefix
from mpo.multimodal.agreement import PADDING, telling_responses
from mpo.multimodal.logps import enable_chunked_logps
from mpo.multimodal.packing import LAYOUT, PackedLayout, pack_rows, paired_rows
from mpo.multimodal.prefix import EncodedPrompt
from mpo.multimodal.scoring import token_logps
from mpo.multimodal.varlen import _sequences, why_no_kernel, why_not

QUESTION = "What is the sum of the digits? " * 12
PEERS = ("trl, a pair at a time", "trl, liger")  # beside TRL with all pairs at once
# model, prompts per step, right and wrong responses of each: pairs are all of the right with all of the wrong
TRAIN = (
    ("small full", 4, 2, 2),
    ("large LoRA", 4, 1, 1),
    ("large LoRA", 2, 2, 2),
    ("small full", 8, 1, 1),
    ("large LoRA", 2, 1, 1),
    ("small full", 1, 1, 1),
)


def kernel(report: Report, sizes: Sizes, rate: float) -> None:
    """The layer alone: values and gradients against float64, seconds by kernel and by segments."""
    width = sizes.large
    size = width.hidden // width.heads
    reason = why_no_kernel() or why_not(device(), sizes.dtype, heads=width.heads, key_heads=width.key_heads, size=size)
    report.add("kernel", "variable-length kernel", usable=reason or "yes")
    for prefix, number, tokens in sizes.kernel:
        ends = [prefix + (place + 1) * (tokens + 1) for place in range(number)]
        shape = f"P={prefix} N={number} R={tokens}"
        draw = torch.Generator(device()).manual_seed(0)
        given = [
            torch.randn(1, heads, ends[-1], size, generator=draw, device=device(), dtype=sizes.dtype)
            for heads in (width.heads, width.key_heads, width.key_heads)
        ]
        groups = width.heads // width.key_heads
        few = [given[0][:, :groups], given[1][:, :1], given[2][:, :1]]  # one key head: float64 of all would not fit
        exact = _attended([tensor.double() for tensor in few], PackedLayout([prefix], [ends]))
        pairs = prefix**2 / 2 + number * (tokens * prefix + tokens**2 / 2)
        flops = 4 * width.heads * size * pairs
        for varlen in (True, False):
            way = "kernel" if varlen else "segments"
            with report.trying("kernel", f"{shape} {way}"):
                layout = PackedLayout([prefix], [ends])  # whose places are worked out once for all layers
                layout.varlen = varlen
                found = _attended(few, layout)
                errors = [float((a.double() - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)]
                forward = seconds(partial(_forward, given, layout))
                both = seconds(partial(_attended, given, layout))
                names = dict(zip(("error", "dq", "dk", "dv"), errors, strict=True))
                report.add(
                    "kernel", f"{shape} {way}", **names, ms=1e3 * forward, ms_both=1e3 * both,
                    share_of_matmul=flops / forward / rate,
                )  # fmt: skip
        places = seconds(partial(_sequences, PackedLayout([prefix], [ends]), ends[-1], ends[-1], device()))
        report.add("kernel", f"{shape} places, once per pass", ms=1e3 * places)


class _Layer:
    training = True


def _forward(given: list[Tensor], layout: PackedLayout) -> Tensor:
    attend: Callable[..., Any] = shared_prefix.shared_prefix_attention
    return attend(_Layer(), *given, None, scaling=given[0].shape[-1] ** -0.5, **{LAYOUT: layout})[0]


def _attended(given: list[Tensor], layout: PackedLayout) -> list[Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in given]
    out = _forward(leaves, layout)
    weights = torch.linspace(-1, 1, out.shape[-1], device=out.device, dtype=out.dtype)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), leaves)]


def tolerance(report: Report, sizes: Sizes, rate: float) -> None:
    """Packed against alone, and padding against none, by the length of the responses."""
    del rate
    model = internvl(sizes.small, dtype=sizes.dtype)
    enable_chunked_logps(model)
    shared_prefix.enable_shared_prefix(model)
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 400, (sizes.kernel[0][0],), generator=draw)
    for length in sizes.lengths:
        responses = [torch.randint(5, 400, (length,), generator=draw).tolist() for _ in range(4)]
        batch = pack_rows([EncodedPrompt(ids, {}, {})], [responses], pad_token_id=0)
        batch = {name: value.to(device()) if isinstance(value, Tensor) else value for name, value in batch.items()}
        with report.trying("tolerance", f"{length} tokens"), torch.no_grad():
            packed = token_logps(model, batch)
            off, noise = [], []
            for place in telling_responses(batch[LAYOUT], most=4):
                alone = token_logps(model, paired_rows(batch, responses=[place]))[0]
                moved = token_logps(model, paired_rows(batch, responses=[place], padding=PADDING))[0]
                off.append((packed[place] - alone).abs())
                noise.append((moved - alone).abs())
            means = [float(torch.cat(some).mean()) for some in (off, noise)]
            largest = float(torch.cat(off).max())
            report.add("tolerance", f"{length} tokens", packed=means[0], padded=means[1], largest=largest)


def train(report: Report, sizes: Sizes, rate: float) -> None:
    """One optimizer step: TRL with all pairs at once, a pair at a time and with Liger's kernels, and ours by reference.

    From the end of one step to the end of the next, batches made ahead by four workers on both sides.

    `speed_up` and `ideal` are over TRL with all pairs at once, in seconds and in FLOPs; `reached` is their ratio.
    """
    tiles = sizes.tiles[min(1, len(sizes.tiles) - 1)]
    for name, prompts, right, wrong in TRAIN:
        width, lora = (sizes.large, 16) if name == "large LoRA" else (sizes.small, 0)
        prompt = prompt_tokens(width, tiles, f"0 {QUESTION}")
        peers = PEERS if right * wrong > 1 and not lora else ()
        base: float | None = None
        if not report.wants(f"{name}, {prompts} x {right * wrong} pairs"):
            continue
        for arm in ("trl", "online", "cached", *peers):
            what = f"{name}, {prompts} x {right * wrong} pairs: {arm}"
            if report.late():
                report.add("train", what, left_out="no time")
                continue
            with report.trying("train", what):
                size, found = _step(sizes, width, tiles, prompts, right, wrong, arm=arm, lora=lora)
                base = base or found["seconds"]
                flops = step_flops(
                    width, size, tiles=tiles, prompt=prompt, response=sizes.response, right=right, wrong=wrong,
                    checkpointing=True, adapters=lora > 0,
                )  # fmt: skip
                own = flops[arm.partition(",")[0]]
                speed_up, ideal = base / found["seconds"], flops["trl"] / own
                report.add(
                    "train", what, **found, mfu=prompts * own / found["seconds"] / rate, speed_up=speed_up, ideal=ideal,
                    reached=speed_up / ideal,
                )  # fmt: skip


def _pairs(width: Width, tiles: int, tokens: int, right: int, wrong: int, prompts: int) -> list[dict[str, Any]]:
    image = image_of(width, tiles)

    def answer(step: int, number: int) -> list[dict[str, str]]:
        digits = "".join(str((step + number + (2 * number + 1) * i) % 10) for i in range(tokens - 1))
        return [{"role": "assistant", "content": digits}]

    return [
        {"problem_id": str(step), "images": [image], "prompt": [{"role": "user", "content": f"{step} {QUESTION}"}],
         "chosen": answer(step, a), "rejected": answer(step, right + b)}
        for step in range(prompts) for a in range(right) for b in range(wrong)
    ]  # fmt: skip


def _step(
    sizes: Sizes, width: Width, tiles: int, prompts: int, right: int, wrong: int, *, arm: str, lora: int
) -> tuple[dict[str, int], dict[str, Any]]:
    """The model's parameters; seconds of a step, tokens of its policy, peak memory, share of the time it computes.

    Two steps are not timed; one more is profiled.
    """
    from peft import LoraConfig

    ends: list[float] = []
    tokens: list[int] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            tokens.clear()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            wait()
            ends.append(time.perf_counter())
            if len(ends) == steps - 1:
                watch.__enter__()
            elif len(ends) == steps:
                watch.__exit__(None, None, None)

    watch = Profile()
    skipped = 2 if torch.cuda.is_available() else 1
    pairs, steps = prompts * right * wrong, sizes.steps + skipped + 1
    one_by_one = arm == "trl, a pair at a time"
    peak_gib(reset=True)
    with tempfile.TemporaryDirectory() as out:
        common: dict[str, Any] = {
            **{"per_device_train_batch_size": 1 if one_by_one else pairs, "max_steps": steps, "max_length": None},
            **{"gradient_accumulation_steps": pairs if one_by_one else 1, "learning_rate": 1e-6, "optim": "sgd"},
            **{"bf16": sizes.dtype == torch.bfloat16, "use_cpu": not torch.cuda.is_available()},
            **{"gradient_checkpointing": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True},
            **{"logging_strategy": "no", "dataloader_num_workers": 4 if torch.cuda.is_available() else 0},
        }
        if arm == "trl, liger":
            common["use_liger_kernel"] = True
        rows = _pairs(width, tiles, sizes.response, right, wrong, prompts * steps)
        model = internvl(width, dtype=sizes.dtype if lora else torch.float32)
        size = parameters(model)
        adapters = LoraConfig(r=lora, target_modules="all-linear", exclude_modules="lm_head") if lora else None
        trainer = _trainer(arm, out, common, model, processor_of(width, tiles), rows, adapters)
        decoder = trainer.accelerator.unwrap_model(trainer.model).get_decoder()
        decoder.norm.register_forward_pre_hook(lambda module, args: tokens.append(args[0].shape[0] * args[0].shape[1]))
        trainer.add_callback(Clock())
        trainer.train()
        read = sum(tokens)  # an adapter's reference is the same model; a frozen copy is another
        policy = read / 2 if lora and arm != "cached" else read
    return size, {
        "seconds": median([after - before for before, after in pairwise(ends[skipped - 1 : -1])]),
        "tokens": policy,
        "peak_GiB": peak_gib(),
        "busy": watch.busy,
    }


def _trainer(
    arm: str, out: str, common: dict[str, Any], model: Any, processor: Any, rows: list[dict[str, Any]], adapters: Any
) -> Any:
    import datasets
    from trl import DPOConfig, DPOTrainer

    from mpo import MPOConfig, MPOTrainer

    if arm.startswith("trl"):
        config = DPOConfig(out, loss_type=["sigmoid", "bco_pair", "sft"], loss_weights=[0.8, 0.2, 1.0], **common)
        reference = None if adapters is not None else deepcopy(model)
        table = datasets.Dataset.from_list(rows)
        return DPOTrainer(
            model, reference, args=config, processing_class=processor, train_dataset=table, peft_config=adapters
        )
    settings = {**common, "precompute_ref_log_probs": arm == "cached", "group_by_prompt": True}
    return MPOTrainer(
        model, args=MPOConfig(out, **settings), processing_class=processor, train_dataset=rows, peft_config=adapters
    )


def prm(report: Report, sizes: Sizes, rate: float) -> None:
    """N responses of a problem: through the kernel, by segments, and a row for each.

    `speed_up` and `ideal` are over a row for each, which is timed on two responses and scaled to N.
    """
    from rewards.prm.formats import VISUALPRM
    from rewards.prm.model_prm import ModelPRM
    from rewards.types import Problem

    model = internvl(sizes.large, dtype=sizes.dtype)
    size, tokens = parameters(model), []
    model.model.language_model.norm.register_forward_pre_hook(
        lambda module, args: tokens.append(args[0][..., 0].numel())
    )
    for tiles in sizes.tiles:
        processor = processor_of(sizes.large, tiles)
        problem = Problem("p", QUESTION, images=(image_of(sizes.large, tiles),))
        for number in sizes.responses:
            texts = ["\n\n".join(f"{step + place} is {'1 2 3 ' * 12}" for step in range(7)) for place in range(number)]
            found: dict[str, dict[str, Any]] = {}
            for way in ("a row each", "kernel", "segments"):
                with report.trying("prm", f"{tiles} tiles, N={number}: {way}"):
                    scorer = ModelPRM(model, processor, VISUALPRM, batch_rows=1 if way == "a row each" else number)
                    scorer.shares, scorer._kernel = way != "a row each", way == "kernel"
                    few = texts[:2] if way == "a row each" else texts
                    scale = number / len(few)
                    score = partial(scorer.score, problem, few)
                    taken = scale * seconds(score, times=2)
                    tokens.clear()
                    with Profile() as watch:
                        scores = [value for some in score() for value in some.values]
                    one = {"seconds": taken, "tokens": scale * sum(tokens), "busy": watch.busy, "scores": scores}
                    found[way] = one
                    flops = _scoring_flops(sizes, size, tiles, number, found)
                    own, base = flops["response" if way == "a row each" else "shared"], found["a row each"]
                    off = max(abs(a - b) for a, b in zip(scores, base["scores"], strict=False))
                    speed_up, ideal = base["seconds"] / taken, flops["response"] / own
                    report.add(
                        "prm", f"{tiles} tiles, N={number}: {way}", seconds=taken, busy=watch.busy, off=off,
                        mfu=own / taken / rate, speed_up=speed_up, ideal=ideal, reached=speed_up / ideal,
                    )  # fmt: skip


def _scoring_flops(
    sizes: Sizes, size: dict[str, int], tiles: int, number: int, found: dict[str, dict[str, Any]]
) -> dict[str, float]:
    """By way; the shared prefix and what is behind it follow from the tokens that were read."""
    alone = found["a row each"]["tokens"]
    shared = next((one["tokens"] for way, one in found.items() if way != "a row each"), alone)
    prefix = (alone - shared) / (number - 1)
    tails = [alone / number - prefix]
    return scoring_flops(sizes.large, size, tiles, prefix=prefix, tails=tails, responses=number)


def sample(report: Report, sizes: Sizes, rate: float) -> None:
    """Eight responses per problem: transformers' `generate(num_return_sequences=8)` against ours, by rows per call."""
    del rate
    from rewards.sampling.generator import SamplingParams
    from rewards.sampling.transformers_generator import TransformersGenerator
    from rewards.types import Problem

    model = internvl(sizes.large, dtype=sizes.dtype)
    tiles = sizes.tiles[min(1, len(sizes.tiles) - 1)]
    processor = processor_of(sizes.large, tiles)
    number = min(8, sizes.rows[0])
    params = SamplingParams(max_new_tokens=sizes.new_tokens)
    image = image_of(sizes.large, tiles)

    def plain(problems: list[Problem]) -> None:
        chats = [
            [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": one.question}]}]
            for one in problems
        ]
        inputs = processor.apply_chat_template(
            chats, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": "left"},
        ).to(device(), dtype=sizes.dtype)  # fmt: skip
        with torch.inference_mode():
            model.generate(
                **inputs, do_sample=True, top_k=0, num_return_sequences=number, max_new_tokens=sizes.new_tokens,
                pad_token_id=processor.tokenizer.pad_token_id,
            )  # fmt: skip

    first = [Problem("first", QUESTION, (image,))]
    TransformersGenerator(model, processor, SamplingParams(max_new_tokens=4)).generate(first, number, seed=0)  # untimed
    for rows in sizes.rows:
        problems = [Problem(f"p{i}", f"{i} {QUESTION}", (image,)) for i in range(rows // number)]
        ours = TransformersGenerator(model, processor, params, batch_rows=rows)
        ways = {"ours": partial(ours.generate, problems, number, seed=0), "generate": partial(plain, problems)}
        for way, run in ways.items():
            with report.trying("sample", f"{rows} rows: {way}"):
                peak_gib(reset=True)
                taken = seconds(run, times=1, before=0)
                report.add(
                    "sample", f"{rows} rows: {way}", tokens_a_second=rows * sizes.new_tokens / taken,
                    seconds=taken, peak_GiB=peak_gib(),
                )  # fmt: skip


def trainer(report: Report, sizes: Sizes, rate: float) -> None:
    """MPOTrainer end to end, images processed: by workers and micro-batches per step."""
    del rate
    from mpo import MPOConfig, MPOTrainer
    from recipes.training.arguments import feeding

    tiles = sizes.tiles[min(1, len(sizes.tiles) - 1)]
    rows = _pairs(sizes.small, tiles, sizes.response, 1, 1, sizes.pairs)
    for workers in sizes.workers:
        for accumulation in sizes.accumulation:
            what = f"{workers} workers, {accumulation} micro-batches per step"
            if not report.wants(what):
                continue
            if report.late():
                report.add("trainer", what, left_out="no time")
                continue
            with report.trying("trainer", what), tempfile.TemporaryDirectory() as out:
                model = internvl(sizes.small)
                args = MPOConfig(
                    out, per_device_train_batch_size=1, gradient_accumulation_steps=accumulation, num_train_epochs=1,
                    bf16=sizes.dtype == torch.bfloat16, use_cpu=not torch.cuda.is_available(), report_to="none",
                    save_strategy="no", logging_strategy="no", disable_tqdm=True, optim="sgd",
                    **feeding(workers, accelerated=torch.cuda.is_available()),
                )  # fmt: skip
                run = MPOTrainer(
                    model, args=args, processing_class=processor_of(sizes.small, tiles), train_dataset=rows
                )
                watch = _Thirds(len(rows) // accumulation)
                run.add_callback(watch)
                peak_gib(reset=True)
                run.train()
                report.add(
                    "trainer", what, seconds_a_pair=watch.seconds / (len(rows) // 3), busy=watch.profile.busy,
                    peak_GiB=peak_gib(),
                )  # fmt: skip


class _Thirds(TrainerCallback):  # type: ignore[misc]
    """Times the second third of a run's steps, waiting for batches included, and profiles the last."""

    def __init__(self, steps: int) -> None:
        self.ends, self.steps, self.profile, self.seconds = [steps // 3, 2 * steps // 3], steps, Profile(), 0.0

    def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        wait()
        if state.global_step == self.ends[0]:
            self.seconds = -time.perf_counter()
        if state.global_step == self.ends[1]:
            self.seconds += time.perf_counter()
            self.profile.__enter__()
        if state.global_step == self.steps:
            self.profile.__exit__(None, None, None)


PARTS: dict[str, Callable[[Report, Sizes, float], None]] = {
    "kernel": kernel,
    "tolerance": tolerance,
    "train": train,
    "prm": prm,
    "sample": sample,
    "trainer": trainer,
}
