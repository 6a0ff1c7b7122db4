"""Parts of a network by name: patterns of its parameters' names."""

import fnmatch
from collections.abc import Iterable

from edm_jax.fields import suggest

# {word: the parameters that it stands for, such as 'unet/enc_8x8_block0/branch/conv0/kernel'}
PLACES = {
    "encoder": "unet/enc_*",
    "decoder": "unet/dec_*",
    "embedding": "unet/embedding/*",
    "label": "unet/embedding/label/*",
    "attention": "unet/*/attention/*",
    "gains": "*/gain",
    "logvar": "logvar*",
}


def select(names: Iterable[str], patterns: str, field: str) -> list[str]:
    """The names that any of several patterns matches, in order.

    Args:
        names: of parameters.
        patterns: separated by commas: words of PLACES, or patterns with * and ?. '' is
            all names.
        field: the config's field, for messages.

    Raises:
        ValueError: a pattern matches nothing.
    """
    names = list(names)
    wanted = [word.strip() for word in patterns.split(",")] if patterns else ["*"]
    globs = {word: PLACES.get(word, word) for word in wanted}
    for word, glob in globs.items():
        if not fnmatch.filter(names, glob):
            raise ValueError(
                f"{field} has {word!r}, which matches no parameter: give any of "
                f"{', '.join(PLACES)}, or a pattern such as unet/dec_*/conv0/*."
                f"{suggest(word, PLACES)}"
            )
    return [
        name
        for name in names
        if any(fnmatch.fnmatchcase(name, glob) for glob in globs.values())
    ]
