"""Reference log-probs, computed once and kept: training then needs no second model.

A pair is found by content: the token ids of prompt and responses and the pixels as the processor made them. The
weights, processor and number type that computed the values are written beside them, and a cache of another reference
is refused. Each rank writes a SQLite file of its own, committed batch by batch: a kill loses at most a batch.
"""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from mpo.multimodal.errors import ConfigError

Batch = dict[str, Any]
_ADAPTER = re.compile(r"lora_|modules_to_save")
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS made_by (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS logps (pair TEXT PRIMARY KEY, chosen REAL NOT NULL, rejected REAL NOT NULL)",
)


class ReferenceCache:
    """Pair → (log π_ref(chosen), log π_ref(rejected)), summed over response tokens.

    Args:
        folder: holds one `logps-RANK.sqlite` a rank; made if it is missing.
        made_by: what the values depend on besides the pair, e.g. `{"weights": …, "processor": …, "dtype": …}`.
        rank: of this process; it writes only its own file and reads all.

    Raises:
        ConfigError: the folder holds values of another reference; what differs is named.
    """

    def __init__(self, folder: str | Path, made_by: dict[str, str], *, rank: int = 0) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(self.folder.glob("logps-*.sqlite")):
            self._check(path, made_by)
        self._file = self.folder / f"logps-{rank}.sqlite"
        with _opened(self._file) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.executemany("INSERT OR IGNORE INTO made_by VALUES (?, ?)", made_by.items())
        self._values: dict[str, tuple[float, float]] = {}
        self.reload()

    def __contains__(self, pair: str) -> bool:
        return pair in self._values

    def __len__(self) -> int:
        return len(self._values)

    def add(self, pairs: Sequence[str], chosen: Tensor, rejected: Tensor) -> None:
        """Keep the values of one batch, (B,) each; they are on the disk when this returns."""
        rows = list(zip(pairs, chosen.tolist(), rejected.tolist(), strict=True))
        with _opened(self._file) as connection:
            connection.executemany("INSERT OR REPLACE INTO logps VALUES (?, ?, ?)", rows)
        self._values.update({pair: (c, r) for pair, c, r in rows})

    def reload(self) -> None:
        """Read what all ranks have written."""
        for path in sorted(self.folder.glob("logps-*.sqlite")):
            with _opened(path) as connection:
                found = connection.execute("SELECT pair, chosen, rejected FROM logps").fetchall()
            self._values.update({pair: (c, r) for pair, c, r in found})

    def lookup(self, pairs: Sequence[str], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Chosen and rejected sums, float32 (B,) each.

        Raises:
            ConfigError: a pair is not there: its text, pictures or template are not those that were precomputed.
        """
        if missing := [pair for pair in pairs if pair not in self._values]:
            raise ConfigError(
                f"{len(missing)} of {len(pairs)} pairs of a batch are not in the reference cache {self.folder}: rows "
                "or processor changed after precomputing, or rows are drawn anew each epoch; build the trainer again"
            )
        chosen, rejected = torch.tensor([self._values[pair] for pair in pairs], device=device).unbind(dim=1)
        return chosen, rejected

    @staticmethod
    def _check(path: Path, made_by: dict[str, str]) -> None:
        with _opened(path) as connection:
            before = dict(connection.execute("SELECT name, value FROM made_by").fetchall())
        differing = [name for name, value in made_by.items() if before and before.get(name) != value]
        if differing:
            raise ConfigError(
                f"the reference log-probs in {path} were computed with other {', '.join(differing)}: delete "
                f"{path.parent}, or set another reference_cache_dir"
            )


def precompute(
    cache: ReferenceCache,
    rows: Any,
    *,
    collate: Callable[[list[Any]], Batch],
    logps: Callable[[Batch], tuple[Tensor, Tensor]],
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
) -> int:
    """Fill the cache with every `world_size`-th row of a dataset; rows that it has are not computed again.

    Args:
        cache: gets the values.
        rows: a dataset with a length.
        collate: rows → batch with `pair_keys`, as in training.
        logps: batch → chosen and rejected sums, (B,) each.
        batch_size: pairs a forward pass.
        rank, world_size: this process's share.

    Returns:
        How many rows were computed.
    """
    mine = range(rank, len(rows), world_size)
    computed = 0
    for start in tqdm(range(0, len(mine), batch_size), desc="reference log-probs", unit="batch", disable=rank > 0):
        some = [rows[i] for i in mine[start : start + batch_size]]
        batch = collate(some)
        if "pair_keys" not in batch:
            raise ConfigError(
                "expected pair_keys in a batch, got "
                f"{sorted(batch)}: precompute_ref_log_probs needs PreferenceCollator(processor, with_keys=True)"
            )
        wanted = [row for row, pair in zip(some, batch["pair_keys"], strict=True) if pair not in cache]
        if not wanted:
            continue
        if len(wanted) < len(some):
            batch = collate(wanted)
        cache.add(batch["pair_keys"], *logps(batch))
        computed += len(wanted)
    return computed


def digest_of_weights(model: Any) -> str:
    """SHA-256 of a model's parameters and buffers, adapters left out."""
    state = {name: value for name, value in model.state_dict().items() if not _ADAPTER.search(name)}
    return _digest(part for name in sorted(state) for part in (name.encode(), _bytes(state[name])))


def digest_of_processor(processor: Any) -> str:
    """SHA-256 of everything of a processor that shapes ids and pixels: tokenizer, template, image settings."""
    tokenizer = getattr(processor, "tokenizer", processor)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts = [
        backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True),
        str(getattr(processor, "chat_template", None) or getattr(tokenizer, "chat_template", None)),
        json.dumps(
            getattr(getattr(processor, "image_processor", None), "to_dict", dict)(), sort_keys=True, default=str
        ),
    ]
    return _digest(part.encode() for part in parts)


def pair_key(tensors: Iterable[Tensor], chosen: Sequence[int], rejected: Sequence[int]) -> str:
    """SHA-256 of a pair as the model sees it.

    Args:
        tensors: of the encoded prompt: ids, per-token features, pixels.
        chosen: response token ids.
        rejected: response token ids.
    """
    parts = [
        part for tensor in tensors for part in (repr((tensor.dtype, tuple(tensor.shape))).encode(), _bytes(tensor))
    ]
    return _digest([*parts, json.dumps([list(chosen), list(rejected)]).encode()])


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    """A file with its tables, for one transaction: committed and closed, or rolled back."""
    with closing(sqlite3.connect(path, timeout=60)) as connection, connection:
        for statement in _SCHEMA:
            connection.execute(statement)
        yield connection


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().cpu().flatten().view(torch.uint8).numpy().tobytes()


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()
