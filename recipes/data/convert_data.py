"""`mpo convert-data FROM TO`: one format of preference pairs into the other, one format of labelled steps into another.

Pairs: `trl` (Parquet) and `mmpr` (JSON lines, `meta.json`, images). Labelled steps: `groups` (a folder of ours, for
`mpo train-prm`), `visualprm` (rows of VisualPRM400K with counts), `visualprm_conversations` (with signs) and `stepwise`
(TRL's stepwise rows, with more columns). `mpo import` reads what others publish in more forms. TRL's preference rows
have no column for the reference answer, so MMPR's `answer_gt` is lost on the way to them; `mpo pairs --mmpr true`
writes both at once, with answers. Labelled rows hold no step scores and no rewards.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from mpo.multimodal.errors import ConfigError, DataError, ImageError
from recipes.config import ConvertDataConfig
from recipes.data.convert_steps import READERS, WRITERS, inside, usable_items
from recipes.data.dataset_card import write_card
from recipes.stage.folder import PAIRS, Stage, open_stage
from recipes.stage.quarantine import Quarantine
from rewards.interchange.meta_file import META, read_meta
from rewards.interchange.mmpr import read_mmpr, write_mmpr
from rewards.interchange.trl_rows import from_trl_row, iter_trl_parquet, write_trl_parquet
from rewards.types import PreferencePair

PAIR_FORMATS = ("trl", "mmpr")
POSSIBLE = tuple((a, b) for formats in (PAIR_FORMATS, tuple(READERS)) for a in formats for b in formats if a != b)


def convert_data(config: ConvertDataConfig) -> Path:
    """Convert, and write the data set's card and the quarantine of rows that cannot be converted.

    Raises:
        ConfigError: there is no way from the one format to the other; names those that there are.
        DataError: not one row could be converted.
    """
    wanted = (config.source_format, config.target_format)
    if wanted not in POSSIBLE:
        ways = ", ".join(f"{a} to {b}" for a, b in POSSIBLE)
        raise ConfigError(f"cannot convert {wanted[0]!r} to {wanted[1]!r}; possible: {ways}")
    if config.image_root is not None and not config.source_format.startswith("visualprm"):
        raise ConfigError(
            f"image_root applies to visualprm only; {config.source_format} files name their images themselves"
        )
    stage = open_stage("convert-data", config, inputs=_inputs(config))
    if stage.complete:
        return stage.out
    quarantine = Quarantine()
    convert = _pairs if config.source_format in PAIR_FORMATS else _steps
    written, rejected, file = convert(config, stage, quarantine)
    left_out = {**quarantine.counts(), **rejected}
    first = {row["reason"]: f"{row['id']}: {row['detail']}" for row in reversed(quarantine.rows)}
    for fault in first.values():
        print(f"convert-data: {fault}", file=sys.stderr)
    if not written:
        raise DataError(f"no row of {config.source} could be converted: {left_out}: {'; '.join(first.values())}")
    quarantine.write(stage.out)
    provenance = stage.provenance()
    kind = "pairs" if config.source_format in PAIR_FORMATS else "steps"
    write_card(stage.out, pairs=written, data_file=file, fingerprint=provenance, rejected=left_out, kind=kind)
    counts = {"in": written + sum(left_out.values()), "out": written, "rejected": left_out}
    problems = stage.out / "problems.jsonl"
    note = f"{written} {kind} in {file}"
    return stage.finish({**counts, "problems": str(problems)} if problems.exists() else counts, note=note)


def _inputs(config: ConvertDataConfig) -> list[Path]:
    if config.source_format == "mmpr":
        return [inside(config.source, META), *(entry.annotation for entry in read_meta(config.source))]
    if config.source_format == "trl":
        return [inside(config.source, PAIRS)]
    if config.source_format == "groups":
        return [config.source]
    return READERS[config.source_format][1](config.source)


def _pairs(config: ConvertDataConfig, stage: Stage, quarantine: Quarantine) -> tuple[int, Counter[str], str]:
    """Rows written, rows rejected beside the quarantine, and the main file's name."""
    if config.target_format == "mmpr":
        return *write_mmpr(_trl_pairs(inside(config.source, PAIRS), quarantine), stage.out), META
    found = read_mmpr(config.source, on_reject=quarantine.add)
    return write_trl_parquet(found, stage.out / PAIRS), Counter(), PAIRS


def _steps(config: ConvertDataConfig, stage: Stage, quarantine: Quarantine) -> tuple[int, Counter[str], str]:
    (read, _), (write, file) = READERS[config.source_format], WRITERS[config.target_format]
    return write(usable_items(read(config), quarantine), stage.out, quarantine), Counter(), file


def _trl_pairs(path: Path, quarantine: Quarantine) -> Iterator[PreferencePair]:
    for number, row in enumerate(iter_trl_parquet(path)):
        try:
            yield from_trl_row(row)
        except ImageError as error:
            quarantine.add(f"{path.name}:{number}", "unreadable image", str(error))
        except DataError as error:
            quarantine.add(f"{path.name}:{number}", "not a pair", str(error))
