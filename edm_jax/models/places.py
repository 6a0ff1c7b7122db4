"""Parts of a network by name: patterns of its parameters' paths.

A pattern is words separated by commas: parts, globs such as unet/dec_*/conv0/*, and with a
! before it what is left out.
"""

import fnmatch
from collections.abc import Iterable, Sequence

from edm_jax.fields import suggest

# {part: (what belongs to it, what of that does not)}, as globs.
PARTS: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "unet": (["unet/*"], ["unet/embedding/*"]),
    "conditioning": (["unet/embedding/*"], []),
    "encoder": (["unet/enc_*"], []),
    "decoder": (["unet/dec_*", "unet/out_*"], []),
    "embedding": (["unet/embedding/*"], ["unet/embedding/label/*"]),
    "label": (["unet/embedding/label/*"], []),
    "attention": (["*/attention/*"], []),
    "gains": (["*/gain"], []),
    "biases": (["*/bias"], ["*norm*/bias"]),
    "norms": (["*norm*/scale", "*norm*/bias"], []),
    "logvar": (["logvar*"], []),
}


def matches(pattern: str, path: str) -> bool:
    """Whether one of a pattern's words includes a parameter, and none leaves it out."""
    words = _words(pattern)
    kept = [word for word in words if word[0] != "!"] or ["*"]
    cut = [word[1:] for word in words if word[0] == "!"]
    return any(_has(word, path) for word in kept) and not any(
        _has(word, path) for word in cut
    )


def select(paths: Iterable[str], pattern: str, field: str) -> list[str]:
    """The paths that a pattern matches, in order; '' matches all.

    Raises:
        ValueError: a word of the pattern matches nothing; the message names `field`.
    """
    paths = list(paths)
    for word in _words(pattern):
        if not any(_has(word.removeprefix("!"), path) for path in paths):
            raise ValueError(
                f"{field} has {word!r}, which matches no parameter: give any of "
                f"{', '.join(PARTS)}, or a pattern such as unet/dec_*/conv0/*."
                f"{suggest(word, PARTS)}"
            )
    return [path for path in paths if matches(pattern, path)]


def _words(pattern: str) -> list[str]:
    return [word.strip() for word in pattern.split(",") if word.strip()]


def _has(word: str, path: str) -> bool:
    inside, outside = PARTS.get(word, ([word], []))
    return any(fnmatch.fnmatchcase(path, glob) for glob in inside) and not any(
        fnmatch.fnmatchcase(path, glob) for glob in outside
    )
