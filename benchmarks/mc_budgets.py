"""Monte-Carlo budgets on the digits world: continuations, seconds, and how often their hard labels agree.

For each seed a world and a policy are made, its samples verified, and the same responses labelled under every budget,
under `full` a second time, and exactly. Two independent full runs are the ruler: K draws per step make labels that
agree only so far, whatever the budget. Agreement is over the steps of the responses that all runs labelled, the last
step left out, since no run draws from it.

    python benchmarks/mc_budgets.py
    python benchmarks/mc_budgets.py --problems 20 --samples 3  # the table of docs/prm.md, 10 to 20 minutes per seed
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import mean

from recipes.config import ExactLabelConfig, LabelConfig, SampleConfig, VerifyConfig, WarmStartConfig, WorldConfig
from recipes.data.label_steps import label
from recipes.data.sample import sample
from recipes.data.verify import verify
from recipes.stage.folder import manifest_of
from recipes.stage.groups import read_groups
from recipes.training.warm_start import warm_start
from recipes.worlds.digits.compose import compose
from recipes.worlds.digits.exact_labels import label_exactly
from rewards.types import Verdict

RUNS = {"full": "full", "full again": "full", "sequential": "sequential", "bisect": "bisect"}  # row: budget
ALL = 1000  # responses per problem, more than there are: every run labels the same ones

Labels = dict[tuple[str, str], list[bool]]  # (problem, response) → hard labels, the last step's left out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one world and policy each")
    parser.add_argument("--problems", type=int, default=40, help="problems whose samples are labelled")
    parser.add_argument("--samples", type=int, default=4, help="responses per problem")
    parser.add_argument("--k", type=int, default=16, help="continuations per step")
    parser.add_argument("--warm_start", type=int, default=600, help="steps of supervised training")
    parser.add_argument("--folder", type=Path, help="keep the runs here, and continue from what is there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        rows = [_seed(args, folder / f"seed{seed}", seed) for seed in args.seeds]
    _print(args, rows)


def _seed(args: argparse.Namespace, run: Path, seed: int) -> dict[str, dict[str, float]]:
    """Row → column → value, for one seed."""
    print(f"seed {seed}", file=sys.stderr)
    world = compose(WorldConfig(run / "world", seed, num_prm=args.problems, num_preference=2, num_test=2))
    warm = WarmStartConfig(world / "policy", world, run / "policy", args.warm_start, batch_size=16, seed=seed)
    policy = warm_start(warm)
    drawing = {"max_new_tokens": 72, "batch_rows": 256, "seed": seed}
    drawn = sample(
        SampleConfig(
            policy=policy,
            problems=world / "prm.jsonl",
            out=run / "samples",
            num_samples=args.samples,
            prompt="direct",
            **drawing,
        )
    )
    verified = verify(VerifyConfig(drawn, run / "verified"))
    exact = label_exactly(ExactLabelConfig(verified, policy, run / "exact", ALL, mixed_only=False))
    folders = {
        row: label(
            LabelConfig(
                verified,
                run / row.replace(" ", "_"),
                policy=policy,
                budget=budget,
                num_continuations=args.k,
                responses=ALL,
                mixed_only=False,
                **(drawing | {"seed": 100 * seed + index}),
            )
        )
        for index, (row, budget) in enumerate(RUNS.items())
    }
    labels = {row: hard_labels(folder) for row, folder in {**folders, "exact": exact}.items()}
    common = set.intersection(*(set(some) for some in labels.values()))
    wrong = {
        (group.problem.id, rollout.completion.text)
        for group in read_groups(verified)
        for rollout in group.rollouts
        if rollout.verdict is not Verdict.CORRECT
    }
    table = {}
    for row, folder in folders.items():
        cost = manifest_of(folder)["counts"]["drawn"]
        table[row] = {
            "continuations": cost["continuations"],
            "seconds": cost["seconds"],
            "full": agreement(labels[row], labels["full"], common),
            "full, wrong": agreement(labels[row], labels["full"], common & wrong),
            "exact": agreement(labels[row], labels["exact"], common),
            "exact, wrong": agreement(labels[row], labels["exact"], common & wrong),
            "responses": len(common),
            "right": 1 - len(common & wrong) / len(common),
            "steps": sum(len(labels["full"][response]) for response in common),
            "expected": manifest_of(folder)["counts"]["estimate"]["expected"],
        }
    return table


def hard_labels(folder: Path) -> Labels:
    """[mc > 0] of every step but the last."""
    return {
        (group.problem.id, rollout.completion.text): [
            bool(count and count.correct) for count in (rollout.mc or ())[:-1]
        ]
        for group in read_groups(folder)
        for rollout in group.rollouts
    }


def agreement(some: Labels, others: Labels, responses: set[tuple[str, str]]) -> float:
    """Share of the responses' steps with the same label."""
    pairs = [pair for response in responses for pair in zip(some[response], others[response], strict=True)]
    return mean(a == b for a, b in pairs) if pairs else float("nan")


def _print(args: argparse.Namespace, seeds: list[dict[str, dict[str, float]]]) -> None:
    first = [table["full"] for table in seeds]
    print(
        f"digits world, K = {args.k}, seeds {args.seeds}; labelled by all runs: "
        f"{' / '.join(format(t['responses'], '.0f') for t in first)} responses "
        f"({' / '.join(format(t['right'], '.0%') for t in first)} right), "
        f"{' / '.join(format(t['steps'], '.0f') for t in first)} steps. Mean over seeds [least, most]"
    )
    heads = ("budget", "continuations", "of full", "said before", "seconds", "of full", "agrees with full")
    heads += ("on wrong responses", "agrees with exact", "on wrong responses")
    print("| " + " | ".join(heads) + " |\n|" + " --- |" * len(heads))
    for row in RUNS:

        def over(column: str, form: str, name: str = row, relative: bool = False) -> str:
            values = [t[name][column] / (t["full"][column] if relative else 1) for t in seeds]
            spread = f" [{min(values):{form}}, {max(values):{form}}]" if len(values) > 1 else ""
            return f"{mean(values):{form}}{spread}"

        itself = ("", "") if row == "full" else (over("full", ".3f"), over("full, wrong", ".3f"))
        cells = (
            *(
                row,
                over("continuations", ",.0f"),
                over("continuations", ".2f", relative=True),
                over("expected", ",.0f"),
            ),
            *(over("seconds", ".1f"), over("seconds", ".2f", relative=True), *itself),
            *(over("exact", ".3f"), over("exact, wrong", ".3f")),
        )
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
