"""`python serve_model.py PORT LOG`: a `ModelServer` in a process of its own, so that it can be killed.

Every request stands in LOG before it is answered: its picture or else its question, `models` for a look at the models.
While a file `LOG.hold` exists no chat request is answered.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from model_server import ModelServer, asked_about, scripted_reply


def main(port: int, log: Path) -> None:
    """Serve until killed."""

    def reply(body: dict[str, Any]) -> dict[str, Any]:
        write(asked_about(body))
        time.sleep(0.03)
        while Path(f"{log}.hold").exists():
            time.sleep(0.02)
        return scripted_reply(body)

    def write(line: str) -> None:
        with log.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    with ModelServer(reply=reply, models=("tiny",), port=port, on_models=lambda: write("models")):
        write("up")
        while True:
            time.sleep(60)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
