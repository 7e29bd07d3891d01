"""One optimizer step of MPO: TRL's DPOTrainer in its MPO mode against MPOTrainer, on one model and the same rows.

A step is K pairs of one prompt, all right x wrong combinations of its responses: one, or four of two right and two
wrong ones.

Arms: `trl` (its reference runs beside the policy), `online` (ours, the same), `cached` (ours, reference log-probs
computed before). Each run is a process of its own; runs are interleaved and medians are taken over all timed steps.

    python benchmarks/mpo_vs_trl.py
    python benchmarks/mpo_vs_trl.py --checkpointing
    python benchmarks/mpo_vs_trl.py --right 2 --wrong 2
    python benchmarks/mpo_vs_trl.py --frozen_vision

The ideal ratio counts FLOPs of the language model (weights and causal attention), and of the vision tower; a backward
pass counts twice its forward. It leaves out the LM head (vocabulary below 500 here: on a CPU TRL's fused head, which
both sides use, projects every position) and everything that is not a matrix product.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from _models import build_internvl, noise, vision_flops

ARMS = ("trl", "online", "cached")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2, help="runs of each arm")
    parser.add_argument("--steps", type=int, default=3, help="steps per run; the first is not timed")
    parser.add_argument("--hidden", type=int, default=512, help="width of the language model")
    parser.add_argument("--layers", type=int, default=8, help="layers of the language model")
    parser.add_argument("--tiles", type=int, default=7, help="tiles of the image: 1, or n + 1 with the thumbnail")
    parser.add_argument("--response", type=int, default=250, help="tokens of each response")
    parser.add_argument("--right", type=int, default=1, help="right responses of the step's prompt")
    parser.add_argument("--wrong", type=int, default=1, help="wrong responses; a step is all right x wrong pairs")
    parser.add_argument("--frozen_vision", action="store_true", help="nothing outside the language model is trained")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing on both sides")
    parser.add_argument("--worker", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.steps < 2 or min(args.rounds, args.right, args.wrong) < 1:
        parser.error("expected --steps >= 2 (the first is not timed), --rounds, --right and --wrong >= 1")
    if args.worker:
        print(json.dumps(_run(args)))
        return
    with tempfile.TemporaryDirectory() as folder:
        args.model = Path(folder)
        size = _build(args)
        runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
        for turn in range(args.rounds):
            for arm in ARMS:
                print(f"round {turn + 1}: {arm}", file=sys.stderr)
                runs[arm].append(_in_a_process(args, arm))
    _print(args, size, runs)


def _in_a_process(args: argparse.Namespace, arm: str) -> dict[str, Any]:
    names = ("steps", "tiles", "response", "right", "wrong", "model")
    command = [sys.executable, __file__, "--worker", arm]
    command += [part for name in names for part in (f"--{name}", str(getattr(args, name)))]
    command += [f"--{name}" for name in ("checkpointing", "frozen_vision") if getattr(args, name)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{arm} failed:\n{done.stderr[-4000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _build(args: argparse.Namespace) -> dict[str, int]:
    """The model on disk; its parameters by part, and the prompt's length."""
    size = build_internvl(args.model, hidden=args.hidden, layers=args.layers, tiles=args.tiles)
    from mpo.multimodal.loading import load_processor

    processor = load_processor(args.model)
    prompt = processor(text=[_prompt_text(processor)], images=[[noise(args.tiles)]])["input_ids"][0]
    return {**size, "prompt": len(prompt)}


QUESTION = "What is the sum of the digits? " * 12


def _prompt_text(processor: Any) -> str:
    from mpo.multimodal.messages import prompt_text

    blocks = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    return prompt_text(processor, [{"role": "user", "content": blocks}])


