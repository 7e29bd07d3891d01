"""Beam search against best-of-N at equal generated tokens: policy, PRM, development problems of a finished digits run.

Best-of-N is drawn once with the largest N; best@k and tokens for every k ≤ N are expectations over its k-subsets. Each
beam search is compared, problem by problem, with best@k at the two k around its mean tokens, weighted so that the
tokens are equal. What beam search generates beyond the step that it keeps counts.

    python benchmarks/beam_vs_best_of_n.py runs/evidence/seed0                  # all development problems
    python benchmarks/beam_vs_best_of_n.py runs/evidence/seed0 --problems 30    # a first look
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from statistics import fmean

from mpo.multimodal.loading import load_for_inference, load_processor
from recipes.stage.groups import read_problems
from rewards.choosing.beam_search import BeamSearch
from rewards.choosing.curves import best_at_k
from rewards.prm.model_prm import ModelPRM
from rewards.sampling.generator import SamplingParams
from rewards.sampling.transformers_generator import TransformersGenerator
from rewards.scoring.groups import score_groups
from rewards.statistics import Estimate, mean_with_interval, paired_difference
from rewards.types import Problem, Rollout, RolloutGroup, Verdict
from rewards.verifying.verification import exact_verifier


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of `mpo pipeline`: policy/, prm/, world/development.jsonl")
    parser.add_argument("--problems", type=int, default=0, help="only this many of the first problems; 0 for all")
    parser.add_argument("--n", type=int, default=32, help="samples per problem for best-of-N")
    parser.add_argument("--beams", nargs="+", default=["2x2", "2x4", "4x4"], help="W x m")
    parser.add_argument("--step_tokens", type=int, nargs="+", default=[12, 72], help="limits of one extension")
    parser.add_argument("--max_new_tokens", type=int, default=72, help="of a sample")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    problems = list(read_problems(args.run / "world" / "development.jsonl").values())[: args.problems or None]
    prm, policy = ModelPRM.load(args.run / "prm"), load_for_inference(args.run / "policy")
    processor = load_processor(args.run / "policy")

    def generator(limit: int, rows: int) -> TransformersGenerator:
        params = SamplingParams(max_new_tokens=limit)
        return TransformersGenerator(policy, processor, params, batch_rows=128, rows_a_problem=rows)

    sampled = generator(args.max_new_tokens, args.n).generate(problems, args.n, seed=args.seed)
    groups = [
        RolloutGroup(problem, tuple(Rollout(completion) for completion in completions))
        for problem, completions in zip(problems, sampled, strict=True)
    ]
    groups, _ = score_groups(groups, prm)
    tokens = fmean(rollout.completion.num_tokens for group in groups for rollout in group.rollouts)
    print(f"{len(problems)} problems, {tokens:.1f} tokens per sample")
    print(f"{'':24}{'tokens':>8}  accuracy")
    best = {k: [_best_at(group, k) for group in groups] for k in range(1, args.n + 1)}
    for k in (k for k in best if k & (k - 1) == 0):
        print(f"{f'best-of-{k}':24}{k * tokens:8.0f}  {_shown(mean_with_interval(best[k]))}")
    for shape in args.beams:
        width, expand = map(int, shape.split("x"))
        for limit in args.step_tokens:
            engine = BeamSearch(generator(limit, expand), prm, width=width, expand=expand)
            searches = engine.search(problems, seed=args.seed)
            right = [float(s.best is not None and _is_right(s.problem, s.best)) for s in searches]
            spent = fmean(search.tokens for search in searches)
            name = f"beam {width}x{expand}, {limit} a step"
            line = f"{name:24}{spent:8.0f}  {_shown(mean_with_interval(right))}"
            k = spent / tokens
            if 1 <= k <= args.n:
                low = math.floor(k)
                share = k - low
                equal = [(1 - share) * a + share * b for a, b in zip(best[low], best[math.ceil(k)], strict=True)]
                line += f"  minus best-of-{k:.1f}: {_shown(paired_difference(right, equal))}"
            print(line, flush=True)


def _best_at(group: RolloutGroup, k: int) -> float:
    rewards = [-1.0 if rollout.reward is None else rollout.reward for rollout in group.rollouts]
    return best_at_k(rewards, [_is_right(group.problem, rollout) for rollout in group.rollouts], k)


def _is_right(problem: Problem, rollout: Rollout) -> bool:
    return exact_verifier(problem, rollout.completion.text) is Verdict.CORRECT


def _shown(estimate: Estimate) -> str:
    return f"{estimate.mean:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


if __name__ == "__main__":
    main()
