"""Which policy answers: a model in this process, or one or several servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mpo.multimodal.errors import ConfigError
from recipes.config import ContinueConfig, ContinuerConfig, LabelConfig, SampleConfig
from recipes.stage.exclusive import a_local_engine, one_policy
from rewards.sampling.generator import Generator, SamplingParams, check_number
from rewards.sampling.rows_per_call import ROWS, row_bytes, rows_per_call

if TYPE_CHECKING:
    from rewards.sampling.openai_generator import OpenAIGenerator

Drawing = TypeVar("Drawing", SampleConfig, LabelConfig, ContinueConfig)


def checked_params(config: SampleConfig) -> SamplingParams:
    """The sampling settings; raises ConfigError for what cannot work, before anything is read."""
    one_policy(config)
    a_local_engine(config)
    if config.on_change not in ("refuse", "segment"):
        raise ConfigError(f"on_change must be refuse or segment, got {config.on_change!r}")
    if (config.batch_rows is not None and config.batch_rows < 1) or config.concurrency < 1:
        raise ConfigError(f"expected batch_rows and concurrency >= 1, got {config.batch_rows}, {config.concurrency}")
    params = SamplingParams(config.temperature, config.top_p, config.top_k, config.max_new_tokens)
    check_number(config.num_samples, params)
    return params


def with_rows(config: Drawing) -> Drawing:
    """The settings with a number of rows per call: as given, or decided here, before the stage writes it down.

    So a run that is resumed on a card with another memory is refused like any other change of `batch_rows`.
    """
    rows, here = config.batch_rows, None if config.serve else config.policy
    return replace(config, batch_rows=rows_for(here, config.max_new_tokens) if rows is None else rows)


def rows_for(policy: Path | None, new_tokens: int, *, memory: int | None = None) -> int:
    """Rows per call of a policy in this process; `memory` is that of the device in bytes, None asks it."""
    if policy is None:  # a server's: asking for the device would import torch, half a gigabyte
        return ROWS
    memory = _device_memory() if memory is None else memory
    weights = sum(file.stat().st_size for file in policy.glob("*.safetensors"))
    if not memory or not weights:
        return ROWS
    from mpo.multimodal.loading import load_config, stored_dtype

    text = load_config(policy).get_text_config()
    row = row_bytes(text, number_bytes=stored_dtype(policy).itemsize, new_tokens=new_tokens)
    return rows_per_call(memory=memory, weights=weights, row=row)


def _device_memory() -> int:
    """Bytes of the GPU that a policy in this process would run on; 0 without one."""
    import torch

    return torch.cuda.get_device_properties().total_memory if torch.cuda.is_available() else 0


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
        batch_rows=config.batch_rows or rows_for(config.policy, config.max_new_tokens),
        rows_a_problem=rows_a_problem,
        keep_logprobs=config.logprobs,
    )


def servers_of(config: ContinuerConfig, params: SamplingParams) -> OpenAIGenerator:
    """What asks the servers for continuations."""
    try:
        from rewards.sampling.openai_generator import OpenAIGenerator
    except ImportError as error:
        raise ConfigError(f"a server needs the extra: pip install -e '.[server]' ({error})") from error

    assert config.model is not None
    return OpenAIGenerator(
        config.base_url,
        config.model,
        params,
        concurrency=config.concurrency,
        samples_a_request=config.samples_a_request,
    )


@contextmanager
def served_generator(config: LabelConfig | ContinueConfig) -> Iterator[tuple[OpenAIGenerator, Any]]:
    """What asks the servers for continuations, and what checks responses, with a verifier's processes."""
    generator = servers_of(config, SamplingParams(config.temperature, 1.0, 0, config.max_new_tokens))
    from rewards.verifying.auto import AutoVerifier
    from rewards.verifying.finished import verify_completions
    from rewards.verifying.math_verifier import MathVerifier

    with MathVerifier() as math:
        yield generator, partial(verify_completions, AutoVerifier(math=math).verify_many)


@contextmanager
def blind_continuer_of(policy: Path, params: SamplingParams, *, batch_rows: int) -> Iterator[Callable[[Any], Any]]:
    """What makes one call of `dropout_ntp`: the policy, loaded."""
    from mpo.multimodal.loading import load_for_inference, load_processor
    from rewards.pairing.dropout_ntp import BlindContinuer
    from rewards.sampling.transformers_generator import TransformersGenerator

    model, processor = load_for_inference(policy), load_processor(policy)
    yield BlindContinuer(TransformersGenerator(model, processor, params, batch_rows=batch_rows))


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
