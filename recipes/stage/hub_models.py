"""`hub:NAME[@REVISION]` in the place of a model folder: its weights, configuration and tokenizer, on this machine."""

from __future__ import annotations

from pathlib import Path

from mpo.multimodal.errors import ConfigError
from mpo.multimodal.text import one_line
from rewards.interchange.hub import HUB

# What a checkpoint of transformers' own classes is made of; no code and no pickles.
FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]


def model_folder(path: Path) -> Path:
    """The folder itself, or the one that the Hub's files are in, downloaded where the cache lacks them.

    Raises:
        ConfigError: no such model, or the Hub cannot be reached.
    """
    address = str(path)
    if not address.startswith(HUB):
        return path
    from huggingface_hub import snapshot_download

    name, _, revision = address.removeprefix(HUB).partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=FILES))
    except Exception as error:  # of several libraries, each with errors of its own
        said = one_line(f"{type(error).__name__}: {error}", 300)
        raise ConfigError(f"{address} cannot be read from the Hub ({said})") from error
