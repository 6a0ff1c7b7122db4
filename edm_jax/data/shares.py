"""Splits of data that come without them, and the random numbers of an example's use."""

from collections.abc import Iterable

import numpy as np
import xxhash

# The names of the two shares, and of both together.
TRAIN, HELDOUT, ALL = "train", "heldout", "all"


def select(
    names: Iterable[bytes], split: str, heldout: float, place: str
) -> np.ndarray:
    """Numbers (n,) of the examples that belong to a split.

    An example is held out where xxh32(name) / 2^32 < heldout: its own name decides, so
    that examples that are added or taken away move no other one. Where that holds out
    none, the one with the least hash is.

    Args:
        names: one for each example.
        split: train, heldout or all.
        heldout: the share that is held out.
        place: where the data are, for messages.

    Raises:
        ValueError: there is no such split, or no example belongs to it.
    """
    if split not in (TRAIN, HELDOUT, ALL):
        raise ValueError(
            f"{place} has no split {split!r}. Its splits are 'train', 'heldout' "
            f"(a share of data.reader.heldout={heldout:g}) and 'all'."
        )
    hashed = np.fromiter((xxhash.xxh32_intdigest(name) for name in names), np.uint32)
    is_heldout = hashed < heldout * 2**32
    if heldout and not is_heldout.any():
        is_heldout[hashed.argmin()] = True
    chosen = {TRAIN: ~is_heldout, HELDOUT: is_heldout, ALL: is_heldout | True}[split]
    if not chosen.any():
        raise ValueError(
            f"{place} has no examples in the split {split!r}: all {len(hashed):,} are in "
            f"the other. Change data.reader.heldout={heldout:g}."
        )
    return np.flatnonzero(chosen)


def generator(key: np.ndarray | None, row: int) -> np.random.Generator:
    """The random numbers of one use of an example.

    Args:
        key: (2,) uint64, the seed and the number of the use: the same for any number of
            hosts and workers. None: always the same numbers, drawn from the row.
        row: of the example.
    """
    if key is None:
        key = np.array([2**64 - 1, row], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def latents(moments: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Draws latents (H, W, C) float32, m + s n with n ~ N(0, 1)  (EDM2, App. A.1).

    Args:
        moments: (H, W, 2 C), means m and standard deviations s.
        draw: the random numbers of this use of it.
    """
    channels = moments.shape[-1] // 2
    # Channels first, as the original's files are.
    shape = (channels, *moments.shape[:2])
    noise = draw.standard_normal(shape, dtype=np.float32).transpose(1, 2, 0)
    return moments[..., :channels] + moments[..., channels:] * noise
