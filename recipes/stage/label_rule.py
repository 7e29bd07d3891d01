"""How `mpo train-prm` makes step labels from counts, read off its settings; settings that exclude each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mpo.multimodal.errors import ConfigError

if TYPE_CHECKING:
    from rewards.prm.labelling.labels import LabelRule


def label_rule(config: Any) -> LabelRule:
    """The rule that the settings of `mpo train-prm` ask for.

    Raises:
        ConfigError: settings that exclude each other, or a number outside its range.
    """
    from rewards.prm.labelling.labels import LabelRule

    binomial = config.loss == "binomial"
    for name in ("concentration", "concentration_head"):
        if getattr(config, name) and not binomial:
            raise ConfigError(f"{name} belongs to the likelihood of counts: add --loss binomial, or leave it out")
    others = ("balance_classes", "as_released", "injected", "visual_contrasts")
    if binomial and (given := [name for name in others if getattr(config, name)]):
        raise ConfigError(
            f"loss binomial learns the counts of steps as they are: leave {' and '.join(given)} out, which needs labels"
        )
    return LabelRule(
        soft=config.soft_labels,
        threshold=config.threshold,
        until_first_error=config.until_first_error,
        max_doubt=config.max_doubt,
        advantage=config.advantage,
        binomial=binomial,
        good_above=config.good_above,
        bad_below=config.bad_below,
    )


def one_way_to_label(config: Any) -> None:
    """Refuse settings of `mpo train-prm` that exclude each other; other commands have none of them."""
    if hasattr(config, "bad_below"):
        label_rule(config)
