"""`kill_evaluate.py SETTINGS OUT FAILPOINT…`: run `mpo evaluate`, killed once at each failpoint, then until it is done.

Prints one line of JSON: the exit codes of the attempts.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from killing import ended, start


def main(settings: str, out: str, failpoints: list[str]) -> None:
    """One attempt per failpoint, and a last one without."""
    import recipes.evaluating.evaluate  # noqa: F401  so that the children need not import it

    arguments = ["evaluate", settings, "--out", out]
    log = Path(f"{out}.log")
    codes = [ended(start(arguments, failpoint=failpoint, log=log)) for failpoint in [*failpoints, ""]]
    print(json.dumps({"codes": codes}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
