"""Scoring N responses of one problem with a PRM in VisualPRM's layout: three ways to the same scores.

`shared`: question and images once for all responses. `response`: one forward pass per response, all its steps read at
once. `step`: one forward pass per step, as in VisualPRM's first code. Random InternVL, one process, ways interleaved.

    python benchmarks/prm_scoring.py
    python benchmarks/prm_scoring.py --tiles 3 7 13 --responses 8 16 32 --clock cpu

`response` and `step` are timed on a few responses and scaled to N, which is exact in FLOPs: no response sees another.
Before that, all responses are scored both ways, for the ranking. The ideal ratio counts FLOPs of the language model
(weights and causal attention, that to the prefix included) and of the vision tower; the label rows of the head are two
dot products per step. On a machine with other work, `--clock cpu` leaves out the time that the others had.
"""

from __future__ import annotations

import argparse
import platform
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from statistics import median

from _models import Width, image_of, internvl, parameters, processor_of, scoring_flops

QUESTION = "What is the sum of the digits? " * 6
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass
class Way:
    """One way to score, and what its runs took, scaled to `of` responses."""

    score: Callable[[], list[list[float]]]
    scale: float
    of: int
    seconds: list[float] = field(default_factory=list)
    tokens: int = 0
    passes: int = 0  # of the vision tower


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, nargs="+", default=[7], help="tiles of the image, 256 tokens each")
    parser.add_argument("--responses", type=int, nargs="+", default=[8, 32], help="N")
    parser.add_argument("--steps", type=int, default=7, help="steps of a response")
    parser.add_argument("--step_tokens", type=int, default=40, help="tokens of a step")
    parser.add_argument("--timed_responses", type=int, default=2, help="responses that `response` is timed on")
    parser.add_argument("--rounds", type=int, default=3, help="timed runs of each way")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--hidden", type=int, default=384, help="width of the language model")
    parser.add_argument("--layers", type=int, default=6, help="layers of the language model")
    args = parser.parse_args()
    for tiles in args.tiles:
        _measure(args, tiles)


