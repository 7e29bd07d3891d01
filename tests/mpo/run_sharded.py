"""One MPO step whose models lie in shards (FSDP2), by torchrun, or whole, alone: `run_sharded.py OUT`.

Rank 0 writes OUT/CASE.pt.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from peft import LoraConfig
from run_ranks import LORA
from tiny import preference_rows, tiny_internvl

from mpo.collator import PreferenceCollator
from mpo.forward import chosen_lengths, model_inputs, pair_logps, prepare_models, reference_logps
from mpo.layout import PromptSharing
from mpo.losses import Denominators, implicit_rewards, mpo_loss
from mpo.multimodal.loading import load_processor
from mpo.multimodal.ranks import with_blank_image
from tests.ranks import shard, total_of, whole

PAIRS = 4
# case → (adapters, use_reentrant of gradient checkpointing or None for none)
CASES: dict[str, tuple[LoraConfig | None, bool | None]] = {
    "full": (None, None),
    "one rank packs": (None, None),
    "known reference": (None, None),
    "full checkpointing": (None, False),
    "full reentrant checkpointing": (None, True),
    "lora": (LORA, None),
    "lora checkpointing": (LORA, False),
    "images on one rank": (None, None),
    "images on one rank, checkpointing": (None, False),
    "images on one rank, frozen tower": (None, None),
}


def step(case: str, *, rank: int = 0, world_size: int = 1) -> dict[str, Any]:
    """Loss, rewards and whole gradients of one step of `PAIRS` pairs over all ranks."""
    lora, use_reentrant = CASES[case]
    policy, reference = models(lora, use_reentrant, frozen_tower=case.endswith("frozen tower"))
    sharing = PromptSharing("shared", [policy, *([] if reference is None else [reference])])
    known = case == "known reference"  # as from a cache that is complete: the reference does not run under shards
    trained = [model for model in (policy, reference) if model is not None and not (known and model is reference)]
    if world_size > 1:
        shard(*trained)

    rows = preference_rows(PAIRS)
    for row in rows[PAIRS // 2 :] if case.startswith("images on one rank") else []:
        row["images"] = []
    share = PAIRS // world_size
    packs = rank == 0 or case != "one rank packs"
    processor = load_processor(tiny_internvl())
    batch = PreferenceCollator(processor, shared_prefix=packs)(rows[rank * share : (rank + 1) * share])
    inputs, pairs = model_inputs(batch)
    inputs = with_blank_image(inputs, processor) if world_size > 1 else inputs
    sums = reference_logps(policy, inputs, reference=reference) if known else None
    inputs = sharing.admit(inputs, trained)
    assert sharing.on
    local = Denominators.of(chosen_lengths(batch), "token")
    counts = total_of(torch.tensor([local.pairs, float(local.generation)]))
    logps = pair_logps(policy, inputs, pairs["pair_index"], reference=reference, reference_sums=sums)
    loss = mpo_loss(
        logps, reward_shift=0.1, generation_average="token", denominators=Denominators(*counts.unbind())
    ).total
    (loss * world_size).backward()  # the ranks' gradients are averaged

    gradients = {name: whole(p.grad) for name, p in policy.named_parameters() if p.grad is not None}
    rewards = torch.stack([reward.sum() for reward in implicit_rewards(logps, beta=0.1)])
    return {"loss": total_of(loss.detach()), "rewards": total_of(rewards.detach()), "gradients": gradients}


def models(lora: LoraConfig | None, use_reentrant: bool | None, *, frozen_tower: bool = False) -> tuple[Any, Any]:
    """A policy that has left its reference, so that no reward is 0."""
    path = tiny_internvl()
    torch.manual_seed(0)
    policy, reference = prepare_models(path, peft_config=lora, checkpointing=use_reentrant is not None)
    if frozen_tower:  # policy and reference share its features, so it runs once per batch, blank or not
        for part in (policy.model.vision_tower, policy.model.multi_modal_projector):
            part.requires_grad_(False)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    if use_reentrant is not None:
        policy.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        policy.enable_input_require_grads()
    return policy.train(), reference


def main(out: Path) -> None:
    """All cases on all ranks."""
    tiny_internvl()
    state = PartialState(cpu=True)  # gloo, and accelerate knows it
    rank, world_size = state.process_index, state.num_processes
    for case in CASES:
        result = step(case, rank=rank, world_size=world_size)
        if rank == 0:
            torch.save(result, out / f"{case}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
