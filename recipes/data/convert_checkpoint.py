"""`mpo convert`: an InternVL chat or VisualPRM checkpoint, as the hub has it, into transformers' own classes."""

from __future__ import annotations

from pathlib import Path

from mpo.multimodal.errors import ConfigError
from recipes.config import ConvertConfig
from recipes.stage.folder import open_stage
from rewards.conversion.convert import convert_checkpoint, open_checkpoint


def convert(config: ConvertConfig) -> Path:
    """Check everything, then write the model, its processor and, for a PRM, its contract."""
    if config.shard_gb <= 0:
        raise ConfigError(f"shard_gb must be above 0, got {config.shard_gb}")
    checkpoint = open_checkpoint(config.checkpoint)
    stage = open_stage("convert", config, inputs=[config.checkpoint])
    if stage.complete:
        return stage.out
    converted = convert_checkpoint(
        checkpoint, stage.out, prm=config.prm, system=config.system, shard_bytes=int(config.shard_gb * 1024**3)
    )
    rejected = {"computed buffers": converted.buffers} if converted.buffers else {}
    counts = {"in": converted.tensors + converted.buffers, "out": converted.tensors, "rejected": rejected}
    note = f"{converted.parameters:,} parameters in {converted.shards} files"
    return stage.finish({**counts, "parameters": converted.parameters, "files": converted.shards}, note=note)