def _width(args: argparse.Namespace) -> Width:
    from recipes.worlds.digits.policy import build_processor

    words = len(build_processor().tokenizer)
    return Width(args.hidden, args.layers, 8, 8, args.hidden * 8 // 3, 128, 2, 4, vocabulary=words)


def _measure(args: argparse.Namespace, tiles: int) -> None:
    import torch

    from rewards.prm.formats import VISUALPRM
    from rewards.prm.model_prm import ModelPRM
    from rewards.types import Problem

    most = max(args.responses)
    width = _width(args)
    model = internvl(width)
    prm = ModelPRM(model, processor_of(width, tiles), VISUALPRM, batch_rows=most)
    problem = Problem("p", QUESTION, (image_of(width, tiles),))
    texts = ["\n\n".join(_step(args, i, j) for j in range(args.steps)) for i in range(most)]
    counts = {"tokens": 0, "passes": 0}

    def count(name: str, number: int) -> None:
        counts[name] += number

    model.model.language_model.norm.register_forward_pre_hook(
        lambda module, given: count("tokens", given[0].shape[0] * given[0].shape[1])
    )
    model.model.vision_tower.register_forward_pre_hook(
        lambda module, given, named: count("passes", 1), with_kwargs=True
    )

    def score(some: list[str], *, shares: bool) -> list[list[float]]:
        prm.shares, prm.batch_rows = shares, most if shares else 1
        return [list(scores.values) for scores in prm.score(problem, some)]

    def step() -> list[list[float]]:
        steps = prm.steps(texts[0])
        prefixes = ["\n\n".join(s.text for s in steps[: k + 1]) for k in range(len(steps))]
        return [[score([prefix], shares=False)[0][-1] for prefix in prefixes]]

    print(f"P ~ {256 * tiles}: all responses both ways, untimed", file=sys.stderr)
    scores = {"shared": score(texts, shares=True), "response": score(texts, shares=False), "step": step()}
    few = texts[: args.timed_responses]
    ways = {
        "response": Way(partial(score, few, shares=False), most / len(few), most),
        "step": Way(step, most, most),
        **{f"shared {n}": Way(partial(score, texts[:n], shares=True), 1.0, n) for n in args.responses},
    }
    for turn in range(args.rounds):
        for name, way in ways.items():
            print(f"P ~ {256 * tiles}, round {turn + 1}: {name}", file=sys.stderr)
            counts.update(tokens=0, passes=0)
            start = CLOCKS[args.clock]()
            way.score()
            way.seconds.append((CLOCKS[args.clock]() - start) * way.scale)
            way.tokens, way.passes = (round(counts[name] * way.scale) for name in ("tokens", "passes"))
    _print(args, parameters(model), tiles, ways, scores, threads=torch.get_num_threads())


def _step(args: argparse.Namespace, response: int, step: int) -> str:
    draw = random.Random(f"response {response}, step {step}")
    return "".join(str(draw.randrange(10)) for _ in range(args.step_tokens))


def _print(
    args: argparse.Namespace,
    size: dict[str, int],
    tiles: int,
    ways: dict[str, Way],
    scores: dict[str, list[list[float]]],
    *,
    threads: int,
) -> None:
    most = max(args.responses)
    apart = {
        way: max(abs(a - b) for ours, theirs in zip(scores["shared"], some, strict=False)
                 for a, b in zip(ours, theirs, strict=True))
        for way, some in scores.items()
    }  # fmt: skip
    rewards = {way: [sum(one) / len(one) for one in some] for way, some in scores.items()}
    same = _ranking(rewards["shared"]) == _ranking(rewards["response"])
    best_first = sorted(rewards["response"], reverse=True)
    nearest = min(better - worse for better, worse in pairwise(best_first))
    # tokens: shared = prefix + N·tail, response = N·(prefix + tail)
    prefix = round((ways["response"].tokens - ways[f"shared {most}"].tokens) / (most - 1))
    tail = ways["response"].tokens / most - prefix
    tails = [tail / args.steps * (k + 1) for k in range(args.steps)]
    print(
        f"InternVL, {size['all'] / 1e6:.1f} M parameters; shared prefix of {prefix} tokens ({tiles} tiles); {tail:.0f} "
        f"tokens per response, {args.steps} steps; float32, {threads} threads, {platform.machine()}, "
        f"{args.clock} clock, "
        f"{args.rounds} rounds; largest difference of a score: {apart['response']:.1e} (response), {apart['step']:.1e} "
        f"(step); same ranking of {most}: {same} (nearest rewards {nearest:.1e} apart)"
    )
    heads = ("P", "N", "way", "seconds", "range", "shared is faster by", "ideal, FLOPs", "reached", "of the minima",
             "LM tokens", "token ratio", "tower calls")  # fmt: skip
    print("| " + " | ".join(heads) + " |\n|" + " --- |" * len(heads))
    for n in args.responses:
        flops = scoring_flops(_width(args), size, tiles, prefix=prefix, tails=tails, responses=n)
        shared = ways[f"shared {n}"]
        for name, way in (("shared", shared), ("response", ways["response"]), ("step", ways["step"])):
            part = n / way.of
            ratio, ideal = part * median(way.seconds) / median(shared.seconds), flops[name] / flops["shared"]
            least = part * min(way.seconds) / min(shared.seconds)
            seconds = [part * value for value in way.seconds]
            cells = (
                *(str(prefix), str(n), name, f"{median(seconds):.2f}", f"{min(seconds):.2f}-{max(seconds):.2f}"),
                *(f"{ratio:.2f}x", f"{ideal:.2f}x", f"{100 * ratio / ideal:.0f} %", f"{100 * least / ideal:.0f} %"),
                *(f"{part * way.tokens:.0f}", f"{part * way.tokens / shared.tokens:.2f}x", f"{part * way.passes:.0f}"),
            )
            print("| " + " | ".join(cells) + " |", flush=True)


def _ranking(rewards: list[float]) -> list[int]:
    return sorted(range(len(rewards)), key=lambda index: -rewards[index])


if __name__ == "__main__":
    main()
