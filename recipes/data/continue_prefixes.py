"""`mpo continue`: for problems with only wrong samples, ask again from where the samples were still sound."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from mpo.multimodal.errors import ConfigError
from mpo.multimodal.loading import load_for_inference, load_processor
from recipes.config import ContinueConfig
from recipes.stage.engine import engine
from recipes.stage.folder import open_stage
from recipes.stage.groups import problems_of, read_groups, write_groups
from recipes.stage.kept_calls import open_calls
from rewards.pairing.prefixes import continue_beginnings, is_all_wrong, sound_beginnings
from rewards.pairing.spans import RejectedSpan
from rewards.prm.labelling.monte_carlo import Continuer
from rewards.sampling.transformers_generator import SamplingParams, TransformersGenerator
from rewards.types import Verdict
from rewards.verifying.auto import AutoVerifier
from rewards.verifying.finished import verify_completions
from rewards.verifying.math_verifier import MathVerifier


def continue_prefixes(config: ContinueConfig) -> Path:
    """Write `groups.jsonl` with prefix ⊕ continuation as verified responses, for `mpo score` and `mpo pairs`.

    The budget is prefixes x num_continuations for each problem with only wrong samples; the manifest says what was
    drawn. Each call's results are in `calls.sqlite` as soon as they are there.
    """
    stage = open_stage("continue", config, inputs=[config.groups, config.policy])
    if stage.complete:
        return stage.out
    if config.prefixes < 1 or config.num_continuations < 1:
        raise ConfigError(f"expected prefixes and num_continuations of at least 1, got {config}")
    span = RejectedSpan("first_bad_step", config.span_source, config.bad_step_threshold)
    groups = [group for group in read_groups(config.groups) if is_all_wrong(group)]
    beginnings, rejected = [], Counter[str]()
    for group in groups:
        found, reasons = sound_beginnings(group, span, most=config.prefixes)
        beginnings += found
        rejected += reasons
    total = len(beginnings) * config.num_continuations
    with (
        open_calls(stage) as calls,
        engine(config, partial(_continuer, config)) as run,
        tqdm(total=total, desc="continue prefixes", unit="continuation") as bar,
    ):
        done = continue_beginnings(
            beginnings,
            run=run,
            num_continuations=config.num_continuations,
            seed=config.seed,
            rows_a_call=config.batch_rows,
            each=calls.each,
            on_drawn=bar.update,
        )
    write_groups(stage.out, done.groups)
    right = [{r.verdict for r in group.rollouts} & {Verdict.CORRECT} for group in done.groups]
    counts = {
        "in": len(groups),
        "out": len(done.groups),
        "rejected": {"no sound beginning": len(groups) - len(done.groups)},
        "responses_without_prefix": dict(rejected),
        "continuations": total,
        "tokens": done.tokens,
        "solved": sum(map(bool, right)),
    }
    return stage.finish({**counts, "problems": str(problems_of(config.groups))})


@contextmanager
def _continuer(config: ContinueConfig) -> Iterator[Callable[[Any], Any]]:
    """What makes one call: the policy, loaded, and a verifier's processes."""
    params = SamplingParams(config.temperature, 1.0, 0, config.max_new_tokens)
    with MathVerifier() as math:
        verifier = AutoVerifier(math=math)
        model, processor = load_for_inference(config.policy), load_processor(config.policy)
        generator = TransformersGenerator(model, processor, params, batch_rows=config.batch_rows)
        yield Continuer(generator, partial(verify_completions, verifier.verify_many), with_texts=True)
