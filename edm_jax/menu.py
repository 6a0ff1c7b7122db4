"""Choices by name."""

import difflib
from collections.abc import Iterable


def suggest(word: str, words: Iterable[str]) -> str:
    """' Did you mean ...?' for a mistyped word, or '' when nothing is near."""
    near = difflib.get_close_matches(str(word), list(words), n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""
