"""The command line, `mpo …`. Nothing heavy is imported before a command is known.

Exit codes: 0 done; 2 wrong use (one line says what was expected, what came, where, and what to do); 4 refused, because
the folder holds the work of other settings, which the line names; 130 interrupted.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from itertools import takewhile
from typing import Any

from mpo.multimodal.text import one_line

# command: (module, function, config class in recipes.config, one line of help), in the order of the loop
COMMANDS: dict[str, tuple[str, str, str, str]] = {
    "world": (
        "recipes.worlds.digits.compose",
        "compose",
        "WorldConfig",
        "compose the digit problems and an untrained policy",
    ),
    "warm-start": (
        "recipes.training.warm_start",
        "warm_start",
        "WarmStartConfig",
        "supervised training on demonstrated answers",
    ),
    "sample": ("recipes.data.sample", "sample", "SampleConfig", "draw N answers per problem"),
    "verify": ("recipes.data.verify", "verify", "VerifyConfig", "check final answers"),
    "easy-vqa": (
        "recipes.worlds.easy_vqa",
        "compose",
        "EasyVQAConfig",
        "problems of the package easy-vqa, and a policy",
    ),
    "label-steps": ("recipes.data.label_steps", "label", "LabelConfig", "Monte-Carlo labels for steps"),
    "label-exact": (
        "recipes.worlds.digits.exact_labels",
        "label_exactly",
        "ExactLabelConfig",
        "the digit world's own labels for steps",
    ),
    "deepen": (
        "recipes.worlds.digits.deepen",
        "deepen_policy",
        "DeepenConfig",
        "a deeper model for the digits' PRM to start from",
    ),
    "train-prm": ("recipes.training.train_prm", "train_prm", "TrainPRMConfig", "train a process reward model"),
    "convert": (
        "recipes.data.convert_checkpoint",
        "convert",
        "ConvertConfig",
        "a checkpoint of the hub into native classes",
    ),
    "score": ("recipes.data.score", "score", "ScoreConfig", "step scores and rewards"),
    "pairs": ("recipes.data.pairs", "pairs", "PairsConfig", "chosen and rejected answers"),
    "convert-data": (
        "recipes.data.convert_data",
        "convert_data",
        "ConvertDataConfig",
        "FROM TO: preference pairs or labelled steps into another format",
    ),
    "train-mpo": ("recipes.training.train_mpo", "train_mpo", "TrainMPOConfig", "Mixed Preference Optimization"),
    "doctor": (
        "recipes.training.doctor",
        "doctor",
        "TrainMPOConfig",
        "what `train-mpo` would do with its settings, beforehand",
    ),
    "rounds": ("recipes.loop.rounds", "rounds", "RoundsConfig", "sample → pairs → MPO again and again, with a guard"),
    "best-of-n": ("recipes.answering.best_of_n", "best_of_n", "BestOfNConfig", "every selector at every k"),
    "answer": ("recipes.answering.answer", "answer", "AnswerConfig", "one question, the best of N answers"),
    "beam-search": (
        "recipes.answering.beam_search",
        "beam_search",
        "BeamSearchConfig",
        "answers found step by step with a PRM",
    ),
    "prm-eval": ("recipes.answering.prm_eval", "prm_eval", "PRMEvalConfig", "a PRM against a benchmark's step labels"),
    "report": ("recipes.report.page", "report_stage", "ReportConfig", "one self-contained HTML page of a run"),
    "view": ("recipes.report.view", "view", "ViewConfig", "the page at an address of this machine"),
    "env": (
        "recipes.report.environment",
        "environment",
        "EnvConfig",
        "project, packages and attention, for a bug report",
    ),
    "pipeline": ("recipes.loop.pipeline", "pipeline", "PipelineArguments", "the whole loop, one seed"),
    "evidence": (
        "recipes.loop.pipeline",
        "evidence",
        "EvidenceArguments",
        "the whole loop with all baselines, several seeds",
    ),
}

# flags whose values may stand first, without their names
POSITIONAL = {"view": ("--run",), "report": ("--run",), "convert-data": ("--source_format", "--target_format")}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return 0
    if arguments[0] not in COMMANDS:
        return _refuse(f"unknown command {arguments[0]!r}: expected one of {', '.join(COMMANDS)}")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of optional kernels whenever it is imported
    from mpo.multimodal.errors import FingerprintError, MPOError

    try:
        run, config = _prepare(arguments)
        run(config)
    except FingerprintError as error:
        return _refuse(str(error), code=4)
    except (MPOError, _UsageError) as error:
        return _refuse(str(error))
    except OSError as error:
        return _refuse(f"{arguments[0]}: {error}")
    except KeyboardInterrupt:
        print("interrupted; finished stages and stored work are kept, the same command goes on", file=sys.stderr)
        return 130
    return 0


class _UsageError(Exception):
    pass


def _prepare(arguments: Sequence[str]) -> tuple[Callable[[Any], Any], Any]:
    """The command's function and its parsed config; the stage's own module is imported last."""
    command, *rest = arguments
    if rest and rest[0].endswith((".yaml", ".yml")):
        rest.insert(0, "--config")
    else:
        bare = sum(1 for _ in takewhile(lambda word: not word.startswith("-"), rest))
        names = POSITIONAL.get(command, ())[:bare]
        rest = [word for pair in zip(names, rest, strict=False) for word in pair] + rest[len(names) :]
    module, function, config_class, _ = COMMANDS[command]
    from trl import TrlParser

    parser = TrlParser([getattr(import_module("recipes.config"), config_class)], prog=f"mpo {command}")
    try:
        (config,) = parser.parse_args_and_config(rest)
    except (ValueError, OSError, TypeError) as error:
        raise _UsageError(f"{command}: {error}") from error
    return getattr(import_module(module), function), config


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {help_line}" for name, (_, _, _, help_line) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: mpo COMMAND [[--config] FILE.yaml] [--flag value …]",
            "",
            *lines,
            "",
            "`mpo COMMAND --help` lists its flags.",
        ]
    )


def _refuse(message: str, *, code: int = 2) -> int:
    print(f"mpo: {one_line(message)}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
