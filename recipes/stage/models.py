"""The models that a command is told, as folders on this machine, before anything heavy is imported.

A name on the hub is fetched once and pinned to its commit, so that all that a stage does is about the same weights.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from mpo.multimodal.errors import ConfigError
from mpo.multimodal.hub import adapter_base, hub_name, is_hub_name, loadable_folder, model_folder
from recipes.config import Role
from rewards.prm.formats import CONTRACT

Config = TypeVar("Config")


def with_models_here(config: Config) -> Config:
    """The config with every model from the hub as a folder on this machine; a path where nothing is stays as it is.

    Other inputs were looked at before (`check_inputs`), so nothing is fetched for a command that lacks one.

    Raises:
        ConfigError: see `checked_model`.
    """
    told: Any = config
    roles = {name: role for name, role in roles_of(type(config)).items() if getattr(told, name) is not None}
    named = {name: getattr(told, name) for name in roles}
    here = {
        name: checked_model(path, roles[name], flag=name)
        for name, path in named.items()
        if path.exists() or is_hub_name(path)
    }
    return replace(told, **here) if here else config


def checked_model(name: Path, role: Role, *, flag: str) -> Path:
    """The folder of a model that can play its role.

    Raises:
        StageError: a path where there is no model.
        ConfigError: the hub does not give the model, it has to be converted first, or a PRM is named as a policy.
    """
    if role == "checkpoint":
        return model_folder(name)
    folder = loadable_folder(name)
    if role == "policy" and (folder / CONTRACT).exists():
        raise ConfigError(
            f"{name} is a process reward model (it holds {CONTRACT}), which judges steps: expected a model that "
            f"answers as --{flag}; name the model that it was trained from, or give this one as --prm"
        )
    return folder


def roles_of(config_class: type) -> dict[str, Role]:
    """Field → what its model is for, of the fields that name models.

    Example:
        >>> from recipes.config import RoundsConfig
        >>> roles_of(RoundsConfig)
        {'policy': 'policy', 'prm': 'model'}
    """
    hints = get_type_hints(config_class, include_extras=True)
    named = {name: [hint, *get_args(hint)] for name, hint in hints.items()}  # of `PolicyPath | None` too
    found = {
        name: [role for part in parts for role in getattr(part, "__metadata__", ())] for name, parts in named.items()
    }
    return {name: roles[0] for name, roles in found.items() if roles and roles[0] in get_args(Role)}


def hub_names(models: dict[str, Path]) -> dict[str, str]:
    """Input → `org/name@commit`, of the inputs that come from the hub, and of the bases of adapters."""
    bases = {f"{name}, base": base for name, path in models.items() if path.is_dir() and (base := adapter_base(path))}
    return {name: found for name, path in (models | bases).items() if (found := hub_name(path))}
