"""Snapshots of the original EDM2 code, read safely and mapped to config-G parameters.

Needs only NumPy, and runs no code from a file.
"""

import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edm_jax.files import Damaged
from edm_jax.original import mapping, reader, settings
from edm_jax.original.mapping import OriginalNetwork, is_named, name_of
from edm_jax.original.pickles import Refused
from edm_jax.original.settings import Settings

__all__ = [
    "Original",
    "OriginalNetwork",
    "Settings",
    "find",
    "is_named",
    "load",
    "name_of",
]
_SUFFIX = ".pkl"


@dataclass(frozen=True, eq=False)
class Original:
    """A snapshot whose names, shapes and settings are checked; its weights are on disk.

    Attributes:
        settings: the network and its preconditioning.
        latents: (scale, bias) by channel, if the snapshot's encoder has them.
        nimg: images trained on.
        sigma_rel: relative width of the power-function profile.
        dtype: the coarsest format among the stored tensors.
    """

    path: str
    settings: Settings
    latents: tuple[np.ndarray, np.ndarray] | None
    nimg: int
    sigma_rel: float
    dtype: str
    _tensors: mapping.Tensors
    _places: list[mapping.Slot]

    def params(self) -> dict[str, Any]:
        """The weights, a nested dict of views of the file, in the stored format.

        The Fourier features are exact float32; widen the others before computing.

        Raises:
            ValueError: some weights are not finite.
        """
        with _naming(self.path):
            return mapping.to_params(self._tensors, self._places)


def load(path: str | os.PathLike[str]) -> Original:
    """Opens a snapshot PREFIX-{kimg:07d}-{sigma_rel:.3f}.pkl of the original code.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the name has another form, the file is damaged or hostile, or config G
            cannot compute its network.
    """
    _, nimg, sigma_rel = name_of(path)
    stored = reader.read(path)
    tensors = stored.tensors
    with _naming(path):
        network = mapping.infer(tensors)
        places = mapping.fit(tensors, network)
        found = settings.read(stored, network)
        latents = settings.latents(stored, network.channels)
    half = any(tensor.dtype.itemsize < 4 for tensor in tensors.values())
    dtype = "float16" if half else "float32"
    name = os.fspath(path)
    return Original(name, found, latents, nimg, sigma_rel, dtype, tensors, places)


def find(path: Path) -> list[Path]:
    """Finds the pickles that a path names: one file, a pattern with *, or a directory."""
    if path.is_dir():
        return sorted(path.glob(f"*{_SUFFIX}"))
    if path.suffix != _SUFFIX:
        return []
    if path.exists() or "*" not in path.name:
        return [path]
    # Only * is special; other pattern characters are literal.
    pattern = glob.escape(path.name).replace("[*]", "*")
    if not (found := sorted(path.parent.glob(pattern))):
        raise FileNotFoundError(f"No file matches {path}.")
    return found


@contextmanager
def _naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Adds the file's name to errors."""
    try:
        yield
    except Refused as refused:
        raise Damaged(path, str(refused)) from None
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from None
