r"""Answers per second and core: `MathVerifier` and its killable worker against `math_verify` called in this process.

Both sides compare the same (reference, final answer) pairs, all different, so that nothing is remembered. Sets:

- text: equal strings, words, choices. `MathVerifier` decides them without its worker.
- numbers: integers and decimals that are not equal as text.
- LaTeX: fractions, roots, products, intervals.
- hanging: LaTeX; every `--hang-every`-th answer is a tower of powers that math-verify does not finish in a minute
  (its issue 65). In this process it would never come back, so it is left out there.

A last table has whole responses of some 400 characters, read and checked in this process by `choice`, `number` and
`exact`.

Wall-clock seconds with the worker started beforehand; sides interleaved, medians. The worker's start, which imports
math-verify and SymPy, is timed apart: every killed check costs the time limit and such a start.

    python benchmarks/verification.py
    python benchmarks/verification.py --answers 1000 --workers 2
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import time
from collections import Counter
from collections.abc import Callable
from statistics import median

from rewards.types import Problem, Verdict
from rewards.verifying.math_verifier import MathVerifier, compare
from rewards.verifying.verification import VERIFIERS

HANG = r"\dfrac{5^{\left(5^{\left(5^{\left(5^5\right)}\right)}-4\right)}-5}{16}"
Pair = tuple[str, str]  # reference, final answer
Check = Callable[[list[Pair], MathVerifier], list[Verdict]]
STARTER = (Problem("p", "?", answer="2"), r"\boxed{1+1}")


def text_pair(i: int, rng: random.Random) -> Pair:
    word = "".join(rng.choices("abcdefghijklmnoprstuvw", k=8))
    return rng.choice([(word, word), (word, word[::-1]), (str(i), str(i)), (f"x^{{{i}}}", f"x^{{{i}}}")])


def number_pair(i: int, rng: random.Random) -> Pair:
    return rng.choice([(str(i), f"{i}.0"), (str(i), str(i + 1)), (f"{i}.5", f"{i + 1}.5")])


def latex_pair(i: int, rng: random.Random) -> Pair:
    n = i + 2
    return rng.choice(
        [
            (rf"\frac{{{n}}}{{2}}", f"{n / 2}"),
            (rf"{n}\sqrt{{2}}", rf"\sqrt{{{2 * n * n}}}"),
            (rf"{n}\sqrt{{2}}", rf"{n}\sqrt{{3}}"),
            (rf"x^2+{2 * n}x+{n * n}", rf"(x+{n})^2"),
            (f"[0, {n})", f"[0,{n}]"),
        ]
    )


SETS: dict[str, Callable[[int, random.Random], Pair]] = {
    "text": text_pair,
    "numbers": number_pair,
    "LaTeX": latex_pair,
    "hanging": latex_pair,
}


def made(name: str, args: argparse.Namespace) -> list[Pair]:
    """The pairs of a set, all different."""
    rng = random.Random(name)
    pairs = list(dict.fromkeys(SETS[name](i, rng) for i in range(args.answers)))
    if name == "hanging":
        for place in range(0, len(pairs), args.hang_every):
            pairs[place] = (str(place), HANG)
    return pairs


def in_process(pairs: list[Pair], _: MathVerifier) -> list[Verdict]:
    """math-verify without any limit, as the worker calls it."""
    return [compare(*pair) for pair in pairs if pair[1] != HANG]


def in_workers(pairs: list[Pair], verifier: MathVerifier) -> list[Verdict]:
    """Through the verifier, its answers boxed as in a response."""
    return verifier.verify_many([(Problem("p", "?", answer=gold), rf"\boxed{{{found}}}") for gold, found in pairs])


def measured(check: Check, pairs: list[Pair], args: argparse.Namespace) -> tuple[float, Counter[Verdict]]:
    """Seconds and verdicts of one run, with a fresh verifier (it remembers) whose worker is running already."""
    with MathVerifier(workers=args.workers, timeout_s=args.timeout_s) as verifier:
        if check is in_workers:
            verifier.verify(*STARTER)
        started = time.perf_counter()
        verdicts = check(pairs, verifier)
        return time.perf_counter() - started, Counter(verdicts)


REASONING = """The triangle is isosceles, so its base angles are equal.

**Step 1:** Let each base angle be x degrees. The angles of a triangle sum to 180 degrees, so 40 + 2x = 180.

**Step 2:** We take 40 from both sides, which gives 2x = 140, and halve: each base angle has the same measure.

**Step 3:** We check the sum of all three: it is right, so our work is consistent with the picture above.

"""
RESPONSES = {"choice": ("B", "The answer is ({})."), "number": ("70", "Final answer: {} degrees"), "exact": ("B", "{}")}


def responses_per_second(name: str, count: int) -> float:
    """Whole responses, all different, read and checked in this process."""
    reference, phrase = RESPONSES[name]
    problem = Problem("p", "?", answer=reference)
    texts = [
        f"Try {i}. {REASONING}" + (r"\boxed{B}" if name == "exact" else phrase.format(reference)) for i in range(count)
    ]
    started = time.perf_counter()
    verdicts = {VERIFIERS[name](problem, text) for text in texts}
    seconds = time.perf_counter() - started
    assert verdicts == {Verdict.CORRECT}
    return count / seconds


def start_seconds() -> float:
    """From no worker to its first verdict."""
    with MathVerifier(timeout_s=60.0) as verifier:
        started = time.perf_counter()
        verifier.verify(*STARTER)
        return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=200, help="of a set")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--timeout-s", type=float, default=1.0)
    parser.add_argument("--hang-every", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side")
    args = parser.parse_args()
    sides: dict[str, Check] = {"math-verify in process": in_process, "MathVerifier": in_workers}
    print(
        f"{args.answers} answers per set, {args.workers} workers, a limit of {args.timeout_s} s; "
        f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}, Python {platform.python_version()}"
    )
    print(f"a worker's start: {median(start_seconds() for _ in range(args.rounds)):.2f} s")
    print("| set | side | answers/s per worker | range | µs per answer | verdicts |\n|" + " --- |" * 6)
    for name in SETS:
        pairs = made(name, args)
        runs: dict[str, list[tuple[float, Counter[Verdict]]]] = {side: [] for side in sides}
        for turn in range(args.rounds + 1):
            for side, check in sides.items():
                if name != "hanging" or check is in_workers:
                    run = measured(check, pairs, args)
                    if turn or name == "hanging":  # the first warms up
                        runs[side].append(run)
        for side, found in runs.items():
            if not found:
                print(f"| {name} | {side} | never returns | | | |")
                continue
            width = args.workers if sides[side] is in_workers else 1
            rates = sorted(len(pairs) / seconds / width for seconds, _ in found)
            verdicts = ", ".join(f"{n} {verdict}" for verdict, n in sorted(found[0][1].items()))
            print(
                f"| {name} | {side} | {median(rates):,.0f} | {rates[0]:,.0f}–{rates[-1]:,.0f} "
                f"| {1e6 / median(rates):,.0f} | {verdicts} |",
                flush=True,
            )
    print("| responses | read per second | µs per response |\n|" + " --- |" * 3)
    for name in RESPONSES:
        rate = median(responses_per_second(name, args.answers) for _ in range(args.rounds))
        print(f"| {name} | {rate:,.0f} | {1e6 / rate:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
