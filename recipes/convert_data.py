"""`mpo convert-data`: preference pairs from TRL's Parquet to MMPR, or from MMPR to TRL's Parquet.

What the source is decides the direction. TRL's rows have no column for the reference answer, so MMPR's `answer_gt` is
lost on the way to TRL; `mpo pairs --mmpr true` writes both formats at once, with answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from mpo.multimodal.errors import ConfigError, DataError, ImageError
from recipes.build_pairs import PAIRS
from recipes.config import ConvertDataConfig
from recipes.dataset_card import write_card
from recipes.quarantine import Quarantine
from recipes.run import open_stage
from rewards.interchange.mmpr import META, read_meta, read_mmpr, write_mmpr
from rewards.interchange.trl_rows import from_trl_row, read_trl_parquet, write_trl_parquet
from rewards.types import PreferencePair


def convert_data(config: ConvertDataConfig) -> Path:
    """Convert, and write the card and the quarantine of rows that the other format cannot hold.

    Raises:
        ConfigError: the source is neither of the two formats.
    """
    parquet, meta = _source(config.source)
    file = parquet or meta
    assert file is not None
    annotations = [annotation for _, annotation in read_meta(file).values()] if meta else []
    stage = open_stage("convert-data", config, inputs=[file, *annotations])
    if stage.complete:
        return stage.out
    quarantine, rejected = Quarantine(), Counter[str]()
    if parquet:
        written, rejected = write_mmpr(_trl_pairs(parquet, quarantine), stage.out)
    else:
        written = write_trl_parquet(read_mmpr(file, on_reject=quarantine.add), stage.out / PAIRS)
    if not written:
        raise DataError(f"no pair of {config.source} could be converted: {quarantine.counts() or dict(rejected)}")
    quarantine.write(stage.out)
    left_out = {**quarantine.counts(), **rejected}
    write_card(
        stage.out,
        pairs=written,
        data_file=META if parquet else PAIRS,
        fingerprint={**stage.fingerprint, "stage": stage.name},
        rejected=left_out,
    )
    return stage.finish({"in": written + sum(left_out.values()), "out": written, "rejected": left_out})


def _source(source: Path) -> tuple[Path | None, Path | None]:
    """The Parquet file, or the meta.json, that a path means."""
    candidates = [source / PAIRS, source / META] if source.is_dir() else [source]
    found = [path for path in candidates if path.is_file() and (path.suffix == ".parquet" or path.name == META)]
    if len(found) != 1:
        raise ConfigError(
            f"{source}: expected a Parquet file of TRL rows, a {META} of MMPR, or a folder with one of them"
        )
    return (found[0], None) if found[0].suffix == ".parquet" else (None, found[0])


def _trl_pairs(path: Path, quarantine: Quarantine) -> Iterator[PreferencePair]:
    for number, row in enumerate(read_trl_parquet(path)):
        try:
            yield from_trl_row(row)
        except ImageError as error:
            quarantine.add(f"{path.name}:{number}", "unreadable image", str(error))
        except DataError as error:
            quarantine.add(f"{path.name}:{number}", "not a pair", str(error))
