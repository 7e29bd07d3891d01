"""`mpo evaluate`: every policy answers every benchmark, every critic chooses among the same responses, at every N.

One set of responses per policy and benchmark serves all critics and all N. Each part is a stage in a folder of its own
(`benchmarks/`, `policies/`), so a run that was killed continues with the same command, and what is finished is not made
again when a policy, a benchmark or a critic is added. `results/` holds the table (Markdown, LaTeX, CSV, JSON), the page
and the near-duplicates between training and test.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from mpo.multimodal.errors import ConfigError
from mpo.multimodal.hub import loadable_folder
from recipes.answering.best_of_n import best_of_n
from recipes.config import (
    BestOfNConfig,
    EvaluateArguments,
    ImportResponsesConfig,
    OverlapConfig,
    RateConfig,
    SampleConfig,
)
from recipes.data.import_responses import import_responses
from recipes.data.overlap import Overlap, counts_of, overlap
from recipes.data.rate import rate
from recipes.data.sample import sample
from recipes.data.verify import verify
from recipes.evaluating.problems import benchmark_problems
from recipes.evaluating.results import Part, write_results
from recipes.evaluating.settings import BenchmarkEntry, CriticEntry, Matrix, PolicyEntry, folder_name
from recipes.stage.folder import MANIFEST
from recipes.stage.groups import iter_groups
from rewards.choosing.matrix import needed_ks
from rewards.kept.keys import digest


def evaluate(config: EvaluateArguments) -> Path:
    """Make what is missing, then write and print the table; returns the folder `results`.

    Raises:
        ConfigError: settings that cannot work; all are checked before anything runs.
    """
    matrix, out = Matrix(config.settings), config.out
    problems = {
        entry.row.name: benchmark_problems(entry, out / "benchmarks" / folder_name(entry.row.name))
        for entry in matrix.benchmarks
    }
    found: dict[str, Overlap] = {}
    if matrix.training:
        folder = overlap(OverlapConfig(matrix.training, list(problems.values()), out / "overlap"))
        found = dict(zip(problems, counts_of(folder), strict=True))
    parts = [part for policy in matrix.policies for part in _parts(matrix, policy, problems, out)]
    return write_results(matrix, problems, parts, found, out)


def _parts(matrix: Matrix, policy: PolicyEntry, problems: dict[str, Path], out: Path) -> Iterator[Part]:
    """What one policy's responses to each benchmark are worth."""
    for entry in matrix.benchmarks:
        name = entry.row.name
        folder = out / "policies" / folder_name(policy.name) / folder_name(name)
        own = folder / f"n{max(matrix.ns)}"  # what depends on all the responses, of which there may be more one day
        if policy.responses and name not in policy.responses:
            continue
        groups = _responses(matrix, policy, entry, problems[name], folder)
        verified = verify(matrix.verifying(entry, groups, own / "verified"))
        most = min(len(group.rollouts) for group in iter_groups(verified))
        ks = needed_ks(matrix.ns, [one.critic for one in matrix.critics], most)
        if not ks:
            raise ConfigError(
                f"{policy.name} has {most} responses to a problem of {name}, fewer than any of ns={matrix.ns}"
            )
        votes = best_of_n(BestOfNConfig(verified, own / f"votes_{_tag(ks)}", ks, scored=False, skip_unverified=True))
        chosen = {one.critic.name: _chosen(matrix, policy, entry, one, verified, own, ks) for one in matrix.critics}
        yield Part(policy.name, entry, groups, verified, votes, chosen, most)


def _responses(matrix: Matrix, policy: PolicyEntry, entry: BenchmarkEntry, problems: Path, folder: Path) -> Path:
    """The responses: drawn, read from files of others, or those of a finished stage."""
    if policy.responses:
        given = policy.responses[entry.row.name]
        if (given / MANIFEST).is_file():
            return given
        return import_responses(ImportResponsesConfig([given], folder / "responses", problems=problems))
    config: SampleConfig = matrix.sampling(policy, entry, problems, folder / "samples")
    return sample(replace(config, policy=config.policy and loadable_folder(config.policy)))


def _chosen(
    matrix: Matrix,
    policy: PolicyEntry,
    entry: BenchmarkEntry,
    critic: CriticEntry,
    verified: Path,
    folder: Path,
    ks: list[int],
) -> Path | None:
    """What a critic's choices are worth; None for a vote, which has no rewards."""
    settings, own = critic.settings, folder / "critics" / folder_name(matrix.first_alike(critic))
    if settings.vote:
        return None
    if settings.prm is not None:
        from recipes.data.score import score  # loads torch

        scoring = matrix.scoring(critic, verified, own / "rewards")
        rewards = score(replace(scoring, prm=loadable_folder(scoring.prm)))
    elif settings.reward_model is not None:
        rewards = rate(
            RateConfig(
                verified, own / "rewards", by="reward_model", reward_model=loadable_folder(settings.reward_model)
            )
        )
    elif settings.judge is not None or settings.judge_url:
        judging = RateConfig(
            verified, own / "rewards", by="judge", judge=settings.judge and loadable_folder(settings.judge)
        )
        rewards = rate(replace(judging, base_url=settings.judge_url, model=settings.judge_model))
    elif settings.scores:
        file = Path(settings.scores.replace("{policy}", policy.name).replace("{benchmark}", entry.row.name))
        rewards = rate(RateConfig(verified, own / "rewards", by="scores", scores=file))
    else:
        rewards = rate(RateConfig(verified, own / "rewards"))
    return best_of_n(BestOfNConfig(rewards, own / f"best_of_n_{_tag(ks)}", ks, skip_unverified=True))


def _tag(ks: list[int]) -> str:
    """Names the folder of an evaluation by its k: a further N or critic may need others."""
    return digest(ks)[:8]
