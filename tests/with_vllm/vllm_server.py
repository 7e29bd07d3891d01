"""One real vLLM on the CPU with the tiny checkpoint; `make test-vllm` installs it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from served_checkpoint import build_checkpoint

ROOT = Path(__file__).resolve().parents[2]
VLLM = Path(os.environ.get("VLLM_BIN", ROOT / ".venv-vllm" / "bin" / "vllm"))
STARTS_IN_S, STOPS_IN_S = 1000.0, 60.0
MODEL = "tiny"
QUIET = {
    **{"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"},
    **{"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"},
    "PYTHONPATH": str(Path(__file__).parent / "shim"),
}
FLAGS = [
    *("--served-model-name", MODEL, "--host", "127.0.0.1", "--max-model-len", "512", "--max-num-seqs", "16"),
    *("--max-num-batched-tokens", "1024", "--dtype", "float32", "--enforce-eager", "--disable-uvicorn-access-log"),
    *("--limit-mm-per-prompt", '{"image":4,"video":0}', "--max-logprobs", "20"),
]


@dataclass(frozen=True)
class Served:
    """A running server, and the folder that it serves."""

    base_url: str
    folder: Path


@contextmanager
def serving(folder: Path) -> Iterator[Served]:
    """Build the checkpoint in `folder/model`, serve it, and stop the server and all its processes at the end."""
    model, log = build_checkpoint(folder / "model"), folder / "vllm.log"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    with log.open("wb") as file:
        process = subprocess.Popen(
            [str(VLLM), "serve", str(model), "--port", str(port), *FLAGS],
            env=environment | QUIET,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_until_healthy(process, port, log)
        yield Served(f"http://127.0.0.1:{port}/v1", model)
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOPS_IN_S)
        with suppress(ProcessLookupError):  # whoever of its processes is left
            os.killpg(process.pid, signal.SIGKILL)


def _wait_until_healthy(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + STARTS_IN_S
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as reply:
            if reply.status == 200:
                return
        time.sleep(1.0)
    raise RuntimeError(
        f"vLLM did not start (exit code {process.poll()}); the end of its log:\n{log.read_text()[-4000:]}"
    )
