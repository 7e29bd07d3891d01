"""The whole loop in Python: sample, verify, score, make pairs, train with MPO, answer with the best of N.

    python examples/loop.py POLICY PRM problems.jsonl OUT [optimizer steps]

A line is `{"id": …, "question": …, "images": ["images/1.png"], "answer": …}`, the images inside the file's folder.
Every fourth problem is held out: accuracy is measured on those alone, before and after training.
"""

import json
import sys
from collections import Counter
from pathlib import Path

from mpo import MPOConfig, MPOTrainer, load_for_inference, load_image, load_processor
from rewards import (
    BestOfN,
    Generator,
    Limits,
    MathVerifier,
    ModelPRM,
    Problem,
    Rollout,
    RolloutGroup,
    SamplingParams,
    TransformersGenerator,
    accuracy_at_k,
    build_pairs,
    mean_with_interval,
    score_groups,
    to_trl_row,
)

N = 8  # responses per problem
PARAMS = SamplingParams(temperature=1.0, max_new_tokens=72)


def read_problems(file: Path) -> list[Problem]:
    """Problems with their images decoded."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [
        Problem(
            row["id"],
            row["question"],
            tuple(load_image(name, root=file.parent) for name in row["images"]),
            row["answer"],
        )
        for row in rows
    ]


def sampled(generator: Generator, problems: list[Problem], *, seed: int) -> list[RolloutGroup]:
    """N responses of the policy to each problem."""
    drawn = generator.generate(problems, N, seed=seed)
    return [
        RolloutGroup(problem, tuple(map(Rollout, completions)))
        for problem, completions in zip(problems, drawn, strict=True)
    ]


def verified(groups: list[RolloutGroup], verifier: MathVerifier) -> list[RolloutGroup]:
    """Each response's final answer compared with the problem's."""
    texts = [(group.problem, rollout.completion.text) for group in groups for rollout in group.rollouts]
    verdicts = iter(verifier.verify_many(texts))
    return [
        RolloutGroup(group.problem, tuple(Rollout(rollout.completion, next(verdicts)) for rollout in group.rollouts))
        for group in groups
    ]


def scored(
    policy: str, problems: list[Problem], verifier: MathVerifier, prm: ModelPRM, *, seed: int
) -> list[RolloutGroup]:
    """Sample, verify, score: what pairs are made of and accuracy is measured on."""
    model, processor = load_for_inference(policy), load_processor(policy)
    groups = verified(sampled(TransformersGenerator(model, processor, PARAMS), problems, seed=seed), verifier)
    groups, lacking = score_groups(groups, prm)
    verdicts = Counter(rollout.verdict.name.lower() for group in groups for rollout in group.rollouts)
    print(f"{len(problems)} problems x {N} responses: {dict(verdicts)}; not scored: {dict(lacking) or 0}")
    return groups


def show_accuracy(name: str, groups: list[RolloutGroup]) -> None:
    """One response, the majority of N, the PRM's best of N, and N chances."""
    for selector, k in (("prm", 1), ("majority", N), ("prm", N), ("oracle", N)):
        shown = mean_with_interval([accuracy_at_k(group, selector, k) for group in groups])
        print(f"{name}: {selector}@{k} {shown.mean:.1%} [{shown.low:.1%}, {shown.high:.1%}]")


def main(policy: str, prm_folder: str, file: Path, out: str, steps: int) -> None:
    """The loop."""
    prm = ModelPRM.load(prm_folder)
    problems = read_problems(file)
    held_out = problems[::4]
    practice = [problem for index, problem in enumerate(problems) if index % 4]

    with MathVerifier() as verifier:
        groups = scored(policy, practice, verifier, prm, seed=0)
        pairs, report = build_pairs(groups, rule="correctness_and_prm", limits=Limits(max_pairs=3))
        print(f"{report.pairs} pairs; problems without one: {report.dropped}")

        args = MPOConfig(out, max_steps=steps, per_device_train_batch_size=8, learning_rate=2e-4, report_to="none")
        trainer = MPOTrainer(policy, args=args, train_dataset=[to_trl_row(pair) for pair in pairs])
        trainer.train()
        trainer.save_model(out)

        show_accuracy("before", scored(policy, held_out, verifier, prm, seed=1))
        show_accuracy("after", scored(out, held_out, verifier, prm, seed=1))

    problem = held_out[0]
    answer = BestOfN(out, prm, params=PARAMS).answer(problem.images, problem.question, N)
    print(f"{problem.question} {answer.final_answer} (right: {problem.answer}), the best of {len(answer.candidates)}")


if __name__ == "__main__":
    given = sys.argv[1:]
    main(given[0], given[1], Path(given[2]), given[3], int(given[4]) if len(given) > 4 else 100)
