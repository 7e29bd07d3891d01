"""`python serve_model.py PORT LOG [MODEL]`: a `ModelServer` in a process of its own, so that it can be killed.

Every request stands in LOG before it is answered: its image or else its question, `models` for a look at the models.
While a file `LOG.hold` exists no chat request is answered. With MODEL, a folder, its next token is the answer; with
the word `simulated`, the continuations of `simulated_policy.py`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import simulated_policy
from model_server import ModelServer, asked_about, scripted_reply


def main(port: int, log: Path, model: str) -> None:
    """Serve until killed."""
    answer = {"": scripted_reply, "simulated": simulated_policy.reply}.get(model) or _served(Path(model))

    def reply(body: dict[str, Any]) -> dict[str, Any]:
        write(asked_about(body))
        time.sleep(0.03)
        while Path(f"{log}.hold").exists():
            time.sleep(0.02)
        return answer(body)

    def write(line: str) -> None:
        with log.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    with ModelServer(reply=reply, models=("tiny",), port=port, on_models=lambda: write("models")):
        write("up")
        while True:
            time.sleep(60)


def _served(model: Path) -> Callable[[dict[str, Any]], dict[str, Any]]:
    from served_model import ServedModel

    from mpo.multimodal.loading import load_model, load_processor

    return ServedModel(load_model(model).eval(), load_processor(model))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "")
