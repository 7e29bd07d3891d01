"""Picks the next token of every row by Gumbel-max, each row with a random generator of its own.

argmax_v (s_v + G_v), with independent G_v ~ Gumbel(0, 1), is distributed as softmax(s) (Gumbel 1954; Maddison, Tarlow
and Minka, arXiv 1411.0030), and G = −log E with E ~ Exponential(1). A row's noise depends on its seed and on the number
of tokens before, so a row draws the same text whatever its neighbours are and however often the batch is run.

Dimension legend: R rows, V vocabulary, S steps of noise drawn at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from rewards.sampling.generator import SamplingParams

_NOISE_A_REFILL = 8192  # numbers per row draws at a time on a CPU, at least one step's
_STEPS_A_REFILL = 8  # on an accelerator, where a row's draw is a kernel of its own: 5 MB a row with 152,000 tokens


class RowSampler(LogitsProcessor):
    """A logits processor for one `generate` call; it leaves each row only the token that it picked.

    Temperature, top_k and top_p are transformers' own warpers, in transformers' order.

    Args:
        params: temperature 0 picks the most probable token.
        seeds: one per row, (R,).
        device: of the logits; noise is drawn there.
        keep_logprobs: remember the log-probability of each token picked.
    """

    def __init__(
        self, params: SamplingParams, seeds: Sequence[int], *, device: torch.device, keep_logprobs: bool = False
    ) -> None:
        self._greedy = params.temperature == 0
        self._warpers = LogitsProcessorList()
        if not self._greedy:
            self._warpers.append(TemperatureLogitsWarper(params.temperature))
            if params.top_k > 0:
                self._warpers.append(TopKLogitsWarper(params.top_k))
            if params.top_p < 1:
                self._warpers.append(TopPLogitsWarper(params.top_p))
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        self._rows = torch.arange(len(seeds), device=device)  # of those that are still drawn, their places
        self._kept = torch.zeros(len(seeds), 0, device=device) if keep_logprobs else None
        self._noise = torch.empty(0)
        self._step = 0

    def __call__(self, input_ids: torch.LongTensor, scores: Tensor) -> Tensor:
        """Logits (R, V) → 0 at the token picked, −∞ elsewhere, (R, V)."""
        warped = self._warpers(input_ids, scores)
        noisy = warped if self._greedy else warped + self._gumbel(scores)
        picked = noisy.argmax(dim=-1, keepdim=True)  # (R, 1)
        if self._kept is not None:
            column = self._kept.new_zeros(len(self._kept), 1)
            column[self._rows] = scores.float().log_softmax(dim=-1).gather(1, picked)
            self._kept = torch.cat([self._kept, column], dim=1)
        return torch.full_like(scores, float("-inf")).scatter_(1, picked, 0.0)

    def keep(self, rows: Tensor) -> None:
        """Keep these of the rows that were drawn last, (fewer,); each keeps its own noise."""
        self._rows = self._rows[rows]
        self._generators = [self._generators[row] for row in rows.tolist()]
        if self._noise.dim() == 3:
            self._noise = self._noise[rows]

    def logprobs(self) -> list[list[float]] | None:
        """For each row the log-probability of every token picked so far; `None` if they were not kept."""
        return None if self._kept is None else self._kept.tolist()

    def _gumbel(self, scores: Tensor) -> Tensor:
        """This step's noise (R, V)."""
        rows, vocabulary = scores.shape
        on_cpu = scores.device.type == "cpu"
        steps = max(1, _NOISE_A_REFILL // vocabulary) if on_cpu else _STEPS_A_REFILL
        if self._step % steps == 0:
            noise = torch.empty(rows, steps, vocabulary, device=scores.device)  # (R, S, V)
            for row, generator in zip(noise, self._generators, strict=True):
                row.exponential_(generator=generator)
            self._noise = -noise.log_()
        self._step += 1
        return self._noise[:, (self._step - 1) % steps]
