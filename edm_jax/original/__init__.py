"""Snapshots of the original EDM2 code, read safely and mapped to config-G parameters.

Needs NumPy alone, and runs nothing that a file holds.
"""

import os
from dataclasses import dataclass
from typing import Any

from edm_jax.original.mapping import OriginalNetwork, name_of, to_params
from edm_jax.original.reader import read

__all__ = ["Original", "OriginalNetwork", "load", "name_of"]


@dataclass(frozen=True, eq=False)
class Original:
    """A snapshot: float32 params (nested dict), their network, and its EMA profile.

    nimg is the number of images trained on, sigma_rel the relative width of the
    power-function profile.
    """

    params: dict[str, Any]
    network: OriginalNetwork
    nimg: int
    sigma_rel: float
    dtype: str  # coarsest format among the stored tensors


def load(path: str | os.PathLike[str]) -> Original:
    """The snapshot PREFIX-{kimg:07d}-{sigma_rel:.3f}.pkl of the original code.

    Raises ValueError for another name, a damaged or hostile file, and a network that is
    not config G's; FileNotFoundError for no file.
    """
    _, nimg, sigma_rel = name_of(path)
    tensors = read(path)
    try:
        params, network = to_params(tensors)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from None
    half = any(tensor.dtype.itemsize < 4 for tensor in tensors.values())
    dtype = "float16" if half else "float32"
    return Original(params, network, nimg, sigma_rel, dtype)
