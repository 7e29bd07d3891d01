"""Scoring N responses of one problem with a PRM in VisualPRM's layout: three ways to the same scores.

`shared`: one packed row, question and pictures once. `response`: one forward pass a response, all its steps read at
once. `step`: one forward pass a step, as in VisualPRM's older path. Random InternVL, one process, ways interleaved.

    python benchmarks/prm_scoring.py
    python benchmarks/prm_scoring.py --tiles 13 --responses 8

`step` is measured on --step_responses responses and scaled to N, which is exact in FLOPs: no response sees another. The
ideal ratio counts FLOPs of the language model (weights and causal attention, that to the prefix included) and of the
vision tower; the label rows of the head are two dot products a step.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from _models import build_internvl, noise, vision_flops

WAYS = ("shared", "response", "step")
QUESTION = "What is the sum of the digits? " * 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, nargs="+", default=[3, 7, 13], help="tiles of the picture")
    parser.add_argument("--responses", type=int, nargs="+", default=[8, 16, 32], help="N")
    parser.add_argument("--steps", type=int, default=7, help="steps of a response")
    parser.add_argument("--step_tokens", type=int, default=40, help="tokens of a step")
    parser.add_argument("--step_responses", type=int, default=1, help="responses that are scored step by step")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each way")
    parser.add_argument("--hidden", type=int, default=384, help="width of the language model")
    parser.add_argument("--layers", type=int, default=6, help="layers of the language model")
    args = parser.parse_args()
    for tiles in args.tiles:
        with tempfile.TemporaryDirectory() as folder:
            size = build_internvl(Path(folder), hidden=args.hidden, layers=args.layers, tiles=tiles)
            for responses in args.responses:
                _measure(args, Path(folder), size, tiles, responses)


def _measure(args: argparse.Namespace, folder: Path, size: dict[str, int], tiles: int, responses: int) -> None:
    import torch

    from mpo.multimodal.loading import load_for_inference, load_processor
    from rewards.prm.formats import VISUALPRM
    from rewards.prm.model_prm import ModelPRM
    from rewards.types import Problem

    model = load_for_inference(folder)
    prm = ModelPRM(model, load_processor(folder), VISUALPRM, batch_rows=responses, max_pass_tokens=1 << 20)
    problem = Problem("p", QUESTION, (noise(tiles),))
    texts = ["\n\n".join(_step(args, i, j) for j in range(args.steps)) for i in range(responses)]
    counts: dict[str, int] = {}
    model.model.language_model.norm.register_forward_pre_hook(
        lambda module, given: counts.update(tokens=counts.get("tokens", 0) + given[0].shape[0] * given[0].shape[1])
    )
    model.model.vision_tower.register_forward_pre_hook(
        lambda module, given, named: counts.update(passes=counts.get("passes", 0) + 1), with_kwargs=True
    )

    def shared() -> list[list[float]]:
        prm.shares, prm.batch_rows = True, responses
        return [list(scores.values) for scores in prm.score(problem, texts)]

    def response() -> list[list[float]]:
        prm.shares, prm.batch_rows = False, 1
        return [list(scores.values) for scores in prm.score(problem, texts)]

    def step() -> list[list[float]]:
        prm.shares, prm.batch_rows = False, 1
        some = [prm.steps(text) for text in texts[: args.step_responses]]
        prefixes = [["\n\n".join(s.text for s in steps[: k + 1]) for k in range(len(steps))] for steps in some]
        return [[prm.score(problem, [prefix])[0].values[-1] for prefix in one] for one in prefixes]

    ways = {"shared": shared, "response": response, "step": step}
    scale = {"shared": 1.0, "response": 1.0, "step": responses / args.step_responses}
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    through: dict[str, dict[str, int]] = {}
    scores: dict[str, list[list[float]]] = {}
    shared()  # what a first call costs beyond others is not timed
    for turn in range(args.rounds):
        for way in WAYS:
            print(f"P ~ {256 * tiles}, N = {responses}, round {turn + 1}: {way}", file=sys.stderr)
            counts.clear()
            start = time.perf_counter()
            scores[way] = ways[way]()
            seconds[way].append((time.perf_counter() - start) * scale[way])
            through[way] = {name: round(value * scale[way]) for name, value in counts.items()}
    _print(args, size, tiles, responses, seconds, through, scores, threads=torch.get_num_threads())


def _step(args: argparse.Namespace, response: int, step: int) -> str:
    return "".join(str((response + step * (response + 3) + i * (step + 1)) % 10) for i in range(args.step_tokens))


def ideal_flops(
    args: argparse.Namespace, size: dict[str, int], tiles: int, *, prefix: float, tails: list[float], responses: int
) -> dict[str, float]:
    """FLOPs of each way; `tails` are the tokens behind the shared prefix after each step of a response."""

    def text(tokens: float, pairs: float) -> float:
        return 2 * size["text"] * tokens + 4 * args.hidden * args.layers * pairs

    def row(length: float) -> float:
        return text(length, length**2 / 2)

    tail, vision = tails[-1], vision_flops(tiles, size["vision"])
    pairs = prefix**2 / 2 + responses * (tail * prefix + tail**2 / 2)
    return {
        "shared": text(prefix + responses * tail, pairs) + vision,
        "response": responses * (row(prefix + tail) + vision),
        "step": responses * sum(row(prefix + part) + vision for part in tails),
    }


def _print(
    args: argparse.Namespace,
    size: dict[str, int],
    tiles: int,
    responses: int,
    seconds: dict[str, list[float]],
    through: dict[str, dict[str, int]],
    scores: dict[str, list[list[float]]],
    *,
    threads: int,
) -> None:
    rewards = {way: [sum(one) / len(one) for one in some] for way, some in scores.items()}
    ranked = {way: sorted(range(responses), key=lambda i: -rewards[way][i]) for way in ("shared", "response")}
    flat = {way: [value for one in some for value in one] for way, some in scores.items()}
    apart = max(abs(a - b) for a, b in zip(flat["shared"], flat["response"], strict=True))
    apart_step = max(abs(a - b) for a, b in zip(flat["shared"], flat["step"], strict=False))
    # tokens: shared = prefix + N·tail, response = N·(prefix + tail)
    prefix = round((through["response"]["tokens"] - through["shared"]["tokens"]) / (responses - 1))
    tail = (through["shared"]["tokens"] - prefix) / responses
    last = tail / args.steps
    tails = [last * (k + 1) for k in range(args.steps)]
    flops = ideal_flops(args, size, tiles, prefix=prefix, tails=tails, responses=responses)
    print(
        f"InternVL, {size['all'] / 1e6:.1f} M parameters; shared prefix of {prefix} tokens ({tiles} tiles); N = "
        f"{responses}; {tail:.0f} tokens a response, {args.steps} steps; float32, {threads} threads, "
        f"{platform.machine()}; largest difference of a score: {apart:.1e} (response), {apart_step:.1e} (step); "
        f"same ranking: {ranked['shared'] == ranked['response']}"
    )
    heads = ("way", "seconds", "range", "shared is faster by", "ideal (FLOPs)", "reached", "LM tokens", "token ratio",
             "tower calls")  # fmt: skip
    print("| " + " | ".join(heads) + " |\n|" + " --- |" * len(heads))
    for way in WAYS:
        ratio, ideal = median(seconds[way]) / median(seconds["shared"]), flops[way] / flops["shared"]
        cells = (
            *(way, f"{median(seconds[way]):.2f}", f"[{min(seconds[way]):.2f}, {max(seconds[way]):.2f}]"),
            *(f"{ratio:.2f}x", f"{ideal:.2f}x", f"{100 * ratio / ideal:.0f} %", str(through[way]["tokens"])),
            *(f"{through[way]['tokens'] / through['shared']['tokens']:.2f}x", str(through[way]["passes"])),
        )
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
