"""One optimizer step of MPO: TRL's DPOTrainer in its MPO mode against MPOTrainer, on one model and the same rows.

A step is K pairs of one prompt, all right x wrong combinations of its responses: one, or four of two right and two
wrong ones. Arms:

    trl          all pairs of the step in one micro-batch: 2 K rows; its reference runs beside the policy
    trl_by_pair  one pair at a time, K micro-batches (left out where K is 1: it is the same)
    online       ours, all pairs in one micro-batch, the reference beside the policy
    cached       ours, the reference's log-probs computed before

Two figures per arm, both in CPU seconds of one thread: the step that the model takes (from `on_step_begin` to
`on_step_end`), and that with the collation of its batch (images decoded and cut into tiles, text tokenised, keys of the
cache hashed). `cached` has a third: the pass that fills the cache, which is divided by the number of epochs.

    python benchmarks/mpo_vs_trl.py --right 2 --wrong 2
    python benchmarks/mpo_vs_trl.py --checkpointing
    python benchmarks/mpo_vs_trl.py --frozen_vision --shape text

Shapes: `1b` has the tower and the language model of InternVL3-1B at a quarter of their widths and depths, so each is
1/64 of its FLOPs and they keep their proportion, and its whole vocabulary of 151,936, which weighs four times as much
beside them as it does there. `text` has a tower of 0.4 M parameters and a vocabulary below 500. Of a row's positions
only the labelled ones go through the LM head, as TRL's fused head does on a GPU (elsewhere it takes all).

Each run is a process of its own; runs are interleaved, medians are over all timed steps. The ideal ratio counts FLOPs
of the language model's layers (weights and causal attention), of its head and of the tower; a backward pass counts
twice its forward.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from copy import deepcopy
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

from _models import Width, image_of, internvl, parameters, processor_of, prompt_tokens, step_flops

ARMS = ("trl", "trl_by_pair", "online", "cached")
SHAPES = {
    "1b": Width(224, 6, 7, 1, 1216, 256, 6, 4),
    "text": Width(512, 8, 8, 8, 1365, 128, 2, 4, vocabulary=500),
    "tiny": Width(32, 2, 4, 2, 64, 32, 1, 2, vocabulary=600, tile=56),
}
EPOCHS = (1, 2, 3, 5)
QUESTION = "What is the sum of the digits? " * 12
UNTIMED = 2  # prompts beyond the last step: the data loader is two batches ahead


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="1b", help="of the model")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each arm")
    parser.add_argument("--steps", type=int, default=3, help="steps per run; the first is not timed")
    parser.add_argument("--tiles", type=int, default=7, help="tiles of the image: 1, or n + 1 with the thumbnail")
    parser.add_argument("--response", type=int, default=250, help="tokens of each response")
    parser.add_argument("--right", type=int, default=1, help="right responses of the step's prompt")
    parser.add_argument("--wrong", type=int, default=1, help="wrong responses; a step is all right x wrong pairs")
    parser.add_argument("--frozen_vision", action="store_true", help="nothing outside the language model is trained")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing on both sides")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, to try the script itself")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    parser.add_argument("--worker", choices=ARMS, help=argparse.SUPPRESS)
    args = parser.parse_args(given)
    if args.tiny:
        args.shape, args.tiles, args.response, args.rounds, args.steps = "tiny", 3, 8, 1, 2
    if args.steps < 2 or min(args.rounds, args.right, args.wrong) < 1:
        parser.error("expected --steps >= 2 (the first is not timed), --rounds, --right and --wrong >= 1")
    if args.worker:
        print(json.dumps(_run(args)))
        return
    command = list(sys.argv[1:] if given is None else given)
    arms = [arm for arm in ARMS if arm != "trl_by_pair" or args.right * args.wrong > 1]
    runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
    for turn in range(args.rounds):
        for arm in arms:
            found = _in_a_process(command, arm)
            runs[arm].append(found)
            shown = ", ".join(f"{seconds:.2f}" for seconds in found["seconds"])
            print(f"round {turn + 1}: {arm}: {shown} CPU seconds per step", file=sys.stderr, flush=True)
            if args.out:  # whole after each run, so that one that is cut still says something
                args.out.write_text(json.dumps({"command": command, "runs": runs}, indent=1) + "\n")
    _print(args, command, runs)


def _in_a_process(command: Sequence[str], arm: str) -> dict[str, Any]:
    threads = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [sys.executable, __file__, *command, "--worker", arm],
        capture_output=True,
        text=True,
        env={**os.environ, **threads},
    )
    if done.returncode:
        raise SystemExit(f"{arm} failed:\n{done.stderr[-4000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _rows(args: argparse.Namespace) -> Any:
    """The pairs of each step, one step after the other; images are encoded, as in a data set on a disk."""
    import datasets

    image = image_of(SHAPES[args.shape], args.tiles)

    def answer(step: int, number: int) -> list[dict[str, str]]:
        digits = "".join(str((step + number + (2 * number + 1) * i) % 10) for i in range(args.response - 1))
        return [{"role": "assistant", "content": digits}]

    rows = [
        {
            "problem_id": str(step),
            "images": [image],
            "prompt": [{"role": "user", "content": f"{step % 10} {QUESTION}"}],
            "chosen": answer(step, right),
            "rejected": answer(step, args.right + wrong),
        }
        for step in range(args.steps + UNTIMED)
        for right in range(args.right)
        for wrong in range(args.wrong)
    ]
    return datasets.Dataset.from_list(rows)


def _run(args: argparse.Namespace) -> dict[str, Any]:
    """One training run: CPU seconds of each timed step, and what went through the model in the last one."""
    from transformers import TrainerCallback

    counts: dict[str, int] = {}
    ends: list[float] = []
    steps: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            steps.append(time.process_time())
            counts.clear()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.process_time())
            steps[-1] = ends[-1] - steps[-1]

    with tempfile.TemporaryDirectory() as out, ExitStack() as patches:
        patches.enter_context(patch("trl.trainer.utils._use_triton", lambda device: True))  # the head, see above
        filled: list[float] = []
        trainer = _trainer(args, out, filled)
        model = trainer.accelerator.unwrap_model(trainer.model)
        for part in (model, *([trainer.ref_model] if trainer.ref_model is not None else [])):
            _count(part, counts)
        trainer.add_callback(Clock())
        trainer.train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)
    return {
        "seconds": steps[1:],
        "collated": _between(ends),
        "filling": _between(filled),
        "peak": peak,
        "parameters": parameters(model),
        "prompt": prompt_tokens(SHAPES[args.shape], args.tiles, f"0 {QUESTION}"),
        **counts,
    }


def _trainer(args: argparse.Namespace, out: str, filled: list[float]) -> Any:
    """The trainer of an arm; `filled` gets the time at each batch that the cache is filled with."""
    from trl import DPOConfig, DPOTrainer

    from mpo import MPOConfig, MPOTrainer
    from mpo.reference import ReferenceCache

    pairs = args.right * args.wrong
    by_pair = args.worker == "trl_by_pair"
    common: dict[str, Any] = {
        **{
            "per_device_train_batch_size": 1 if by_pair else pairs,
            "gradient_accumulation_steps": pairs if by_pair else 1,
        },
        **{"max_steps": args.steps, "optim": "sgd", "learning_rate": 1e-4, "max_length": None},
        **{"use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no", "disable_tqdm": True},
        **{"gradient_checkpointing": args.checkpointing, "logging_strategy": "no"},
    }
    width = SHAPES[args.shape]
    model, processor, rows = internvl(width), processor_of(width, args.tiles), _rows(args)
    if args.frozen_vision:
        model.model.vision_tower.requires_grad_(False)
        model.model.multi_modal_projector.requires_grad_(False)
    if args.worker.startswith("trl"):
        config = DPOConfig(out, loss_type=["sigmoid", "bco_pair", "sft"], loss_weights=[0.8, 0.2, 1.0], **common)
        return DPOTrainer(model, deepcopy(model), args=config, processing_class=processor, train_dataset=rows)
    add = ReferenceCache.add

    def timed(self: Any, *given: Any) -> None:
        add(self, *given)
        filled.append(time.process_time())

    settings = {"precompute_ref_log_probs": args.worker == "cached", "group_by_prompt": True, "layout": "shared"}
    with patch.object(ReferenceCache, "add", timed):
        return MPOTrainer(
            model, args=MPOConfig(out, **settings, **common), processing_class=processor, train_dataset=rows
        )


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


def ideal_flops(args: argparse.Namespace, size: dict[str, int], prompt: int) -> dict[str, float]:
    """FLOPs of a step by arm; `filling` is the pass that fills the cache, for the rows of a step."""
    flops = step_flops(
        SHAPES[args.shape], size, tiles=args.tiles, prompt=prompt, response=args.response, right=args.right,
        wrong=args.wrong, checkpointing=args.checkpointing, frozen_vision=args.frozen_vision,
    )  # fmt: skip
    return flops | {"trl_by_pair": flops["trl"]}


def _print(args: argparse.Namespace, command: Sequence[str], runs: dict[str, list[dict[str, Any]]]) -> None:
    import torch

    some = runs["online"][0]
    size, prompt, width = some["parameters"], some["prompt"], SHAPES[args.shape]
    flops = ideal_flops(args, size, prompt)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    print(f"mpo_vs_trl.py {' '.join(command)}; {datetime.now(UTC):%Y-%m-%d}, commit {commit.stdout.strip()}")
    print(
        f"InternVL, {size['all'] / 1e6:.1f} M parameters ({size['text'] / 1e6:.1f} M in the text layers, "
        f"{size['vision'] / 1e6:.1f} M in the tower, vocabulary {width.vocabulary:,}); P = {prompt} ({args.tiles} "
        f"tiles), C = R = {args.response}; {args.right * args.wrong} pairs per step of {args.right + args.wrong} "
        f"responses; tower {'frozen' if args.frozen_vision else 'trained'}; checkpointing "
        f"{'on' if args.checkpointing else 'off'}; float32, 1 thread, torch {torch.__version__}, "
        f"{platform.processor() or platform.machine()}"
    )
    print(
        f"CPU seconds; {args.rounds} runs an arm, interleaved, {args.steps - 1} timed steps each; median, [least, most]"
    )
    peers = [arm for arm in runs if arm.startswith("trl")]
    heads = ["arm", "step", "range", "with collation", "range", *(f"faster than {p}" for p in peers)]
    heads += [*(f"with collation, than {p}" for p in peers), "ideal (FLOPs)", "peak GiB", "LM tokens", "vision passes"]
    print("| " + " | ".join(heads) + " |\n|" + " --- |" * len(heads))
    for arm, own in runs.items():
        (step, step_range), (whole, whole_range) = _spread(own, "seconds"), _spread(own, "collated")
        cells = [arm, f"{step:.2f}", step_range, f"{whole:.2f}", whole_range]
        cells += [f"{_spread(runs[peer], 'seconds')[0] / step:.2f}x" for peer in peers]
        cells += [f"{_spread(runs[peer], 'collated')[0] / whole:.2f}x" for peer in peers]
        cells += [f"{flops['trl'] / flops[arm]:.2f}x", f"{median(run['peak'] for run in own) / 2**30:.2f}"]
        print("| " + " | ".join([*cells, str(own[0]["tokens"]), f"{own[0]['tiles'] / args.tiles:g}"]) + " |")
    _print_epochs(runs, peers, flops)


def _print_epochs(runs: dict[str, list[dict[str, Any]]], peers: Sequence[str], flops: dict[str, float]) -> None:
    """What the cache is worth once its filling is counted: per step and epoch, collation included."""
    (whole, _), (filling, filling_range) = _spread(runs["cached"], "collated"), _spread(runs["cached"], "filling")
    print(f"\nFilling the cache: {filling:.2f} CPU seconds {filling_range} per step's rows, once, collation included")
    heads = [
        "epochs",
        "cached, with collation and filling",
        *(f"faster than {p}" for p in peers),
        "than online",
        "ideal (FLOPs)",
    ]
    print("| " + " | ".join(heads) + " |\n|" + " --- |" * len(heads))
    for epochs in EPOCHS:
        taken = whole + filling / epochs
        cells = [str(epochs), f"{taken:.2f}"]
        cells += [f"{_spread(runs[peer], 'collated')[0] / taken:.2f}x" for peer in [*peers, "online"]]
        print(
            "| " + " | ".join([*cells, f"{flops['trl'] / (flops['cached'] + flops['filling'] / epochs):.2f}x"]) + " |"
        )


def _between(times: Sequence[float]) -> list[float]:
    return [after - before for before, after in pairwise(times)]


def _spread(runs: Sequence[dict[str, Any]], name: str) -> tuple[float, str]:
    values = [value for run in runs for value in run[name]]
    return median(values), f"[{min(values):.2f}, {max(values):.2f}]"


if __name__ == "__main__":
    main()
