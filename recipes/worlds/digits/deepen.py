"""`mpo deepen`: the model that the digits' PRM starts from, the policy with more layers on top.

A real PRM starts from a model of billions of parameters that can already compare a claim with an image. The tiny
policy has three layers, all busy reading; without new ones its PRM learns nothing (docs/log.md, 2026-11-24).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer

from mpo.multimodal.loading import load_model, load_processor
from recipes.config import DeepenConfig
from recipes.stage.folder import open_stage


def deepen_policy(config: DeepenConfig) -> Path:
    """Write `config.policy` with `extra_layers` more layers on top."""
    stage = open_stage("deepen", config, inputs=[config.policy])
    if stage.complete:
        return stage.out
    model = load_model(config.policy)
    deepen(model, config.extra_layers, seed=config.seed)
    model.save_pretrained(stage.out)
    load_processor(config.policy).save_pretrained(stage.out)
    parameters = sum(p.numel() for p in model.parameters())
    return stage.finish(
        {"parameters": parameters}, note=f"{config.extra_layers} more layers, {parameters:,} parameters"
    )


def deepen(model: Any, extra_layers: int, *, seed: int) -> None:
    """Add decoder layers on top of a trained text model, in place.

    Checking an answer needs layers above those that read the image: whether "Red 7" is right shows in what the
    policy expected at "Red" and in the token that came. The first new layer starts with both at hand
    (`_look_one_back`); the others start like any layer. No effect of that start was measured (docs/log.md); the
    published run has it.
    """
    text = model.model.language_model
    config = text.config
    torch.manual_seed(seed)
    first = config.num_hidden_layers
    for index in range(first, first + extra_layers):
        config.layer_types.append("full_attention")
        layer = Qwen2DecoderLayer(config, index)
        layer.apply(model._init_weights)
        if index == first:
            _look_one_back(layer.self_attn, config)
        text.layers.append(layer.to(text.norm.weight))
    config.num_hidden_layers += extra_layers


def _look_one_back(attention: Any, config: Any) -> None:
    """Start the attention as "copy what the token before me held".

    Under rotary positions a query bias turned by θ_f against the key bias scores Σ_f |c_f|²·cos(θ_f·(Δ − 1)) at
    distance Δ, which is largest at Δ = 1 (RoPE, arXiv 2104.09864); the fast frequencies alone make the peak sharp.
    Values and outputs start as multiples of the identity, so that the copy (RMS 1 after the layer's norm) weighs as
    much as the residual stream that it joins.
    """
    heads = config.num_attention_heads
    width = config.hidden_size // heads
    theta = config.rope_parameters["rope_theta"] ** (-torch.arange(0, width, 2) / width)  # (width/2,)
    strength = torch.where(torch.arange(width // 2) < 4, 5.5, 0.0)
    query = torch.cat([strength * theta.cos(), -strength * theta.sin()])
    with torch.no_grad():
        attention.q_proj.bias.copy_(query.repeat(heads))
        attention.k_proj.bias.copy_(torch.cat([strength, 0 * strength]).repeat(heads))
        attention.q_proj.weight.mul_(0.1)
        attention.k_proj.weight.mul_(0.1)
        torch.nn.init.eye_(attention.v_proj.weight)
        torch.nn.init.eye_(attention.o_proj.weight)
        attention.o_proj.weight.mul_(4.0)
