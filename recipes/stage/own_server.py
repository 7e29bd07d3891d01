"""A server of a stage's own: started with the stage's policy, asked, and put away, so that each stage may have another.

`--serve true` runs `--serve_command`, vLLM's by default, with the policy's folder and a free port in it. What the stage
makes is the policy's, whose content is in the manifest as without a server; only the address changes from run to run.
"""

from __future__ import annotations

import gc
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from mpo.multimodal.errors import ConfigError
from mpo.multimodal.hub import adapter_base
from mpo.multimodal.text import one_line
from rewards.errors import ServerError

SUPERVISOR = Path(__file__).with_name("supervise.py")
LOG = "server.log"  # in the stage's folder: what the server said
READY_S = 1800.0  # for loading a large model from a slow disk
ENDED_S = 30.0
LOOK_EVERY_S = 0.3

_DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback, whatever proxy is set

Config = TypeVar("Config", bound=Any)


@contextmanager
def served(config: Config, out: Path) -> Iterator[Config]:
    """The settings with the address of a server in place of the policy, while the block runs; as they are without
    `serve`.

    Args:
        config: with `policy`, `base_url`, `model`, `serve` and `serve_command`.
        out: folder of the stage, for what the server says.

    Raises:
        ConfigError: the command cannot be run, or the policy is an adapter.
        ServerError: the server ended, or did not answer within half an hour.
    """
    if not config.serve:
        yield config
        return
    if adapter_base(config.policy) is not None:
        raise ConfigError(
            f"serve: {config.policy} is an adapter, and a server is started with whole weights: give a folder that has "
            "it merged in, as mpo train-mpo saves one, or name a server that loads adapters by base_url and model"
        )
    with running(config.serve_command, config.policy, out / LOG) as (url, name):
        yield replace(config, policy=None, base_url=[url], model=name)


@contextmanager
def running(command: str, policy: Path, log: Path) -> Iterator[tuple[str, str]]:
    """Address of a server that answers, and the model's name there; its processes end with the block, or with ours."""
    port = _free_port()
    words = words_of(command, policy, port)
    _free_device()
    with log.open("ab") as said:
        start = log.stat().st_size
        process = subprocess.Popen(
            [sys.executable, "-P", str(SUPERVISOR), str(os.getpid()), *words],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
    try:
        print(f"server: starting {shlex.join(words)}; it writes to {log}", file=sys.stderr)
        url = f"http://127.0.0.1:{port}/v1"
        yield url, _name_when_ready(process, url, log, start)
    finally:
        _end(process)


def words_of(command: str, policy: Path, port: int) -> list[str]:
    """The words to run.

    Raises:
        ConfigError: a place for the model or the port is missing, or there is no such program.

    Example:
        >>> words_of("python -m http.server --bind {model} {port}", Path("run/policy"), 8000)[1:]
        ['-m', 'http.server', '--bind', 'run/policy', '8000']
    """
    check_command(command)
    words = [word.replace("{model}", str(policy)).replace("{port}", str(port)) for word in shlex.split(command)]
    program = shutil.which(words[0])
    if program is None:
        raise ConfigError(
            f"serve_command: there is no program {words[0]!r}; install it, or name it with its folder, as in "
            "'/path/to/venv/bin/vllm serve {model} --host 127.0.0.1 --port {port}'"
        )
    return [program, *words[1:]]


def check_command(command: str) -> None:
    """Raise ConfigError for a command that cannot be split into words, or that is not told model or port."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ConfigError(f"serve_command: {error} in {command!r}") from error
    missing = [name for name in ("{model}", "{port}") if not any(name in word for word in words[1:])]
    if missing:
        raise ConfigError(f"serve_command: expected {' and '.join(missing)} in it, got {command!r}")


def _name_when_ready(process: subprocess.Popen[bytes], url: str, log: Path, start: int) -> str:
    begun = time.monotonic()
    while time.monotonic() < begun + READY_S:
        if process.poll() is not None:
            raise ServerError(f"the server of serve_command ended before it answered: {_last_words(log, start)}")
        name = _first_model(url)
        if name is not None:
            print(f"server: ready after {time.monotonic() - begun:.0f} s", file=sys.stderr)
            return name
        time.sleep(LOOK_EVERY_S)
    raise ServerError(f"the server of serve_command did not answer within {READY_S:.0f} s; see {log}")


def _first_model(url: str) -> str | None:
    """The name that the server gives its model; None while it does not answer."""
    try:
        with _DIRECTLY.open(f"{url}/models", timeout=5) as reply:
            return str(json.loads(reply.read(1 << 20))["data"][0]["id"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _last_words(log: Path, start: int) -> str:
    with log.open("rb") as file:
        file.seek(max(start, log.stat().st_size - 2000))
        lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    return f"{one_line(lines[-1], 200) if lines else 'it said nothing'}; see {log}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """The supervisor ends the group; if it does not, we do."""
    process.terminate()
    try:
        process.wait(ENDED_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _free_device() -> None:
    """Give back what earlier stages of this process left of a GPU's memory."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()
