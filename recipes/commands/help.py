"""`mpo --help` and `mpo COMMAND --help`, written from the table of commands and the dataclasses of their settings."""

from __future__ import annotations

import shutil
import textwrap
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, get_args, get_origin

from recipes.commands.parse import choices, hints, is_required
from recipes.commands.table import COMMANDS, GROUPS

# Heading → flags that stand under it, whatever the command; what is named nowhere stands under "Options".
SECTIONS: dict[str, str] = {
    "The model that answers, in this process or behind a server": "policy base_url model concurrency samples_a_request "
    "serve serve_command",
    "The PRM": "prm prm_format prm_base_url prm_model prm_read read aggregation",
    "Sampling": "num_samples n temperature top_p top_k max_new_tokens",
    "Labels": "soft_labels threshold until_first_error advantage max_doubt balance_classes text_weight injected "
    "visual_contrasts num_problems",
    "The loss": "beta preference_weight quality_weight generation_weight",
    "Length of the training": "epochs max_steps min_steps batch_size batch_groups learning_rate warmup save_steps",
    "Which weights are trained": "lora_rank lora_alpha lora_targets freeze_vision",
    "Memory and speed": "dtype master_weights gradient_checkpointing per_device_batch max_length group_by_prompt "
    "balance_tokens max_row_tokens batch_rows engine actors workers timeout_s shard_gb",
    "Watching": "sample_every sample_problems sample_tokens report_to",
    "The guard, which may end the training": "guard guard_every guard_problems guard_tokens guard_stop guard_remaining "
    "guard_repetition guard_drift guard_patience",
}
MODELS = ("PolicyPath", "ModelPath", "CheckpointPath")  # types of `recipes.config`
VALUES: dict[Any, str] = {int: "N", float: "X", Path: "PATH", str: "TEXT"}


def overview() -> str:
    """Every command, in its group."""
    width = max(map(len, COMMANDS))
    lines = [
        "usage: mpo COMMAND [SETTINGS] [--flag value …]",
        "",
        "Samples of a multimodal model, scored step by step by a process reward model (PRM), become preference pairs;",
        "MPO trains on them; the same PRM picks the best of N answers.",
    ]
    for heading, commands in GROUPS.items():
        lines += ["", f"{heading}:"]
        lines += [f"  {name:<{width}}  {command.line}" for name, command in commands.items()]
    lines += [
        "",
        "SETTINGS is a YAML file of flags and values, yours or one that `mpo settings` lists. Flags win over it.",
        "`mpo COMMAND --help` lists a command's flags; `mpo --version` prints the version.",
    ]
    return "\n".join(lines)


def command_help(name: str, config_class: type) -> str:
    """A command's flags: those that it needs, then the others by subject, then a line to copy."""
    command = COMMANDS[name]
    every = {field.name: field for field in fields(config_class)}
    required = [field for field in every.values() if is_required(field)]
    width = min(shutil.get_terminal_size((100, 24)).columns, 100)
    needed = " ".join(
        _metavar(config_class, field) if field.name in command.bare else _flag(config_class, field)
        for field in sorted(required, key=lambda field: field.name not in command.bare)
    )
    blocks = [
        textwrap.fill(
            f"usage: mpo {' '.join(filter(None, [name, needed]))} [options]", width, subsequent_indent=" " * 11
        ),
        textwrap.fill(f"{command.line[0].upper()}{command.line[1:]}.", width),
    ]
    listed = {"Required": required}
    left = [field for field in every.values() if field not in required]
    for heading, names in SECTIONS.items():
        listed[heading] = [every[flag] for flag in names.split() if every.get(flag) in left]
    grouped = [field for some in listed.values() for field in some]
    listed["Options"] = [field for field in left if field not in grouped]
    column = 2 + max((len(_flag(config_class, field)) for field in every.values()), default=0)
    for heading, some in listed.items():
        if some:
            rows = [_row(config_class, field, min(column, 30), width) for field in some]
            blocks.append("\n".join([f"{heading}:", *rows]))
    if any(map(_names_model, every.values())):
        blocks.append("MODEL is a folder, or org/name or org/name@revision on the Hugging Face hub.")
    if "settings" not in every:
        blocks.append(
            "Any flag may also be in a YAML file, as `key: value`: `mpo " + name + " FILE.yaml --flag value`."
        )
    blocks.append(f"Example:\n  {command.example}")
    return "\n\n".join(blocks)


def _row(config_class: type, field: Field[Any], column: int, width: int) -> str:
    flag = _flag(config_class, field)
    text = str(field.metadata.get("help", ""))
    some = choices(hints(config_class)[field.name])
    if some:
        text += f" [{', '.join(some)}]"
    if is_required(field):
        text = f"required: {text}"
    elif default := _default(field):
        text += f" (default: {default})"
    indent = " " * (column + 4)
    lines = textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent, break_long_words=False)
    first = f"  {flag}"
    if len(flag) > column:
        return "\n".join([first, *lines])
    return "\n".join([first.ljust(len(indent)) + lines[0].strip(), *lines[1:]])


def _flag(config_class: type, field: Field[Any]) -> str:
    return f"--{field.name} {_metavar(config_class, field)}".rstrip()


def _metavar(config_class: type, field: Field[Any]) -> str:
    kind = hints(config_class)[field.name]
    if _names_model(field):
        return "MODEL"
    if kind is bool:
        return "" if field.default is False else "true|false"
    if get_origin(kind) is list:
        one = VALUES.get(get_args(kind)[0], "NAME")
        return f"{one} […]"
    return "NAME" if choices(kind) else VALUES.get(kind, "VALUE")


def _names_model(field: Field[Any]) -> bool:
    return str(field.type).removesuffix(" | None") in MODELS


def _default(field: Field[Any]) -> str:
    value = field.default if field.default_factory is MISSING else field.default_factory()
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "" if value is None else str(value)
