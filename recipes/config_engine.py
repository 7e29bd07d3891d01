"""The settings of every stage whose calls several workers can make: `recipes/engine.py`."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class EngineConfig:
    """Where calls are made; what they give does not depend on it."""

    engine: str = field(default="local", kw_only=True, metadata={"help": "local, or ray: several workers"})
    actors: int = field(default=2, kw_only=True, metadata={"help": "workers of engine ray, each loads the model"})
