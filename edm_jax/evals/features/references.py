"""What samples are compared with: features or statistics of a reference set.

Statistics are read and written in two forms: .npz with mu and sigma, as pytorch-fid and
ADM do, and .pkl with {metric: {mu, sigma}}, as the original code does.
"""

import dataclasses
import hashlib
import io
import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edm_jax import files
from edm_jax.evals.features.extraction import Extractor, OnProgress
from edm_jax.evals.features.sources import Source, read_npz
from edm_jax.evals.frechet import Gaussian, gaussian_fit
from edm_jax.original import weights

_VERSION = 1  # of cached features


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """A reference set.

    Attributes:
        name: what it is, for messages.
        gaussian: the fit of its features.
        vectors: its features (N, D), which a file of statistics does not hold.
    """

    name: str
    gaussian: Gaussian
    vectors: np.ndarray | None = None


def read(path: Path, metric: str) -> Reference:
    """Statistics in a file.

    Args:
        path: .npz, or a pickle, which is read without running what it holds.
        metric: the name of its entry in a pickle, such as 'fid'.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or holds no statistics of this metric.
    """
    with files.open_regular(path) as file:
        if (size := os.fstat(file.fileno()).st_size) > files.LIMIT_BYTES:
            raise files.Damaged(path, f"is too large for statistics: {size:,} bytes.")
    if path.suffix == ".npz":
        found = read_npz(path, ("mu", "sigma"))
    else:
        tree = weights.read_tree(path)
        names = list(tree) if isinstance(tree, dict) else []
        if metric not in names:
            has = f" It has {', '.join(map(str, names))}." if names else ""
            raise files.Damaged(path, f"holds no statistics of {metric!r}.{has}")
        found = tree[metric]
    try:
        mean, covariance = (_real(found[k]) for k in ("mu", "sigma"))
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
            raise ValueError(f"mu is {mean.shape} and sigma {covariance.shape}")
        return Reference(os.fspath(path), Gaussian.of(mean, covariance))
    except (KeyError, TypeError, ValueError) as error:
        raise files.Damaged(
            path, f"holds no mu and sigma that fit ({error})."
        ) from None


def _real(array: Any) -> np.ndarray:
    found = np.asarray(array)
    if found.dtype.kind not in "biuf":
        raise ValueError(f"one is of type {found.dtype}")
    return found.astype(np.float64)


def write(path: Path, statistics: Mapping[str, Gaussian]) -> None:
    """Writes {metric: fit} to .npz, which holds one alone, or .pkl.

    Raises:
        ValueError: the suffix is another, or an .npz is asked to hold several.
    """
    found = {
        metric: {"mu": fit.mean, "sigma": fit.covariance}
        for metric, fit in statistics.items()
    }
    if path.suffix == ".pkl":
        files.write_bytes(path, pickle.dumps(found, protocol=4))
        return
    if path.suffix != ".npz" or len(found) != 1:
        raise ValueError(
            f"{path}: statistics of one network are written to .npz or .pkl, and of "
            "several to .pkl."
        )
    whole = io.BytesIO()
    (only,) = found.values()
    np.savez(whole, mu=only["mu"], sigma=only["sigma"])
    files.write_bytes(path, whole.getvalue())


def of_images(
    name: str,
    images: Source,
    extract: Extractor,
    identity: Mapping[str, Any] | None = None,
    on_progress: OnProgress = lambda *_: None,
) -> Reference:
    """The features of a reference set, kept for the next time where it has an identity.

    Args:
        name: what it is, for messages.
        images: the set.
        extract: the network.
        identity: what tells the set from any other, such as a data set's fingerprint.
        on_progress: takes images done and their total.
    """
    path = None
    if identity is not None:
        made_of = {"version": _VERSION, "weights": extract.digest, **identity}
        digest = hashlib.sha256(
            json.dumps(made_of, sort_keys=True).encode()
        ).hexdigest()
        path = files.cache_home() / "features" / f"{digest[:32]}.npy"
    vectors = _cached(path) if path else None
    if vectors is None or len(vectors) != len(images):
        vectors = extract(images, on_progress).vectors
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            whole = io.BytesIO()
            np.save(whole, vectors)
            files.write_bytes(path, whole.getvalue())
    return Reference(name, gaussian_fit(vectors), vectors)


def _cached(path: Path) -> np.ndarray | None:
    try:
        with files.open_regular(path) as file:
            vectors = np.load(file)
    except (OSError, ValueError, EOFError):  # not there, or damaged: made again
        return None
    whole = vectors.ndim == 2 and vectors.dtype == np.float32
    return vectors if whole and np.isfinite(vectors).all() else None
