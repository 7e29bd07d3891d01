"""What a policy answers while it is being trained, on the rank that asks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rewards.sampling.generator import SamplingParams
from rewards.sampling.transformers_generator import TransformersGenerator
from rewards.types import Completion, Problem


def drawn_in_training(
    trainer: Any, problems: Sequence[Problem], n: int, params: SamplingParams, *, seed: int
) -> list[list[Completion]]:
    """`n` responses of the trainer's policy to each problem, in evaluation mode; every module's mode stays.

    Args:
        trainer: a `transformers.Trainer` whose model's weights are whole on this rank.
        problems: what to ask.
        n: responses per problem, at least 1.
        params: how they are drawn.
        seed: of the draw.
    """
    model = trainer.model  # not `model_wrapped`: DDP's forward would wait for the other ranks
    generator = TransformersGenerator(model, trainer.processing_class, params)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        return [list(responses) for responses in generator.generate(problems, n, seed=seed)]
    finally:
        for module, training in modes:
            module.training = training
