"""N answers per problem: `TransformersGenerator` against plain `model.generate(num_return_sequences=N)`.

Both sides sample at temperature 1 with the digits world's untrained policy, the same prompts in the same batches, left
padded. Runs are interleaved; the median is taken. Seconds are CPU seconds of this process on a CPU, which other
processes disturb less, and wall-clock seconds elsewhere. Prompt positions through the language model are counted.

    python benchmarks/sampling.py
    python benchmarks/sampling.py --words 200 --num-samples 16
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from mpo.multimodal.images import load_image
from mpo.multimodal.loading import load_for_inference, load_processor
from mpo.multimodal.messages import prompt_text, user_message
from recipes.worlds.digits.policy import build_policy
from recipes.worlds.digits.world import scenes, to_problem
from rewards.sampling.generator import SamplingParams
from rewards.sampling.transformers_generator import TransformersGenerator
from rewards.types import Problem


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=16)
    parser.add_argument("--num-samples", type=int, default=8, help="N")
    parser.add_argument("--batch-rows", type=int, default=64, help="rows per call, on both sides")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--words", type=int, default=0, help="words put before each question: a longer prompt")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side")
    args = parser.parse_args()
    if args.num_samples < 2 or args.rounds < 1:
        parser.error("expected --num-samples >= 2 and --rounds >= 1")
    with tempfile.TemporaryDirectory() as folder:
        build_policy(folder, seed=0)
        model, processor = load_for_inference(folder), load_processor(folder)
    problems = [
        Problem(p.id, "How many? " * (args.words // 2) + p.question, p.images)
        for p in (to_problem(scene, f"p{i}") for i, scene in enumerate(scenes("test", args.problems, 1)))
    ]
    params = SamplingParams(max_new_tokens=args.new_tokens)
    ours = TransformersGenerator(model, processor, params, batch_rows=args.batch_rows)
    sides: dict[str, Callable[[], int]] = {
        "generate(num_return_sequences=N)": lambda: plainly(model, processor, problems, args),
        "TransformersGenerator": lambda: sum(
            c.num_tokens for row in ours.generate(problems, args.num_samples, seed=0) for c in row
        ),
    }
    runs: dict[str, list[tuple[float, int, int]]] = {name: [] for name in sides}
    for turn in range(args.rounds + 1):
        for name, draw in sides.items():
            run = measured(model, draw)
            if turn:  # the first warms up
                runs[name].append(run)
    report(args, runs)


def plainly(model: Any, processor: Any, problems: list[Problem], args: argparse.Namespace) -> int:
    """Transformers' own sampling, batch by batch; the number of new tokens."""
    size, total = max(1, args.batch_rows // args.num_samples), 0
    for start in range(0, len(problems), size):
        some = problems[start : start + size]
        inputs = processor(
            text=[prompt_text(processor, [user_message(p.question, len(p.images))]) for p in some],
            images=[[load_image(image) for image in p.images] for p in some],
            padding=True,
            padding_side="left",
            return_tensors="pt",
        ).to(model.device)
        with torch.inference_mode():
            out = model.generate(
                **inputs, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=args.new_tokens,
                num_return_sequences=args.num_samples, pad_token_id=processor.tokenizer.pad_token_id,
            )  # fmt: skip
        new = out[:, inputs["input_ids"].shape[1] :]
        total += int((new != processor.tokenizer.pad_token_id).sum())
    return total


def measured(model: Any, draw: Callable[[], int]) -> tuple[float, int, int]:
    """Seconds, new tokens, prompt positions (padding included) that the language model was given."""
    positions = 0

    def count(module: Any, args: tuple[Any, ...]) -> None:
        nonlocal positions
        rows, width = args[0].shape[:2]
        positions += rows * width if width > 1 else 0

    hook = model.model.language_model.layers[0].register_forward_pre_hook(count)
    clock = time.process_time if model.device.type == "cpu" else time.perf_counter
    started = clock()
    tokens = draw()
    seconds = clock() - started
    hook.remove()
    return seconds, tokens, positions


def report(args: argparse.Namespace, runs: dict[str, list[tuple[float, int, int]]]) -> None:
    """One row per side; the speed-up is a ratio of tokens per second."""
    rate = {name: median(tokens / seconds for seconds, tokens, _ in some) for name, some in runs.items()}
    first = next(iter(rate.values()))
    print(
        f"{args.problems} problems x N = {args.num_samples}, {args.words} words more a question, {args.batch_rows} "
        f"rows per call, {args.new_tokens} new tokens; {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"{platform.processor() or platform.machine()}"
    )
    print("| side | tokens/s | range | speed-up | prompt positions |\n|" + " --- |" * 5)
    for name, some in runs.items():
        rates = sorted(tokens / seconds for seconds, tokens, _ in some)
        print(
            f"| {name} | {rate[name]:.0f} | [{rates[0]:.0f}, {rates[-1]:.0f}] | {rate[name] / first:.2f}x "
            f"| {some[0][2]} |"
        )


if __name__ == "__main__":
    main()
