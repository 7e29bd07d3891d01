"""The published forms that `mpo import` reads: what each holds, how its rows are read, and which files hold them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from mpo.multimodal.errors import ConfigError, DataError
from recipes.config import ImportConfig
from recipes.data.convert_steps import Items
from recipes.stage.kept_images import KeptImages
from recipes.stage.quarantine import Quarantine
from rewards.interchange.hub import HUB
from rewards.interchange.image_places import ImagePlaces
from rewards.interchange.meta_file import meta_path, read_meta
from rewards.interchange.mmpr import read_mmpr
from rewards.interchange.preference_rows import PREFERENCE_ROWS, read_preference_rows
from rewards.interchange.processbench import parse_processbench, write_processbench
from rewards.interchange.stepwise_rows import read_stepwise_table
from rewards.interchange.tables import files_of, read_table
from rewards.interchange.visualprm_release import files_of_release, read_release
from rewards.interchange.visualprocessbench import checked_image, parse_visualprocessbench, write_visualprocessbench
from rewards.prm.evaluating.benchmark import BenchmarkResponse
from rewards.types import PreferencePair

BENCHMARK = "test.jsonl"


class Form(NamedTuple):
    """A published form.

    Attributes:
        kind: of its rows: pairs, steps, benchmark or problems.
        files: source → the files that hold its rows.
        read: config and quarantine → what it holds, of this kind; None for problems.
        write: writes a benchmark.
    """

    kind: str
    files: Callable[[Path], list[Path]]
    read: Callable[[ImportConfig, Quarantine], Any] | None = None
    write: Callable[..., int] | None = None


def hub_or_files(source: Path) -> list[Path]:
    """The files of a table here; none of one on the Hub, whose address is a setting."""
    return [] if str(source).startswith(HUB) else files_of(source)


def address_of(source: Path) -> str | Path:
    """A source as its readers take it: an address of the Hub is no path."""
    return str(source) if str(source).startswith(HUB) else source


def _mmpr(config: ImportConfig, quarantine: Quarantine) -> Iterator[PreferencePair]:
    return read_mmpr(config.source, on_reject=quarantine.add, limit=config.sample)


def _preferences(form: str, config: ImportConfig, quarantine: Quarantine) -> Iterator[PreferencePair]:
    root, limit = config.image_root, config.sample
    return read_preference_rows(form, address_of(config.source), on_reject=quarantine.add, image_root=root, limit=limit)


def _release(config: ImportConfig, quarantine: Quarantine) -> Items:
    return read_release(config.source, image_root=config.image_root, limit=config.sample)


def _stepwise(config: ImportConfig, quarantine: Quarantine) -> Items:
    return read_stepwise_table(address_of(config.source), limit=config.sample)


def _visualprocessbench(config: ImportConfig, quarantine: Quarantine) -> list[BenchmarkResponse]:
    file, images = _benchmark_file(config.source), KeptImages(config.out / "images")
    with ImagePlaces(config.image_root or file.parent) as places:

        def parse(row: Any, where: str) -> BenchmarkResponse:
            return parse_visualprocessbench(row, id=where, find=lambda name: images.kept(checked_image(name, places)))

        return list(_parsed(read_table(file, limit=config.sample), parse, quarantine))


def _processbench(config: ImportConfig, quarantine: Quarantine) -> list[BenchmarkResponse]:
    rows = read_table(address_of(config.source), limit=config.sample)
    return list(_parsed(rows, lambda row, where: parse_processbench(row), quarantine))


def _parsed(
    rows: Iterator[tuple[str, Any]], parse: Callable[[Any, str], BenchmarkResponse], quarantine: Quarantine
) -> Iterator[BenchmarkResponse]:
    for where, row in rows:
        try:
            if isinstance(row, DataError):
                raise row
            yield parse(row, where)
        except DataError as error:
            quarantine.add(where, str(error), str(error))  # of these readers the message is the kind of fault


def _benchmark_file(source: Path) -> Path:
    file = source / BENCHMARK if source.is_dir() else source
    if not file.is_file():
        raise ConfigError(f"{file} is not a file; expected it, or a folder with {BENCHMARK}")
    return file


def _meta_files(source: Path) -> list[Path]:
    return [meta_path(source), *(entry.annotation for entry in read_meta(source))]


def _release_files(source: Path) -> list[Path]:
    return [entry.annotation for entry in files_of_release(source)[1]]


FORMS: dict[str, Form] = {
    "visualprm400k": Form("steps", _release_files, _release),
    "prm800k": Form("steps", hub_or_files, _stepwise),
    "math_shepherd": Form("steps", hub_or_files, _stepwise),
    "stepwise": Form("steps", hub_or_files, _stepwise),
    "mmpr": Form("pairs", _meta_files, _mmpr),
    **{form: Form("pairs", hub_or_files, partial(_preferences, form)) for form in PREFERENCE_ROWS},
    "visualprocessbench": Form(
        "benchmark", lambda source: [_benchmark_file(source)], _visualprocessbench, write_visualprocessbench
    ),
    "processbench": Form("benchmark", hub_or_files, _processbench, write_processbench),
    "problems": Form("problems", hub_or_files),
}
