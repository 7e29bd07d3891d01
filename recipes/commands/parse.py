"""Flags and YAML values → the config of a command, checked in one place, with one line about what is wrong.

A flag, a YAML key and a field of the dataclass have one name; flags are written with `_` or `-`, and override the file.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from mpo.multimodal.errors import ConfigError
from recipes.commands.shipped import read_mapping
from recipes.commands.words import did_you_mean

KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
LIMITS = {"gt": " above {:g}", "ge": " of at least {:g}", "lt": " below {:g}", "le": " of at most {:g}"}


def parse(config_class: type, words: Sequence[str]) -> Any:
    """The command's config from its words: `--config FILE`, `--flag value …`, `--switch`, `--no_switch`.

    Raises:
        ConfigError: an unknown flag or key, a missing one, a value of the wrong type, a file that is no YAML mapping.
        StageError: no such settings file.
    """
    given = vars(_parser(config_class).parse_args([_underscored(word) for word in words]))
    file = given.pop("config", None)
    path, values = (None, {}) if file is None else read_mapping(file)

    def where(key: str) -> str:
        return f"{path}: {key}" if key in values and key not in given else f"--{key}"

    return build(config_class, {**values, **given}, where=where)


def build(config_class: type, values: Mapping[str, Any], *, where: Callable[[str], str]) -> Any:
    """The dataclass from loosely typed values: "5" is a whole number, "true" a truth value.

    Args:
        config_class: a dataclass of `recipes.config`.
        values: of YAML, or of the command line.
        where: how a message names a key.

    Raises:
        ConfigError: about the first thing that is wrong.
    """
    from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

    known = {field.name: field for field in fields(config_class)}
    for key in values:
        if key not in known:
            raise ConfigError(f"{where(key)} is unknown{did_you_mean(str(key), known)}")
    if missing := [where(name) for name, field in known.items() if is_required(field) and name not in values]:
        raise ConfigError(f"expected {', '.join(missing)} as well")
    values = {key: _listed(hints(config_class)[key], value) for key, value in values.items()}
    try:
        return TypeAdapter(with_config(ConfigDict(extra="forbid", allow_inf_nan=False))(config_class)).validate_python(
            values
        )
    except ValidationError as error:
        first = error.errors()[0]
        key, kind, value = str(first["loc"][0]), hints(config_class)[str(first["loc"][0])], first["input"]
        limit = next(
            (words.format(first["ctx"][key]) for key, words in LIMITS.items() if key in first.get("ctx", {})), ""
        )
        close = did_you_mean(str(value), choices(kind), else_list=False)
        raise ConfigError(f"{where(key)}: expected {expected(kind)}{limit}, got {value!r:.80}{close}") from error


@cache
def hints(config_class: type) -> dict[str, Any]:
    """Field → its type, without `| None`."""
    found = get_type_hints(config_class)
    return {name: _without_none(kind) for name, kind in found.items()}


def choices(kind: Any) -> list[str]:
    """The values that a field may have, if they are few and fixed."""
    if get_origin(kind) is list:
        return choices(get_args(kind)[0])
    return [str(value) for value in get_args(kind)] if get_origin(kind) is Literal else []


def is_required(field: Field[Any]) -> bool:
    """Whether the user must set it."""
    return field.default is MISSING and field.default_factory is MISSING


def expected(kind: Any) -> str:
    """A type in words.

    Example:
        >>> expected(list[int])
        'a whole number, or several'
    """
    if get_origin(kind) is list:
        return f"{expected(get_args(kind)[0])}, or several"
    some = choices(kind)
    return f"one of {', '.join(some)}" if some else KINDS.get(kind, "another value")


class _Parser(argparse.ArgumentParser):
    """Splits words into flags and values; an error is raised, in our words."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, left = self.parse_known_args(args, namespace)
        if left:
            known = [flag for action in self._actions for flag in action.option_strings]
            if left[0].startswith("--"):
                name = left[0].partition("=")[0]
                raise ConfigError(f"{name}: no such flag{did_you_mean(name, known)}")
            raise ConfigError(f"{left[0]!r} belongs to no flag: expected --flag value; `--help` lists the flags")
        return found


def _parser(config_class: type) -> _Parser:
    """No types and no defaults here: they are the dataclass's."""
    parser = _Parser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    parser.add_argument("--config")
    for name, kind in hints(config_class).items():
        if kind is bool:
            parser.add_argument(f"--{name}", nargs="?", const=True)
            parser.add_argument(f"--no_{name}", dest=name, action="store_const", const=False)
        else:
            parser.add_argument(f"--{name}", nargs="+" if get_origin(kind) is list else None)
    return parser


def _underscored(word: str) -> str:
    name, equals, value = word.partition("=")
    return name[:2] + name[2:].replace("-", "_") + equals + value if word.startswith("--") else word


def _listed(kind: Any, value: Any) -> Any:
    """One value where a list is expected: a list of it."""
    return [value] if get_origin(kind) is list and not isinstance(value, list | tuple) else value


def _without_none(kind: Any) -> Any:
    if get_origin(kind) in (Union, UnionType):
        some = [one for one in get_args(kind) if one is not NoneType]
        return some[0] if len(some) == 1 else kind
    return kind
