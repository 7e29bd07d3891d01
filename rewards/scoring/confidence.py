"""How sure the policy itself was of a response: a critic that costs nothing, since its numbers were drawn with it."""

from __future__ import annotations

import math

from rewards.types import Completion


def self_certainty(completion: Completion) -> float | None:
    """The geometric mean of the sampled tokens' probabilities, exp(1/T Σ_t log π(y_t)), in (0, 1].

    It ranks responses as their mean log-probability does (the inverse of their perplexity). "Self-certainty" in the
    sense of arXiv 2502.18581 is another number, the distance of whole distributions from the uniform one, which neither
    a server nor a sample file tells.

    Args:
        completion: with `token_logprobs`, which `mpo sample --logprobs` keeps.

    Returns:
        `None` without log-probabilities.

    Example:
        >>> round(self_certainty(Completion("4", token_logprobs=(math.log(0.5), math.log(0.125)))), 6)
        0.25
    """
    logprobs = completion.token_logprobs
    return math.exp(min(0.0, math.fsum(logprobs) / len(logprobs))) if logprobs else None
