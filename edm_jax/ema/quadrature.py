"""Integrals over the training: Gauss-Legendre nodes on intervals that suit a profile.

NumPy float64 only.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

# On an interval with steepness·ln(b/a) <= 3, eight nodes integrate τ^steepness to 1e-14.
NODES, GROWTH = 8, 3.0
_MAX_INTERVALS = 2**16
_X, _W = np.polynomial.legendre.leggauss(NODES)


class Moments(NamedTuple):
    """A profile's mass at a time t, its mean age ∫(t − τ)p and its standard deviation.

    Both are fractions of t. A power function's width is its σ_rel and its mean age
    1/(γ + 2). A combination with negative weights may have no width: NaN.
    """

    mass: float
    mean_age: float
    width: float


class Density(Protocol):
    """What of a profile is integrated."""

    @property
    def label(self) -> str: ...
    def density(self, tau: np.ndarray, t: float) -> np.ndarray: ...
    def edges(self, t: float) -> Sequence[float]: ...


def nodes(edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes on every interval, in ascending order, and their weights."""
    low, half = edges[:-1, None], np.diff(edges)[:, None] / 2
    return (low + half * (1 + _X)).ravel(), (half * _W).ravel()


def refine(edges: np.ndarray, profile: Density, t: float) -> np.ndarray:
    """Halves intervals until ∫p² is settled on each, to find jumps not in `edges`.

    Raises:
        ValueError: the profile gives no weight up to time t, or is too rough.
    """

    def energies(edges: np.ndarray) -> np.ndarray:
        tau, weight = nodes(edges)
        return (weight * profile.density(tau, t) ** 2).reshape(-1, NODES).sum(axis=1)

    for _ in range(48):
        middles = (edges[:-1] + edges[1:]) / 2
        whole = energies(edges)
        halved = energies(np.sort(np.append(edges, middles))).reshape(-1, 2).sum(axis=1)
        if not halved.any():
            raise ValueError(
                f"{profile.label} gives no weight to any image up to nimg = {t:.0f}."
            )
        unsettled = np.abs(whole - halved) > 1e-12 * halved.sum()
        if not unsettled.any():
            break
        edges = np.sort(np.append(edges, middles[unsettled]))
        if len(edges) > _MAX_INTERVALS:
            raise ValueError(
                f"{profile.label} is too rough to integrate: use a smoother function."
            )
    return edges


@functools.lru_cache(maxsize=256)
def moments(profile: Density, t: float) -> Moments:
    """The moments of a profile that is not a sum of others, at time t."""
    kinks = [edge for edge in profile.edges(t) if 1e-12 * t < edge < t]
    edges = refine(np.unique([0.0, *kinks, t]), profile, t)
    tau, weight = nodes(edges)
    weight = weight * profile.density(tau, t)
    mass = float(weight.sum())
    age = weight @ (1 - tau / t) / mass
    square = weight @ (1 - tau / t - age) ** 2 / mass
    return Moments(mass, float(age), math.sqrt(square))
