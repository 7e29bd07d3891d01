"""`hub:NAME[@REVISION][:CONFIG][:SPLIT]`: the data files of a dataset on the Hub, on this machine.

`datasets` reads the dataset's card and says which files make up a split; `huggingface_hub` brings those that are not in
its cache; our own readers open them. No script and no loader of the dataset runs, and no image is decoded on the way.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mpo.multimodal.errors import ConfigError
from mpo.multimodal.text import one_line

HUB = "hub:"
_SOURCE = re.compile(
    r"hub:(?P<name>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[\w./-]+))?"
    r"(?::(?P<first>[\w.+ -]+))?(?::(?P<second>[\w.+-]+))?"
)
_URL = re.compile(r"hf://datasets/(?P<name>[^@]+)@(?P<revision>[^/]+)/(?P<file>.+)")


class HubSource(NamedTuple):
    """What a `hub:` address names; of one word after the name, only the dataset's card tells which it is."""

    name: str
    revision: str | None
    config: str | None
    split: str | None


def parsed(source: str) -> HubSource:
    """The parts of an address.

    Raises:
        ConfigError: it is none.

    Example:
        >>> parsed("hub:AI4Math/MathVista:default:testmini")
        HubSource(name='AI4Math/MathVista', revision=None, config='default', split='testmini')
    """
    match = _SOURCE.fullmatch(source)
    if match is None:
        raise ConfigError(f"{source!r:.200}: expected {HUB}NAME, {HUB}NAME:SPLIT or {HUB}NAME:CONFIG:SPLIT")
    return HubSource(match["name"], match["revision"], match["first"], match["second"])


def hub_files(source: str) -> list[Path]:
    """The files of one split, downloaded where the cache lacks them.

    Raises:
        ConfigError: no such dataset, configuration or split (the message lists those that there are), or the Hub cannot
            be reached.
    """
    import datasets
    from huggingface_hub import hf_hub_download

    asked = parsed(source)
    try:
        configs = datasets.get_dataset_config_names(asked.name, revision=asked.revision)
        config, split = _config_and_split(asked, configs)
        builder = datasets.load_dataset_builder(asked.name, config, revision=asked.revision)
        files = _of_split(source, builder.config.data_files or {}, split)
        return [
            Path(hf_hub_download(asked.name, name, repo_type="dataset", revision=revision))
            for revision, name in (_inside(source, asked.name, str(file)) for file in files)
        ]
    except ConfigError:
        raise
    except Exception as error:  # of three libraries, each with errors of its own
        said = one_line(f"{type(error).__name__}: {error}", 300)
        raise ConfigError(f"{source} cannot be read from the Hub ({said})") from error


def _config_and_split(asked: HubSource, configs: Sequence[str]) -> tuple[str, str | None]:
    if asked.config in configs:
        return str(asked.config), asked.split
    if len(configs) == 1 or "default" in configs:
        only = configs[0] if len(configs) == 1 else "default"
        if asked.split is None:
            return only, asked.config  # the one word is a split
    raise ConfigError(f"{HUB}{asked.name}: expected a configuration, one of {_some(configs)}; got {asked.config!r}")


def _of_split(source: str, files: Mapping[str, Sequence[str]], split: str | None) -> Sequence[str]:
    splits = [str(name) for name in files]
    if split is None and len(splits) == 1:
        split = splits[0]
    if split not in splits:
        raise ConfigError(f"{source}: expected a split, one of {_some(splits)}; got {split!r}")
    return files[split]


def _inside(source: str, name: str, file: str) -> tuple[str, str]:
    """Revision and path of a file; a dataset's card may name any address, and only its own files are fetched."""
    match = _URL.fullmatch(file)
    if match is None or match["name"] != name:
        raise ConfigError(f"{source}: its card names the file {file[:200]!r}, which is not its own; nothing is fetched")
    return match["revision"], match["file"]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:40]) + (", …" if len(names) > 40 else "")
