"""The server that all tests of this folder ask; without an installation they are skipped and say so."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from vllm_server import VLLM, Served, serving

collect_ignore = ["shim"]  # is imported by the server alone: it changes how modules are found


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A running vLLM, started once."""
    if not VLLM.exists():
        pytest.skip(f"no vLLM at {VLLM}: `make test-vllm` installs it (3.5 GB, some minutes), or name one by VLLM_BIN")
    with serving(tmp_path_factory.mktemp("served")) as server:
        yield server
