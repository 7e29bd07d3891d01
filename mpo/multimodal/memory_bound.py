"""What is made once and kept, as long as it fits: encoded prompts, rendered rows."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import fields, is_dataclass
from typing import Any, Generic, TypeVar

from torch import Tensor

Value = TypeVar("Value")

KEPT_BYTES = 2**29  # of a collator, in each process that collates: 512 MiB


class Kept(Generic[Value]):
    """Values by key, of at most this many bytes of tensors.

    Args:
        most: bytes.
        newest: keep the values that were used last, for keys that come in runs; else those that came first, for keys
            that come round and round: there, the newest would each be gone when its turn comes.
    """

    def __init__(self, most: int, *, newest: bool = False) -> None:
        self.most, self.newest = most, newest
        self.bytes = 0
        self._values: dict[Hashable, tuple[Value, int]] = {}

    def __call__(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value of this key; made if it is not kept."""
        if key in self._values:
            value, size = self._values[key]
            if self.newest:
                self._values[key] = self._values.pop(key)
            return value
        value = make()
        size = tensor_bytes(value)
        while self.newest and self._values and self.bytes + size > self.most:
            self.bytes -= self._values.pop(next(iter(self._values)))[1]
        if self.bytes + size <= self.most:
            self._values[key] = value, size
            self.bytes += size
        return value

    def __len__(self) -> int:
        return len(self._values)

    def __getstate__(self) -> dict[str, Any]:
        """What is kept stays with its process: a data loader's worker starts with none."""
        return {**self.__dict__, "_values": {}, "bytes": 0}


def tensor_bytes(value: Any, seen: set[int] | None = None) -> int:
    """Bytes of the tensors in lists, tuples, dicts and dataclasses, each once; other things count 8 bytes each."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return 0
    seen.add(id(value))
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(tensor_bytes(inner, seen) for inner in value.values())
    if isinstance(value, list | tuple):
        if value and isinstance(value[0], int):
            return 8 * len(value)
        return sum(tensor_bytes(inner, seen) for inner in value)
    if is_dataclass(value):
        return sum(tensor_bytes(getattr(value, field.name), seen) for field in fields(value))
    return 8
