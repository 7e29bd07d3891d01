"""Mixed Preference Optimization (MPO, arXiv 2411.10442) for multimodal models: L = w_p·L_p + w_q·L_q + w_g·L_g.

These are the names that scripts start with; everything else is imported from its own module. They are loaded on first
use (PEP 562), so that `import mpo` costs neither torch nor transformers.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpo.collator import PreferenceCollator as PreferenceCollator
    from mpo.config import MPOConfig as MPOConfig
    from mpo.forward import model_inputs as model_inputs
    from mpo.forward import pair_logps as pair_logps
    from mpo.forward import prepare_models as prepare_models
    from mpo.losses import Denominators as Denominators
    from mpo.losses import generation_loss as generation_loss
    from mpo.losses import implicit_rewards as implicit_rewards
    from mpo.losses import mpo_loss as mpo_loss
    from mpo.losses import preference_loss as preference_loss
    from mpo.losses import quality_loss as quality_loss
    from mpo.multimodal.errors import MPOError as MPOError
    from mpo.multimodal.images import load_image as load_image
    from mpo.multimodal.loading import load_for_inference as load_for_inference
    from mpo.multimodal.loading import load_model as load_model
    from mpo.multimodal.loading import load_processor as load_processor
    from mpo.reward_shift import RewardShift as RewardShift
    from mpo.trainer import MPOTrainer as MPOTrainer
    from mpo.types import LossWeights as LossWeights
    from mpo.types import MPOLoss as MPOLoss
    from mpo.types import PairLogps as PairLogps

    __version__: str

_MODULES: dict[str, tuple[str, ...]] = {
    "mpo.collator": ("PreferenceCollator",),
    "mpo.config": ("MPOConfig",),
    "mpo.forward": ("model_inputs", "pair_logps", "prepare_models"),
    "mpo.losses": (
        "Denominators",
        "generation_loss",
        "implicit_rewards",
        "mpo_loss",
        "preference_loss",
        "quality_loss",
    ),
    "mpo.multimodal.errors": ("MPOError",),
    "mpo.multimodal.images": ("load_image",),
    "mpo.multimodal.loading": ("load_for_inference", "load_model", "load_processor"),
    "mpo.reward_shift": ("RewardShift",),
    "mpo.trainer": ("MPOTrainer",),
    "mpo.types": ("LossWeights", "MPOLoss", "PairLogps"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_HOME)


# `rewards.py` is a common name, and a file of that name beside a script, or in the folder of `python -m`, wins.
if (_found := find_spec("rewards")) and _found.origin and Path(_found.origin).parents[1] != Path(__file__).parents[1]:
    warnings.warn(
        f"`import rewards` gives {_found.origin}, which hides the package `rewards` of mpo-prm: rename the file if you "
        "need the package",
        stacklevel=2,
    )


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _HOME:
        raise AttributeError(f"module 'mpo' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("mpo-prm")
    except PackageNotFoundError:
        return "unknown"  # a source tree that is not installed
