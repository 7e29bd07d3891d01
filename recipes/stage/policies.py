"""Which policy answers: a model in this process, or one or several servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from mpo.multimodal.errors import ConfigError
from recipes.config import SampleConfig
from recipes.stage.exclusive import a_local_engine, one_policy
from rewards.sampling.generator import Generator, SamplingParams, check_number


def checked_params(config: SampleConfig) -> SamplingParams:
    """The sampling settings; raises ConfigError for what cannot work, before anything is read."""
    one_policy(config)
    a_local_engine(config)
    if config.on_change not in ("refuse", "segment"):
        raise ConfigError(f"on_change must be refuse or segment, got {config.on_change!r}")
    if config.batch_rows < 1 or config.concurrency < 1:
        raise ConfigError(f"expected batch_rows and concurrency >= 1, got {config.batch_rows}, {config.concurrency}")
    params = SamplingParams(config.temperature, config.top_p, config.top_k, config.max_new_tokens)
    check_number(config.num_samples, params)
    return params


def generator_of(config: SampleConfig, params: SamplingParams, rows_a_problem: int) -> Generator:
    """The policy in this process, or the client of its server."""
    if config.base_url and config.model is not None:
        try:
            from rewards.sampling.openai_generator import OpenAIGenerator
        except ImportError as error:
            raise ConfigError(f"a server needs the extra: pip install -e '.[server]' ({error})") from error

        return OpenAIGenerator(
            config.base_url,
            config.model,
            params,
            concurrency=config.concurrency,
            samples_a_request=config.samples_a_request,
            logprobs=config.logprobs,
        )
    from mpo.multimodal.loading import load_for_inference, load_processor
    from rewards.sampling.transformers_generator import TransformersGenerator

    assert config.policy is not None
    return TransformersGenerator(
        load_for_inference(config.policy),
        load_processor(config.policy),
        params,
        batch_rows=config.batch_rows,
        rows_a_problem=rows_a_problem,
        keep_logprobs=config.logprobs,
    )


@contextmanager
def continuer_of(
    policy: Path, *, temperature: float, max_new_tokens: int, batch_rows: int, with_texts: bool
) -> Iterator[Callable[[Any], Any]]:
    """What makes one call of continuations: the policy, loaded, and a verifier's processes."""
    from mpo.multimodal.loading import load_for_inference, load_processor
    from rewards.prm.labelling.monte_carlo import Continuer
    from rewards.sampling.transformers_generator import TransformersGenerator
    from rewards.verifying.auto import AutoVerifier
    from rewards.verifying.finished import verify_completions
    from rewards.verifying.math_verifier import MathVerifier

    params = SamplingParams(temperature, 1.0, 0, max_new_tokens)
    with MathVerifier() as math:
        verifier = AutoVerifier(math=math)
        model, processor = load_for_inference(policy), load_processor(policy)
        generator = TransformersGenerator(model, processor, params, batch_rows=batch_rows)
        yield Continuer(generator, partial(verify_completions, verifier.verify_many), with_texts=with_texts)
