"""Mixed Preference Optimization (MPO, arXiv 2411.10442) for multimodal models: L = w_p·L_p + w_q·L_q + w_g·L_g.

Names are loaded on first use (PEP 562), so that `import mpo` costs neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpo.config import MPOConfig
    from mpo.losses import mpo_loss
    from mpo.reward_shift import RewardShift
    from mpo.trainer import MPOTrainer
    from mpo.types import LossWeights, MPOLoss, PairLogps

_HOME = {
    "LossWeights": "mpo.types",
    "MPOConfig": "mpo.config",
    "MPOLoss": "mpo.types",
    "MPOTrainer": "mpo.trainer",
    "PairLogps": "mpo.types",
    "RewardShift": "mpo.reward_shift",
    "mpo_loss": "mpo.losses",
}

__all__ = ["LossWeights", "MPOConfig", "MPOLoss", "MPOTrainer", "PairLogps", "RewardShift", "mpo_loss"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mpo' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
