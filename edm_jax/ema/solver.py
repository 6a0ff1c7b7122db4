"""The best fit of any averaging profile by stored power functions (App. C, Alg. 3).

NumPy float64 only. The paper solves the normal equations, whose Gram matrix has a
condition number beyond 1e8 for a few hundred snapshots and beyond float64 for more than
two tracked lengths. Here the profiles are the columns of a matrix, sampled at
Gauss-Legendre nodes, so that inner products are integrals; its condition number is the
square root of that of the Gram matrix. Additional rows hold the rounding noise of the
stored weights and penalize coefficients that would amplify it.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edm_jax.ema.grammar import AnyProfile, MixedProfile, OneProfile
from edm_jax.ema.power import SIGMA_REL_LIMIT, inner_product
from edm_jax.ema.profiles import PowerProfile, TraditionalProfile
from edm_jax.ema.quadrature import GROWTH, nodes, refine

# RMS error of rounding N(0, 1) weights to nearest, in units of the unit roundoff u. At
# exponent e the error is uniform within ±u·2^e: sqrt(E[4^e] / 3) with E[4^e] = 0.5429.
RMS_ROUNDING = 0.4254
# Keeps directions of the basis that are zero within float64 out of the solution.
_FLOOR = 1e-12

Stored = tuple[float, PowerProfile]  # (nimg, profile)
Wanted = tuple[float, AnyProfile]
_Single = tuple[float, OneProfile]  # not a sum


@dataclass(frozen=True)
class Solution:
    """How to make one target profile from stored ones, and the error to expect.

    Attributes:
        nimg: the time of the target.
        profile: the target's profile.
        coefficients: x, float64 (snapshots,), with sum 1.
        sum_abs: Σ|x|.
        fit_error: ‖p − p̂‖/‖p‖, plus the mass of p on the initial weights: the relative
            error if the weights were white noise over time; far less for smooth changes.
        rounding_error: the RMS error to expect from the snapshots' storage format,
            relative to a unit-RMS weight.
    """

    nimg: float
    profile: AnyProfile
    coefficients: np.ndarray
    sum_abs: float
    fit_error: float
    rounding_error: float

    @property
    def error(self) -> float:
        """Fit and rounding error together."""
        return math.hypot(self.fit_error, self.rounding_error)


def solve(
    snapshots: Sequence[Stored],
    targets: Sequence[Wanted],
    unit_roundoff: float | Sequence[float] = 2.0**-24,
) -> list[Solution]:
    """Best fit of each target (nimg, profile) by the stored ones (App. C, Alg. 3).

    Minimises ‖p − Σ x_i p_i‖²/‖p_ref‖² + Σ (0.4254 u_i x_i)², where the second term is
    the rounding error for unit roundoff u (one, or one per snapshot; float32 2⁻²⁴,
    float16 2⁻¹¹, bfloat16 2⁻⁸) and p_ref the shortest stored profile at the end
    [choice]; then x <- x/Σx. A target that is itself stored is that snapshot, and the
    coefficients of a sum of profiles are the sum of theirs.

    Raises:
        ValueError: there are no snapshots, one is repeated or later than a target, or a
            time is not positive.
    """
    _check(snapshots, targets)
    singles, mixing = _singles(targets)
    t = np.array([nimg for nimg, _ in snapshots], np.float64)
    roundoff = np.broadcast_to(np.asarray(unit_roundoff, np.float64), t.shape)
    norms, basis, wanted, r = _factored(snapshots, singles, roundoff)
    count = len(t)
    x = np.linalg.solve(r[:count, :count], r[:count, count:])
    for k, target in enumerate(singles):
        for i in _same(snapshots, target):
            x[:, k] = np.arange(len(t)) == i
    x /= np.sum(x / norms[:, None], axis=0)
    if mixing is not None:
        x, wanted = x @ mixing, wanted @ mixing
    residual = np.linalg.norm(wanted - basis @ x, axis=0)
    fit_error = residual / np.linalg.norm(wanted, axis=0)
    x /= norms[:, None]
    rounding = RMS_ROUNDING * np.linalg.norm(roundoff[:, None] * x, axis=0)
    return [
        Solution(
            nimg=nimg,
            profile=profile,
            coefficients=x[:, k],
            sum_abs=float(np.abs(x[:, k]).sum()),
            fit_error=float(fit_error[k]) + profile.missing_mass(nimg),
            rounding_error=float(rounding[k]),
        )
        for k, (nimg, profile) in enumerate(targets)
    ]


def losses(
    snapshots: Sequence[Stored],
    targets: Sequence[tuple[float, OneProfile]],
    groups: Sequence[Sequence[int]],
    unit_roundoff: float | Sequence[float] = 2.0**-24,
) -> np.ndarray:
    """The error of each target without each group of snapshots: (groups, targets).

    One factorization serves all groups J: without its columns the least squared residual
    grows by x_Jᵀ ((AᵀA)⁻¹_JJ)⁻¹ x_J. The error is that of the fit and the penalty on
    rounding together, before the coefficients are scaled to sum 1.
    """
    _check(snapshots, targets)
    roundoff = np.broadcast_to(np.asarray(unit_roundoff, np.float64), len(snapshots))
    _, _, wanted, r = _factored(snapshots, targets, roundoff)
    count = len(snapshots)
    inverse = np.linalg.inv(r[:count, :count])
    x = inverse @ r[:count, count:]
    least = np.sum(r[count:, count:] ** 2, axis=0)
    rows = []
    for group in groups:
        part = inverse[group]
        grown = np.linalg.solve(part @ part.T, x[group])
        rows.append(least + np.sum(x[group] * grown, axis=0))
    squares = np.array(rows).reshape(len(groups), len(targets))
    return np.sqrt(squares) / np.linalg.norm(wanted, axis=0)


def _factored(
    snapshots: Sequence[Stored], targets: Sequence[_Single], roundoff: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Norms of the stored profiles; these and the targets at the nodes; R of their QR.

    The stored profiles have unit norm, the targets unit mass.
    """
    t = np.array([nimg for nimg, _ in snapshots], np.float64)
    gamma = np.array([profile.gamma for _, profile in snapshots])
    tau, weight = nodes(_edges(t, gamma, targets))
    root = np.sqrt(weight)

    # Rows: the nodes, then the noise of each snapshot. Columns: stored, then wanted.
    rows, count = len(tau), len(t)
    matrix = np.zeros((rows + count, count + len(targets)))
    basis, wanted = matrix[:rows, :count], matrix[:rows, count:]
    norms = np.sqrt(inner_product(t, gamma, t, gamma))
    for i, (end, exponent) in enumerate(zip(t, gamma, strict=True)):
        stop = np.searchsorted(tau, end)
        scale = (exponent + 1) / end / norms[i]  # to unit norm
        basis[:stop, i] = scale * root[:stop] * (tau[:stop] / end) ** exponent
    for k, (nimg, profile) in enumerate(targets):
        wanted[:, k] = root * profile.density(tau, nimg)
    wanted /= root @ wanted  # to unit mass
    reference = math.sqrt(inner_product(t.max(), gamma.max(), t.max(), gamma.max()))
    noise = np.maximum(RMS_ROUNDING * roundoff * reference / norms, _FLOOR)
    np.fill_diagonal(matrix[rows:, :count], noise)
    # R's last columns are Qᵀ times the targets, so Q is not needed.
    return norms, basis, wanted, np.asarray(np.linalg.qr(matrix, mode="r"))


