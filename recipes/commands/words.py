"""Which known word was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str], *, else_list: bool = True) -> str:
    """`; did you mean 'x'?` for the closest known word, else the known words, or nothing.

    Example:
        >>> did_you_mean("num_sample", ["num_samples", "seed"])
        "; did you mean 'num_samples'?"
    """
    words = list(known)
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; expected one of {', '.join(words)}" if words and else_list else ""
