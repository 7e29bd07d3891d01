"""How many of the tokens that run are no padding, and how even the ranks' load is: random or balanced micro-batches.

    python -m benchmarks.packing [--pairs 4096] [--step 256] [--ranks 8] [--micro_batches 4] [--seed 0]

No model runs. A row is one pair in the shared layout: prompt, chosen and rejected response; a micro-batch is padded to
its longest row. The mix is made to look like MMPR (arXiv 2411.10442): responses of 300 tokens in the mean, log-normal;
images of 1 to 12 InternVL tiles of 256 tokens, one more for the thumbnail of an image of several; a question.
`random` cuts the shuffled pairs of a step into micro-batches of one size, as Trainer does. `balanced` is
`train_sampling_strategy="batch_rebalance"`: the same pairs per step, sorted by length, cut where the costs are even.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Sequence

from mpo.sampler import TokenBalancedSampler

TILE = 256  # tokens of one InternVL tile
Step = list[list[list[int]]]  # rank → micro-batch → lengths of its rows


def pair_lengths(pairs: int, rng: random.Random) -> list[int]:
    """Tokens of each pair's packed row."""
    return [_prompt(rng) + _response(rng) + _response(rng) + 1 for _ in range(pairs)]


def random_steps(lengths: Sequence[int], *, step: int, ranks: int, micro_batches: int, seed: int) -> Iterator[Step]:
    """Shuffled rows, micro-batches of one size, dealt to the ranks in turn."""
    order = random.Random(seed).sample(lengths, len(lengths))
    size = step // (ranks * micro_batches)
    for start in range(0, len(order) - step + 1, step):
        cut = [order[at : at + size] for at in range(start, start + step, size)]
        yield [cut[rank::ranks] for rank in range(ranks)]


def balanced_steps(lengths: Sequence[int], *, step: int, ranks: int, micro_batches: int, seed: int) -> Iterator[Step]:
    """What each rank's sampler yields."""
    shares = []
    for rank in range(ranks):
        where = {"dp_size": ranks, "grad_accum": micro_batches, "rank": rank, "seed": seed}
        places = list(TokenBalancedSampler(list(lengths), step, **where))
        shares.append([[lengths[place] for place in micro_batch] for micro_batch in places])
    for start in range(0, len(shares[0]), micro_batches):
        yield [share[start : start + micro_batches] for share in shares]


def figures(steps: Sequence[Step]) -> dict[str, float]:
    """Useful tokens / all tokens, padded ones included; and a step's slowest rank over its mean rank, in tokens."""
    useful = sum(length for step in steps for rank in step for rows in rank for length in rows)
    loads = [[sum(_tokens(rows) for rows in rank) for rank in step] for step in steps]
    ran = sum(map(sum, loads))
    uneven = [max(load) * len(load) / sum(load) for load in loads]
    largest = max(_tokens(rows) for step in steps for rank in step for rows in rank)
    return {"useful": useful / ran, "slowest / mean rank": sum(uneven) / len(uneven), "largest micro-batch": largest}


def main() -> None:
    """Print one line a way of cutting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("pairs", 4096), ("step", 256), ("ranks", 8), ("micro_batches", 4), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    lengths = pair_lengths(given.pairs, random.Random(given.seed))
    cut = {"step": given.step, "ranks": given.ranks, "micro_batches": given.micro_batches, "seed": given.seed}
    print(f"{given.pairs} pairs of {min(lengths)} to {max(lengths)} tokens, {given}")
    for name, steps in (("random", random_steps(lengths, **cut)), ("balanced", balanced_steps(lengths, **cut))):
        found = figures(list(steps))
        print(f"{name:>9}: " + ", ".join(f"{what} {value:,.3f}" for what, value in found.items()))


def _prompt(rng: random.Random) -> int:
    tiles = rng.randint(1, 12)
    return (tiles + (tiles > 1)) * TILE + rng.randint(30, 200)


def _response(rng: random.Random) -> int:
    """Log-normal with σ = 0.6 and mean 300: e^(μ + σ²/2)."""
    return min(2048, max(8, round(rng.lognormvariate(5.524, 0.6))))


def _tokens(rows: Sequence[int]) -> int:
    return len(rows) * max(rows)


if __name__ == "__main__":
    main()