def expressible_range(
    snapshots: Sequence[Stored],
    target: Wanted,
    unit_roundoff: float | Sequence[float],
    max_error: float,
) -> tuple[float, float] | None:
    """The range of lengths with an error up to max_error, at the target's time.

    Half-lives in millions of images for a traditional target, else σ_rel; None if no
    length is within max_error.
    """
    nimg, profile = target
    if isinstance(profile, TraditionalProfile):
        values = np.geomspace(1e-4, 1.0, 97) * nimg / 1e6
        profiles = [TraditionalProfile(float(h), profile.rampup) for h in values]
    else:
        values = np.append(np.arange(0.001, SIGMA_REL_LIMIT, 0.001), 0.2886)
        profiles = [PowerProfile(float(s)) for s in values]
    solutions = solve(snapshots, [(nimg, p) for p in profiles], unit_roundoff)
    good = values[[solution.error <= max_error for solution in solutions]]
    return (float(good[0]), float(good[-1])) if len(good) else None


def _singles(targets: Sequence[Wanted]) -> tuple[list[_Single], np.ndarray | None]:
    """The targets without sums: what they are sums of, each once, and the weights.

    The weights are (singles, targets), or None if no target is a sum.
    """
    plain = [(t, p) for t, p in targets if not isinstance(p, MixedProfile)]
    if len(plain) == len(targets):
        return plain, None
    columns = [
        {(t, part): 0.0 for part in profile.parts}
        if isinstance(profile, MixedProfile)
        else {(t, profile): 1.0}
        for t, profile in targets
    ]
    for (t, profile), column in zip(targets, columns, strict=True):
        if isinstance(profile, MixedProfile):
            for w, part in zip(profile.weights, profile.parts, strict=True):
                column[t, part] += w
    singles = list(dict.fromkeys(single for column in columns for single in column))
    mixing = [[column.get(single, 0.0) for column in columns] for single in singles]
    return singles, np.array(mixing)


