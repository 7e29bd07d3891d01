"""Reference log-probs, computed once and kept: training then needs no second model.

A response is found by content: the token ids of its prompt and its own, the range of them that counts, and the pixels
as the processor made them. The weights, processor and number type that computed the values are written beside them, and
a cache of another reference is refused. Each rank writes a SQLite file of its own, committed batch by batch: a kill
loses at most a batch.
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
from mpo.multimodal.messages import template_of

Batch = dict[str, Any]
_ADAPTER = re.compile(r"lora_|modules_to_save")
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS made_by (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS response_logps (response TEXT PRIMARY KEY, logp REAL NOT NULL)",
)


class ReferenceCache:
    """Response → log π_ref(response | prompt), summed over its tokens that count.

    Args:
        folder: holds one `logps-RANK.sqlite` per rank; made if it is missing.
        made_by: what the values depend on besides the response, e.g. `{"weights": …, "processor": …, "dtype": …}`.
        rank: of this process; it writes only its own file and reads all. None only reads.

    Raises:
        ConfigError: the folder holds values of another reference; what differs is named.
    """

    def __init__(self, folder: str | Path, made_by: dict[str, str], *, rank: int | None = 0) -> None:
        self.folder = Path(folder)
        for path in sorted(self.folder.glob("logps-*.sqlite")):
            self._check(path, made_by)
        self._file = self.folder / f"logps-{rank}.sqlite"
        if rank is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _opened(self._file) as connection:
                connection.execute("PRAGMA journal_mode=WAL")
                connection.executemany("INSERT OR IGNORE INTO made_by VALUES (?, ?)", made_by.items())
        self._values: dict[str, float] = {}
        self.reload()

    def __contains__(self, response: str) -> bool:
        return response in self._values

    def __len__(self) -> int:
        return len(self._values)

    def add(self, responses: Sequence[str], logps: Tensor) -> None:
        """Keep the values of one batch, (M,); they are on the disk when this returns."""
        rows = list(zip(responses, logps.tolist(), strict=True))
        with _opened(self._file) as connection:
            connection.executemany("INSERT OR REPLACE INTO response_logps VALUES (?, ?)", rows)
        self._values.update(rows)

    def reload(self) -> None:
        """Read what all ranks have written."""
        for path in sorted(self.folder.glob("logps-*.sqlite")):
            with _opened(path) as connection:
                self._values.update(connection.execute("SELECT response, logp FROM response_logps"))

    def lookup(self, responses: Sequence[str], device: torch.device | str = "cpu") -> Tensor:
        """Log-probs, float32 (M,).

        Raises:
            ConfigError: a response is missing: its text, images or template are not those that were precomputed.
        """
        if missing := [response for response in responses if response not in self._values]:
            raise ConfigError(
                f"{len(missing)} of {len(responses)} responses of a batch are not in the reference cache "
                f"{self.folder}: the rows or the processor changed after precomputing, or rows are drawn anew each "
                "epoch; "
                "build the trainer again"
            )
        return torch.tensor([self._values[response] for response in responses], device=device)

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
    logps: Callable[[Batch], Tensor],
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
) -> int:
    """Fill the cache with every `world_size`-th row of a dataset; rows that it has are not computed again.

    Args:
        cache: gets the values.
        rows: a dataset with a length.
        collate: rows → batch with `response_keys` (M) and `pair_index` (B, 2), as in training.
        logps: batch → sums, (M,).
        batch_size: pairs per forward pass.
        rank, world_size: this process's share.

    Returns:
        How many rows were computed.
    """
    computed = 0
    for wanted, batch in _unknown(cache, rows, collate=collate, batch_size=batch_size, rank=rank, ranks=world_size):
        cache.add(batch["response_keys"], logps(batch))
        computed += wanted
    return computed


def missing(
    cache: ReferenceCache,
    rows: Any,
    *,
    collate: Callable[[list[Any]], Batch],
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
) -> int:
    """How many of this process's rows `precompute`, whose arguments these are, would compute."""
    share = {"batch_size": batch_size, "rank": rank, "ranks": world_size}
    return sum(wanted for wanted, _ in _unknown(cache, rows, collate=collate, **share))


def _unknown(
    cache: ReferenceCache, rows: Any, *, collate: Callable[[list[Any]], Batch], batch_size: int, rank: int, ranks: int
) -> Iterator[tuple[int, Batch]]:
    """Rows that the cache lacks, of every `ranks`-th one, in batches: how many, and their batch."""
    mine = range(rank, len(rows), ranks)
    for start in tqdm(range(0, len(mine), batch_size), desc="reference log-probs", unit="batch", disable=rank > 0):
        some = [rows[i] for i in mine[start : start + batch_size]]
        batch = collate(some)
        if "response_keys" not in batch:
            raise ConfigError(
                "expected response_keys in a batch, got "
                f"{sorted(batch)}: precompute_ref_log_probs needs PreferenceCollator(processor, with_keys=True)"
            )
        known = [key in cache for key in batch["response_keys"]]
        pairs = batch["pair_index"].tolist()
        wanted = [row for row, (c, r) in zip(some, pairs, strict=True) if not (known[c] and known[r])]
        if wanted:
            yield len(wanted), batch if len(wanted) == len(some) else collate(wanted)


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
        template_of(processor),
        json.dumps(
            getattr(getattr(processor, "image_processor", None), "to_dict", dict)(), sort_keys=True, default=str
        ),
    ]
    return _digest(part.encode() for part in parts)


def prompt_key(tensors: Iterable[Tensor]) -> str:
    """SHA-256 of a prompt as the model sees it: its ids, per-token features and pixels."""
    return _digest(
        part for tensor in tensors for part in (repr((tensor.dtype, tuple(tensor.shape))).encode(), _bytes(tensor))
    )


def response_keys(prompt: str, responses: Sequence[tuple[Sequence[int], tuple[int, int] | None]]) -> list[str]:
    """SHA-256 of each response of one prompt as the model sees it, and of the part of it that is summed.

    Args:
        prompt: its `prompt_key`.
        responses: token ids of each, and the range of them that counts; None: all.
    """
    return [_digest([prompt.encode(), json.dumps([[*ids], counted]).encode()]) for ids, counted in responses]


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    """A file with its tables, for one transaction: committed and closed, or rolled back."""
    with closing(sqlite3.connect(path, timeout=60)) as connection, connection:
        for statement in _SCHEMA:
            connection.execute(statement)
        yield connection


def _bytes(tensor: Tensor) -> memoryview:
    """A tensor's bytes where they are; those of an accelerator are copied to the host."""
    array: Any = tensor.detach().contiguous().cpu().flatten().view(torch.uint8).numpy()
    return memoryview(array)


def _digest(parts: Iterable[bytes | memoryview]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()
