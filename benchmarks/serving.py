"""`python benchmarks/serving.py`: responses per second of `mpo serve`, asked one at a time and by many clients.

A tiny InternVL with random weights is the PRM, in a server process of its own; every request has one response to one of
eight problems with an image. One thread of torch, so the gain is that of calls with many rows and of shared prompts.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image

from recipes.worlds.digits.policy import build_policy
from rewards.prm.formats import find_format
from rewards.prm.model_prm import save_format

ROOT = Path(__file__).resolve().parents[1]


def requests_of(number: int) -> list[dict[str, Any]]:
    """Requests with one response each, in turn to eight problems."""
    made = []
    for i in range(number):
        file = io.BytesIO()
        Image.new("RGB", (64, 32), (30 * (i % 8), 0, 0)).save(file, "PNG")
        steps = [f"See Red {(i + step) % 10}" for step in range(6)]
        text = "\n\n".join([*steps, f"Final answer: {i % 10}"])
        image = base64.b64encode(file.getvalue()).decode()
        made.append({"question": f"Which digit is {i % 8}?", "images": [image], "responses": [text]})
    return made


def rate(url: str, bodies: list[dict[str, Any]], clients: int) -> tuple[float, list[float]]:
    """Responses per second, and their rewards in order."""

    def ask(body: dict[str, Any]) -> float:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{url}/score", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=120) as reply:
            (reward,) = json.load(reply)["rewards"]
            return float(reward)

    started = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        rewards = list(pool.map(ask, bodies))
    return len(bodies) / (time.monotonic() - started), rewards


def main() -> None:
    """Measure, and print a line for each number of clients."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=128)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        prm = build_policy(Path(folder) / "prm", seed=0)
        save_format(prm, find_format("step_end"))
        command = [sys.executable, "-m", "recipes.cli", "serve", str(prm), "--port", "0"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        server = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        try:
            url = next(line.split()[0] for line in server.stdout if line.startswith("http://"))
            bodies = requests_of(args.requests)
            rate(url, bodies[:16], 4)  # what the first calls cost is not in the measure
            first, alone = 0.0, []
            for clients in args.clients:
                speed, rewards = rate(url, bodies, clients)
                first, alone = first or speed, alone or rewards
                apart = max(abs(a - b) for a, b in zip(rewards, alone, strict=True))
                print(f"{clients} clients: {speed:.1f} responses/s, {speed / first:.2f}x, rewards within {apart:.1e}")
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