def _edges(t: np.ndarray, gamma: np.ndarray, targets: Sequence[_Single]) -> np.ndarray:
    """The ends of intervals on which every profile is smooth, up to the last target."""
    last = max(nimg for nimg, _ in targets)
    kinks = [edge for nimg, profile in targets for edge in profile.edges(nimg)]
    kinks = [edge for edge in kinks if edge > 1e-12 * last]
    powers = [p.gamma for _, p in targets if isinstance(p, PowerProfile)]
    steepness = gamma.max() + max([gamma.max(), *powers])
    # Below this lies less than 1e-22 of the square of any power function.
    lowest = t.min() * 10 ** (-22 / (2 * min([gamma.min(), *powers]) + 1))
    lowest = min([lowest, *(edge / 2 for edge in kinks)])
    # Before a hundredth of the first time, steep profiles are zero to float64.
    early = t.min() / 100
    marks = np.unique([lowest, early, *t, *(nimg for nimg, _ in targets), *kinks])
    marks = marks[(marks >= lowest) & (marks <= last)]
    local = np.where(marks[1:] <= early, min(steepness, 6.0), steepness)
    counts = np.ceil(np.diff(np.log(marks)) * local / GROWTH).astype(int)
    parts = [
        np.geomspace(low, high, count, endpoint=False)
        for low, high, count in zip(marks[:-1], marks[1:], counts, strict=True)
    ]
    edges = np.concatenate([[0.0], *parts, [last]])
    for nimg, profile in targets:
        if not isinstance(profile, PowerProfile):
            edges = refine(edges, profile, nimg)
    return edges


def _same(snapshots: Sequence[Stored], target: _Single) -> list[int]:
    """The indices at which the target itself is stored."""
    nimg, profile = target
    if not isinstance(profile, PowerProfile):
        return []
    return [
        i
        for i, (t, stored) in enumerate(snapshots)
        if t == nimg
        and math.isclose(stored.sigma_rel, profile.sigma_rel, rel_tol=1e-12)
    ]


def _check(snapshots: Sequence[Stored], targets: Sequence[Wanted]) -> None:
    if not snapshots or not targets:
        raise ValueError("Give at least one snapshot and at least one target profile.")
    if min(t for t, _ in snapshots) <= 0:
        raise ValueError("A snapshot's nimg must be above 0: nothing is averaged at 0.")
    (nimg, profile), count = Counter(snapshots).most_common(1)[0]
    if count > 1:
        raise ValueError(
            f"Two snapshots hold the same profile, {profile.label}, at the same nimg = "
            f"{nimg:.0f}: remove one."
        )
    last, first = max(t for t, _ in snapshots), min(t for t, _ in targets)
    if last > first:
        raise ValueError(
            f"A snapshot at nimg = {last:.0f} is later than the target at nimg = "
            f"{first:.0f}: do not use it for that target."
        )
