"""`mpo pairs`: verified and scored rollouts → TRL vision-preference rows, with the account of what was dropped."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from mpo.multimodal.errors import DataError
from mpo.multimodal.files import write_atomic
from recipes.config import PairsConfig
from recipes.groups import problems_of, read_groups
from recipes.run import open_stage
from rewards.interchange.trl_rows import write_trl_parquet
from rewards.pairs import build_pairs

PAIRS = "pairs.parquet"
REPORT = "report.json"


def pairs(config: PairsConfig) -> Path:
    """Write `pairs.parquet`, which `MPOTrainer` and TRL's `DPOTrainer` both read, and `report.json`."""
    stage = open_stage("pairs", config, inputs=[config.groups])
    if stage.complete:
        return stage.out
    groups = read_groups(config.groups)
    found, report = build_pairs(groups, rule=config.rule, max_pairs=config.max_pairs)
    if not found:
        raise DataError(f"no pair could be made from {len(groups)} problems; dropped: {report.dropped}")
    write_trl_parquet(found, stage.out / PAIRS)
    write_atomic(stage.out / REPORT, json.dumps(asdict(report), indent=2) + "\n")
    counts = {"in": report.problems_in, "out": report.problems_with_pairs, "rejected": dict(report.dropped)}
    return stage.finish({**counts, "pairs": report.pairs, "problems": str(problems_of(config.groups))})