def _rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The pairs of each step, one step after the other."""
    picture = noise(args.tiles)

    def answer(step: int, number: int) -> list[dict[str, str]]:
        digits = "".join(str((step + number + (2 * number + 1) * i) % 10) for i in range(args.response - 1))
        return [{"role": "assistant", "content": digits}]

    return [
        {
            "problem_id": str(step),
            "images": [picture],
            "prompt": [{"role": "user", "content": f"{step % 10} {QUESTION}"}],
            "chosen": answer(step, right),
            "rejected": answer(step, args.right + wrong),
        }
        for step in range(args.steps)
        for right in range(args.right)
        for wrong in range(args.wrong)
    ]


def _run(args: argparse.Namespace) -> dict[str, Any]:
    """One training run: seconds of each timed step, and what went through the model in the last one."""
    import datasets
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer

    from mpo import MPOConfig, MPOTrainer
    from mpo.multimodal.loading import load_model, load_processor

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.times: list[float] = []

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.times.append(time.perf_counter())
            counts.clear()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.times[-1] = time.perf_counter() - self.times[-1]

    common: dict[str, Any] = {
        **{
            "per_device_train_batch_size": args.right * args.wrong,
            "max_steps": args.steps,
            "optim": "sgd",
            "learning_rate": 1e-4,
        },
        **{"use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no", "disable_tqdm": True},
        **{"gradient_checkpointing": args.checkpointing, "logging_strategy": "no", "max_length": None},
    }
    counts: dict[str, int] = {}
    model, processor, rows = load_model(args.model), load_processor(args.model), _rows(args)
    if args.frozen_vision:
        model.model.vision_tower.requires_grad_(False)
        model.model.multi_modal_projector.requires_grad_(False)
    with tempfile.TemporaryDirectory() as out:
        trainer: Any
        if args.worker == "trl":
            config = DPOConfig(out, loss_type=["sigmoid", "bco_pair", "sft"], loss_weights=[0.8, 0.2, 1.0], **common)
            table = datasets.Dataset.from_list(rows)
            trainer = DPOTrainer(model, args=config, processing_class=processor, train_dataset=table)
        else:
            cached = args.worker == "cached"
            mpo = MPOConfig(
                out, precompute_ref_log_probs=cached, group_by_prompt=True, **{"layout": "shared", **common}
            )
            trainer = MPOTrainer(model, args=mpo, processing_class=processor, train_dataset=rows)
        for part in (trainer.model, *([trainer.ref_model] if trainer.ref_model is not None else [])):
            _count(part, counts)
        clock = Clock()
        trainer.add_callback(clock)
        trainer.train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)
    return {"seconds": clock.times[1:], "peak": peak, **counts}


def _count(model: Any, counts: dict[str, int]) -> None:
    """Tokens through the language model and tiles through the vision tower, recomputed ones not counted."""

    def adder(name: str, size: Callable[[Any], int]) -> Callable[..., None]:
        def add(module: Any, args: Any, kwargs: Any) -> None:
            counts[name] = counts.get(name, 0) + size((*args, *kwargs.values())[0])

        return add

    # The final norm runs once per forward pass, outside the checkpointed layers.
    model.model.language_model.norm.register_forward_pre_hook(
        adder("tokens", lambda hidden: hidden.shape[0] * hidden.shape[1]), with_kwargs=True
    )
    model.model.vision_tower.register_forward_pre_hook(adder("tiles", lambda pixels: len(pixels)), with_kwargs=True)


def ideal_flops(args: argparse.Namespace, size: dict[str, int]) -> dict[str, float]:
    """FLOPs of a step by arm."""
    prompt, response = size["prompt"], args.response

    def attention(pairs: float) -> float:
        return 4 * args.hidden * args.layers * pairs

    row, pairs, responses = prompt + response, args.right * args.wrong, args.right + args.wrong
    paired = 2 * pairs * (2 * size["text"] * row + attention(row**2 / 2))
    # prompt[:-1], and the responses with the prompt's last token each
    packed_pairs = prompt**2 / 2 + responses * (response * prompt + response**2 / 2)
    shared = 2 * size["text"] * (prompt - 1 + responses * (response + 1)) + attention(packed_pairs)
    vision = vision_flops(args.tiles, size["vision"])
    policy = 4 if args.checkpointing else 3
    # forward passes through the tower, a backward counting two; a frozen one has none and is shared by both models
    tower = {"trl": 2 * pairs * (2 if args.frozen_vision else policy + 1)}
    tower |= {"online": 1 if args.frozen_vision else policy + 1, "cached": 1 if args.frozen_vision else policy}
    text = {"trl": (policy + 1) * paired, "online": (policy + 1) * shared, "cached": policy * shared}
    return {arm: text[arm] + tower[arm] * vision for arm in ARMS}


def ideal_tokens(args: argparse.Namespace, size: dict[str, int]) -> dict[str, float]:
    """Tokens through the language model in a step by arm, a backward counting two forwards."""
    policy = 4 if args.checkpointing else 3
    paired = 2 * args.right * args.wrong * (size["prompt"] + args.response)
    shared = size["prompt"] - 1 + (args.right + args.wrong) * (args.response + 1)
    return {"trl": (policy + 1) * paired, "online": (policy + 1) * shared, "cached": policy * shared}


def _print(args: argparse.Namespace, size: dict[str, int], runs: dict[str, list[dict[str, Any]]]) -> None:
    import torch

    flops, tokens = ideal_flops(args, size), ideal_tokens(args, size)
    seconds = {arm: median(s for run in some for s in run["seconds"]) for arm, some in runs.items()}
    print(
        f"InternVL, {size['all'] / 1e6:.1f} M parameters ({size['text'] / 1e6:.1f} M in the text layers); "
        f"P = {size['prompt']} ({args.tiles} tiles), C = R = {args.response}; {args.right * args.wrong} pairs per step "
        f"of {args.right + args.wrong} responses; tower {'frozen' if args.frozen_vision else 'trained'}; checkpointing "
        f"{'on' if args.checkpointing else 'off'}; float32, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}, {platform.processor() or platform.machine()}"
    )
    print(f"{args.rounds} runs an arm, interleaved, {args.steps - 1} timed steps each; median, [least, most]")
    heads = (
        "arm",
        "s per step",
        "range",
        "speed-up",
        "ideal (FLOPs)",
        "ideal (tokens)",
        "reached",
        "peak GiB",
        "LM tokens",
        "vision passes",
    )
    print("| " + " | ".join(heads) + " |\n|" + " --- |" * len(heads))
    for arm, some in runs.items():
        every = [s for run in some for s in run["seconds"]]
        ratio, ideal = seconds["trl"] / seconds[arm], flops["trl"] / flops[arm]
        ideal_t = tokens["trl"] / tokens[arm]
        cells = (
            *(arm, f"{seconds[arm]:.2f}", f"[{min(every):.2f}, {max(every):.2f}]", f"{ratio:.2f}x", f"{ideal:.2f}x"),
            *(f"{ideal_t:.2f}x", f"{100 * ratio / ideal:.0f} %", f"{median(run['peak'] for run in some) / 2**30:.2f}"),
            *(str(some[0]["tokens"]), f"{some[0]['tiles'] / args.tiles:g}"),
        )
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
