"""The command line, `mpo …`. Nothing heavy is imported before a command is known and its settings are checked.

Exit codes: 0 done; 2 wrong use (one line says what was expected, what came, where, and what to do); 4 refused, because
the folder holds the work of other settings, which the line names; 130 interrupted.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import fields
from importlib import import_module
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from typing import Any

from recipes.commands.table import COMMANDS, GROUPS
from recipes.commands.words import did_you_mean

# Libraries whose errors are about a file that is damaged, or a disk that is full.
OF_FILES = ("json", "jinja2", "pyarrow", "safetensors", "safetensors_rust", "sqlite3", "yaml", "zipfile")
LONGEST_MESSAGE = 2000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    try:
        code = _main(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # `mpo --help | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:  # before the settings are read, or while a refused command is tidied up
        from recipes.stage.processes import INTERRUPTED

        print(INTERRUPTED, file=sys.stderr)
        return 130
    return code


def _main(arguments: Sequence[str] | None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for package in ("mpo", "rewards"):  # `python -m recipes.cli` looks in the working folder first
        found = find_spec(package)
        if found and found.origin and Path(found.origin).parents[1] != Path(__file__).parents[1]:
            print(f"mpo: {found.origin} hides the package {package!r} of mpo-prm; rename it", file=sys.stderr)
            return 2
    from recipes.commands.help import overview

    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if arguments[0] == "--version":
        print(f"mpo-prm {import_module('mpo').__version__}")
        return 0
    if arguments[0] not in COMMANDS:
        return _refuse(f"unknown command {arguments[0]!r}{did_you_mean(arguments[0], COMMANDS)}")
    return _run(arguments)


def _run(arguments: list[str]) -> int:
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of optional kernels whenever it is imported
    if {"-h", "--help"} & set(arguments):
        _show_help(arguments[0])
        return 0
    from mpo.multimodal.errors import FingerprintError, MPOError
    from recipes.stage.folder import is_first_process
    from recipes.stage.inputs import check_inputs
    from recipes.stage.processes import INTERRUPTED, ends_promptly
    from recipes.stage.threads import choose_threads
    from recipes.stage.unused import forget_folders, remove_unused

    try:
        with ends_promptly():
            config = _parsed(arguments)
            check_inputs(config)
            config = _with_models(arguments[0], config)
            forget_folders()
            if computes(arguments[0]) and is_first_process():
                print(choose_threads(), file=sys.stderr)
            if getattr(config, "json", False):
                _import_transformers_unheard()
            _function(arguments[0])(config)
    except FingerprintError as error:
        return _refuse(str(error), code=4)
    except MPOError as error:
        remove_unused()
        return _refuse(str(error))
    except BrokenPipeError:
        raise
    except OSError as error:
        return _refuse(f"{arguments[0]}: {error}")
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
        return 130
    except Exception as error:
        if not any(kind.__module__.partition(".")[0] in OF_FILES for kind in type(error).__mro__):
            raise  # a defect of ours, whose traceback is wanted
        remove_unused()
        return _refuse(f"{arguments[0]}: {type(error).__name__}: {error}")
    return 0


def _import_transformers_unheard() -> None:
    """With WANDB_MODE=offline, transformers prints a line to stdout when it is imported; --json promises JSON alone."""
    if os.environ.get("WANDB_MODE") == "offline":
        with redirect_stdout(sys.stderr):
            import_module("transformers.integrations.integration_utils")


def _parsed(arguments: Sequence[str]) -> Any:
    """The command's config, from its words."""
    from mpo.multimodal.errors import MPOError
    from recipes.commands.parse import parse

    command, words = COMMANDS[arguments[0]], list(arguments[1:])
    bare = list(takewhile(lambda word: not word.startswith("-"), words))
    settings_first = not command.bare or (bare[:1] and bare[0].endswith((".yaml", ".yml")) and "run" in command.bare)
    names = ["config"] if settings_first else command.bare
    flags = [word for name, value in zip(names, bare, strict=False) for word in (f"--{name}", value)]
    try:
        return parse(_config_class(arguments[0]), [*flags, *words[len(flags) // 2 :]])
    except MPOError as error:
        raise type(error)(f"{arguments[0]}: {error}") from error


def _with_models(name: str, config: Any) -> Any:
    """The config with the models that it names found or fetched; nothing heavy is imported for that."""
    from mpo.multimodal.errors import MPOError
    from recipes.stage.models import with_models_here

    try:
        return with_models_here(config)
    except MPOError as error:
        raise type(error)(f"{name}: {error}") from error


def _function(name: str) -> Callable[[Any], Any]:
    """The command's function; its module is imported now, when everything that can be seen before is right."""
    command = COMMANDS[name]
    found: Callable[[Any], Any] = getattr(import_module(command.module), command.function)
    return found


def _show_help(name: str) -> None:
    from recipes.commands.help import command_help

    print(command_help(name, _config_class(name)))


def _config_class(name: str) -> type:

    found: type = getattr(import_module("recipes.config"), COMMANDS[name].config)
    return found


def computes(name: str) -> bool:
    """Whether a command computes with a model: it is told one, or makes one.

    Example:
        >>> computes("sample"), computes("pipeline"), computes("verify")
        (True, True, False)
    """
    from recipes.stage.models import roles_of

    told = _config_class(name)
    names = [field.name for field in fields(told)]
    return name in GROUPS["The embedded worlds"] or bool(roles_of(told)) or "settings" in names


def _refuse(message: str, *, code: int = 2) -> int:
    from mpo.multimodal.text import one_line

    print(f"mpo: {one_line(message, LONGEST_MESSAGE)}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
