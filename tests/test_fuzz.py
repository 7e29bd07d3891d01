"""No damaged input makes a decoder raise anything but an error of ours (`make fuzz` tries for longer)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzzing import DECODERS, attempt, try_inputs


@pytest.mark.parametrize("name", DECODERS)
def test_no_decoder_lets_anything_out(name: str, tmp_path: Path) -> None:
    assert try_inputs(name, 60, 0, tmp_path) >= 60


@pytest.mark.parametrize("name", DECODERS)
def test_the_input_to_begin_with_is_taken(name: str, tmp_path: Path) -> None:
    """Else every damaged one would be refused for the same reason."""
    assert attempt(name, DECODERS[name][0](), tmp_path)
