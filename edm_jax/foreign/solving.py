"""The best fit of any profile by any stored averages, checkpoints among them.

A checkpoint is a point mass in time, which has no norm, so the inner product of densities
of `edm_jax.ema.solver` does not apply. The error here is that of a random walk, weights
whose steps dθ are white noise: an average that gives the share P(τ) to moments up to τ is
θ(t) − ∫ P dθ, so two averages differ by ∫ |P − P̂|² dτ. For checkpoints alone the best fit
is what one would write down: every moment's weight goes to its two neighbours, as in
linear interpolation. That is how the weights of a loop move at a constant rate between
checkpoints; where they drift smoothly the error is far smaller.
"""

import math
from collections.abc import Sequence

import numpy as np

from edm_jax.ema.grammar import AnyProfile, MixedProfile
from edm_jax.ema.profiles import PowerProfile
from edm_jax.ema.solver import RMS_ROUNDING, Solution
from edm_jax.foreign.kernels import Kernel

_WHOLE = 8192  # steps up to which every one is a row
_FLOOR = 1e-9
_X, _W = np.polynomial.legendre.leggauss(8)

Stored = tuple[float, Kernel]


def solve(
    stored: Sequence[Stored],
    targets: Sequence[tuple[float, AnyProfile]],
    unit_roundoff: float | Sequence[float] = 2.0**-24,
) -> list[Solution]:
    """Best fit of each target (time, profile) by averages stored up to its time.

    Minimises ‖P − Σ x_i P_i‖² + t Σ (0.4254 u_i x_i)² with Σx = 1: the error of a random
    walk that moves the weights by their own RMS from 0 to t [choice], and that of the
    storage formats. Targets have one time. `fit_error` is ‖P − Σ x_i P_i‖/‖P‖: relative
    to how far the average is from the last weights.

    Raises:
        ValueError: nothing is stored, or a profile is impossible at that time.
    """
    if not stored or not targets:
        raise ValueError("Give at least one stored file and one target profile.")
    (t,) = {time for time, _ in targets}
    if max(time for time, _ in stored) > t or min(time for time, _ in stored) < 0:
        raise ValueError("A target must not be earlier than what it is made from.")
    edges = _edges(t, [time for time, _ in stored], targets)
    steps = np.diff(edges)
    # Step s of the walk belongs to all weights from s on: P before it counts.
    before = edges[:-1] + (steps - 1) / 2
    root = np.sqrt(steps)
    basis = np.stack([kernel.share(before, time) for time, kernel in stored], axis=1)
    wanted = np.stack([share(profile, before, t) for _, profile in targets], axis=1)
    roundoff = np.broadcast_to(np.asarray(unit_roundoff, np.float64), len(stored))
    noise = np.maximum(RMS_ROUNDING * roundoff, _FLOOR) * math.sqrt(t)
    x = _fit(basis * root[:, None], wanted * root[:, None], noise)
    residual = np.linalg.norm(root[:, None] * (wanted - basis @ x), axis=0)
    size = np.maximum(np.linalg.norm(root[:, None] * wanted, axis=0), 1e-300)
    rounding = RMS_ROUNDING * np.linalg.norm(roundoff[:, None] * x, axis=0)
    return [
        Solution(
            nimg=t,
            profile=profile,
            coefficients=x[:, k],
            sum_abs=float(np.abs(x[:, k]).sum()),
            fit_error=float(residual[k] / size[k]),
            rounding_error=float(rounding[k]),
        )
        for k, (_, profile) in enumerate(targets)
    ]


def share(profile: AnyProfile, tau: np.ndarray, t: float) -> np.ndarray:
    """P(τ) of a target profile: its mass up to τ, for τ that rises from 0 or more."""
    if isinstance(profile, PowerProfile):
        return (np.minimum(tau, t) / t) ** (profile.gamma + 1)
    if isinstance(profile, MixedProfile):
        shares = [share(part, tau, t) for part in profile.parts]
        return np.tensordot(profile.weights, shares, 1)
    kinks = [edge for edge in profile.edges(t) if 0 < edge < t]
    edges = np.unique(np.concatenate([[0.0, t], tau, kinks]))
    edges = edges[edges <= t]
    half = np.diff(edges)[:, None] / 2
    nodes = edges[:-1, None] + half * (1 + _X)
    density = profile.density(nodes.ravel(), t).reshape(nodes.shape)
    mass = np.append(0.0, np.cumsum((half * _W * density).sum(axis=1)))
    if not mass[-1] > 0:
        raise ValueError(
            f"{profile.label} gives no weight to any moment up to {t:.0f}."
        )
    start = profile.missing_mass(t)
    found = mass[np.searchsorted(edges, np.minimum(tau, t))] / mass[-1]
    return start + (1 - start) * found


def _fit(basis: np.ndarray, wanted: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Least squares with Σx = 1: the last column's coefficient is 1 less the others'."""
    last = basis[:, -1:]
    count = basis.shape[1] - 1
    if not count:
        return np.ones((1, wanted.shape[1]))
    columns = np.vstack(
        [basis[:, :-1] - last, np.diag(noise[:-1]), -np.full((1, count), noise[-1])]
    )
    rest = np.zeros((count + 1, wanted.shape[1]))
    rest[-1] = -noise[-1]
    x, *_ = np.linalg.lstsq(columns, np.vstack([wanted - last, rest]), rcond=None)
    return np.vstack([x, 1 - x.sum(axis=0)])


def _edges(
    t: float, times: Sequence[float], targets: Sequence[tuple[float, AnyProfile]]
) -> np.ndarray:
    """Ends of groups of steps: each step if there are few, else fine before each file."""
    if t <= _WHOLE:
        return np.arange(t + 1)
    back = 2.0 ** np.arange(0, math.log2(t), 0.5)
    kinks = [edge for _, profile in targets for edge in profile.edges(t)]
    marks = np.concatenate(
        [
            np.linspace(0, t, 2049),
            np.geomspace(1, t, 512),
            times,
            kinks,
            *(time - back for time in times),
        ]
    )
    marks = np.unique(np.rint(marks))
    return marks[(marks >= 0) & (marks <= t)]
