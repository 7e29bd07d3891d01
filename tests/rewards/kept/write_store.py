"""`write_store.py FILE NUMBER`: write samples until there are NUMBER, three a commit; a line of output a commit."""

from __future__ import annotations

import sys

from rewards.kept.store import SampleStore, StoredSample
from rewards.types import Completion


def stored(index: int) -> StoredSample:
    return StoredSample(f"key-{index}", f"p{index // 4}", index % 4, index, Completion(f"answer {index} " * 200))


def main(path: str, number: int) -> None:
    with SampleStore(path, {"temperature": 1.0}) as store:
        have = store.keys()
        missing = [index for index in range(number) if f"key-{index}" not in have]
        for start in range(0, len(missing), 3):
            some = missing[start : start + 3]
            store.add(stored(index) for index in some)
            print(*some, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
