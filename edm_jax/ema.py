"""EMA profiles of arbitrary length and their least-squares algebra (paper App. C).

Everything here is NumPy in float64: the Gram matrix of a few hundred stored profiles
has a condition number beyond 1e8, which leaves nothing of a float32 solve. Time t is
counted in training images (nimg) throughout.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# The uniform average (gamma = 0) has relative standard deviation 1/sqrt(12).
SIGMA_REL_LIMIT = 1 / math.sqrt(12)

# RMS error of rounding N(0, 1) weights to nearest, in units of the unit roundoff u. At
# exponent e the error is uniform within ±u·2^e; sqrt(E[4^e] / 3) with E[4^e] = 0.5429.
RMS_ROUNDING = 0.4254


def gamma_from_sigma_rel(sigma_rel: float) -> float:
    """Exponent γ of the power profile of relative standard deviation σ_rel (App. C).

    The largest root of γ³ + 7γ² + (16 − σ⁻²)γ + (12 − σ⁻²). Raises ValueError for
    σ_rel outside (0, 0.28867).
    """
    if not 0 < sigma_rel < SIGMA_REL_LIMIT:
        raise ValueError(
            f"sigma_rel = {sigma_rel} has no power-function profile: choose a relative "
            f"EMA length above 0 and below {SIGMA_REL_LIMIT:.5f} (the uniform average)."
        )
    # Newton on f = (γ+1) − σ²(γ+2)²(γ+3). f is concave with f(1/σ − 2) = −2, so from
    # there the iterates fall monotonically onto the largest root.
    variance = sigma_rel**2
    gamma = 1 / sigma_rel - 2
    for _ in range(64):
        value = gamma + 1 - variance * (gamma + 2) ** 2 * (gamma + 3)
        slope = 1 - variance * (gamma + 2) * (3 * gamma + 8)
        step = value / slope
        gamma -= step
        if abs(step) <= 1e-15 * gamma:
            break
    return gamma


def sigma_rel_from_gamma(gamma: float) -> float:
    """Relative standard deviation √((γ+1)/((γ+2)²(γ+3))) of the profile τ^γ (App. C).

    Raises ValueError for γ <= 0.
    """
    if not gamma > 0:
        raise ValueError(f"gamma = {gamma} is no EMA profile: choose an exponent > 0.")
    return math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


@dataclass(frozen=True)
class PowerProfile:
    """Power-function profile p(τ) ∝ τ^γ on (0, t], its length σ_rel relative to t.

    Raises ValueError for σ_rel outside (0, 0.28867).
    """

    sigma_rel: float

    def __post_init__(self) -> None:
        gamma_from_sigma_rel(self.sigma_rel)

    @property
    def gamma(self) -> float:
        """The exponent γ."""
        return gamma_from_sigma_rel(self.sigma_rel)

    def density(self, tau: np.ndarray, t: float) -> np.ndarray:
        """Weight per image (γ+1) τ^γ / t^(γ+1) at time t of the weights at time τ."""
        age = np.asarray(tau, np.float64) / t
        inside = (age >= 0) & (age <= 1)
        gamma = self.gamma
        return np.where(inside, (gamma + 1) / t * np.clip(age, 0, 1) ** gamma, 0.0)


@dataclass(frozen=True)
class TraditionalProfile:
    """Exponential profile of half-life min(halflife, rampup·nimg) (App. B.1).

    halflife_mimg is in millions of images, rampup a fraction of the time trained.
    Raises ValueError where either is not finite and positive.
    """

    halflife_mimg: float
    rampup: float = 0.05

    def __post_init__(self) -> None:
        for name in ("halflife_mimg", "rampup"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} = {value}: choose a finite value above 0.")

    def density(self, tau: np.ndarray, t: float) -> np.ndarray:
        """Weight per image at time t of the weights at time τ, in closed form.

        rate(τ)·exp(−∫_τ^t rate) with rate(s) = ln 2 / min(halflife, rampup·s): a power
        of τ up to the knee at halflife/rampup, an exponential after it.
        """
        tau = np.asarray(tau, np.float64)
        inside = (tau > 0) & (tau <= t)
        tau = np.where(inside, tau, t)
        halflife = self.halflife_mimg * 1e6
        knee = halflife / self.rampup
        ramp = np.log(np.minimum(t, knee) / np.minimum(tau, knee)) / self.rampup
        flat = (np.maximum(t, knee) - np.maximum(tau, knee)) / halflife
        rate = math.log(2) / np.minimum(halflife, self.rampup * tau)
        return np.where(inside, rate * np.exp2(-ramp - flat), 0.0)


def power_weight(
    delta_nimg: np.ndarray, nimg_next: np.ndarray, gamma: float
) -> np.ndarray:
    """Weight 1 − β of the newest weights in a power-function EMA (App. C).

    β = (1 − Δ/nimg_next)^(γ+1), where Δ = delta_nimg is the number of images since the
    EMA was last updated and nimg_next the count after this step. Taken as
    −expm1((γ+1)·log1p(−Δ/nimg_next)), which keeps its digits where Δ << nimg_next. The
    first update, Δ = nimg_next, has weight 1. Raises ValueError unless
    0 < Δ <= nimg_next.
    """
    ratio = np.asarray(delta_nimg, np.float64) / np.asarray(nimg_next, np.float64)
    if not np.all((ratio > 0) & (ratio <= 1)):
        raise ValueError(
            "An EMA update spans more than no images and at most all images so far: "
            f"got delta_nimg = {delta_nimg} at nimg_next = {nimg_next}."
        )
    with np.errstate(divide="ignore"):  # log1p(-1) = -inf is the first update
        return -np.expm1((gamma + 1) * np.log1p(-ratio))


def traditional_weight(
    delta_nimg: np.ndarray, nimg: np.ndarray, halflife_nimg: float, rampup: float
) -> np.ndarray:
    """Weight 1 − 0.5^(Δ/min(halflife, rampup·nimg)) of a traditional EMA (App. B.1).

    nimg is counted before the step and Δ = delta_nimg since the last update, both in
    images. At nimg = 0 the weight is 1; rampup = inf is a constant half-life.
    """
    nimg = np.asarray(nimg, np.float64)
    started = nimg > 0
    halflife = np.minimum(halflife_nimg, rampup * np.where(started, nimg, 1.0))
    weight = -np.expm1(-math.log(2) * np.asarray(delta_nimg, np.float64) / halflife)
    return np.where(started, weight, 1.0)


def inner_product(
    t_a: np.ndarray, gamma_a: np.ndarray, t_b: np.ndarray, gamma_b: np.ndarray
) -> np.ndarray:
    """⟨p_a, p_b⟩ = ∫ p_a p_b dτ of power profiles at times t_a, t_b (App. C, Alg. 3).

    Broadcasts; per image in the unit of t. The ratio of times enters below 1, raised to
    the exponent of the later profile, so that nothing overflows.
    """
    t_a, t_b = np.asarray(t_a, np.float64), np.asarray(t_b, np.float64)
    later = np.maximum(t_a, t_b)
    exponent = np.where(t_a < t_b, gamma_b, gamma_a)
    scale = (gamma_a + 1) / (gamma_a + gamma_b + 1) * (gamma_b + 1)
    return scale / later * (np.minimum(t_a, t_b) / later) ** exponent


@dataclass(frozen=True)
class Solution:
    """How one target profile is made of stored ones, and the error to expect.

    target and snapshots are (nimg, γ); coefficients is float64 (len(snapshots),) and
    sums to 1. sum_abs is Σ|x|. fit_error is ‖p − p̂‖/‖p‖ of the profiles (its floor, by
    cancellation in float64, is about 1e-8). rounding_error is the RMS error, relative
    to a unit-RMS weight, that the snapshots' storage format is expected to leave.
    """

    target: tuple[float, float]
    snapshots: tuple[tuple[float, float], ...]
    coefficients: np.ndarray
    sum_abs: float
    fit_error: float
    rounding_error: float


def solve(
    snapshots: Sequence[tuple[float, float]],
    targets: Sequence[tuple[float, float]],
    unit_roundoff: float | Sequence[float] = 2.0**-24,
) -> list[Solution]:
    """Best least-squares fit of each target by the stored profiles (App. C, Alg. 3).

    snapshots and targets are (nimg, γ). A target that is itself stored is that
    snapshot. rounding_error is 0.4254·√Σ(u·x)² for coefficients x and unit roundoff
    u (one, or one per snapshot; float32 2⁻²⁴, float16 2⁻¹¹, bfloat16 2⁻⁸): the RMS
    error of rounding N(0, 1) weights, independent from snapshot to snapshot. Raises
    ValueError for no snapshots, a repeated one, a time that is not positive, or a
    snapshot later than a target.
    """
    stored = [(float(t), float(gamma)) for t, gamma in snapshots]
    wanted = [(float(t), float(gamma)) for t, gamma in targets]
    _check(stored, wanted)
    t, gamma = np.array(stored).T
    gram = inner_product(t[:, None], gamma[:, None], t, gamma)
    target_t, target_gamma = np.array(wanted).T
    rhs = inner_product(t[:, None], gamma[:, None], target_t, target_gamma)
    norm2 = inner_product(target_t, target_gamma, target_t, target_gamma)

    x = _solve_gram(gram, rhs)
    for column, target in enumerate(wanted):
        if target in stored:
            x[:, column] = np.arange(len(stored)) == stored.index(target)
    x /= x.sum(axis=0)
    error2 = norm2 - 2 * np.sum(x * rhs, axis=0) + np.sum(x * (gram @ x), axis=0)
    fit_error = np.sqrt(np.maximum(error2, 0) / norm2)
    roundoff = np.broadcast_to(unit_roundoff, t.shape)[:, None]
    rounding = RMS_ROUNDING * np.sqrt(np.sum((roundoff * x) ** 2, axis=0))
    return [
        Solution(
            target=target,
            snapshots=tuple(stored),
            coefficients=x[:, column],
            sum_abs=float(np.abs(x[:, column]).sum()),
            fit_error=float(fit_error[column]),
            rounding_error=float(rounding[column]),
        )
        for column, target in enumerate(wanted)
    ]


def _solve_gram(gram: np.ndarray, rhs: np.ndarray) -> np.ndarray:
    """Minimises xᵀGx − 2xᵀb for a positive G (N, N) and every column b of (N, M).

    Scaled to unit diagonal. Eigenvalues that float64 cannot tell from zero are
    dropped: four and more tracked profiles have them, and to invert them makes
    coefficients of 1e5 out of noise. One step of refinement restores what the
    eigenvectors lost.
    """
    scale = 1 / np.sqrt(np.diag(gram))[:, None]
    scaled = gram * scale * scale.T
    values, vectors = np.linalg.eigh(scaled)
    keep = values > np.finfo(np.float64).eps * values[-1]
    values, vectors = values[keep, None], vectors[:, keep]

    def invert(b: np.ndarray) -> np.ndarray:
        return vectors @ (vectors.T @ b / values)

    b = rhs * scale
    x = invert(b)
    x += invert(b - scaled @ x)
    return x * scale


def _check(
    stored: list[tuple[float, float]], wanted: list[tuple[float, float]]
) -> None:
    if not stored or not wanted:
        raise ValueError("Give at least one snapshot and at least one target profile.")
    if min(t for t, _ in stored) <= 0:
        raise ValueError("A snapshot's nimg must be above 0: nothing is averaged at 0.")
    repeated = {pair for pair in stored if stored.count(pair) > 1}
    if repeated:
        t, gamma = min(repeated)
        raise ValueError(
            f"Two snapshots hold the same profile (gamma = {gamma:.6g}) at the same "
            f"nimg = {t:.0f}: remove one."
        )
    last, first = max(t for t, _ in stored), min(t for t, _ in wanted)
    if last > first:
        raise ValueError(
            f"A snapshot at nimg = {last:.0f} is later than the target at nimg = "
            f"{first:.0f}: leave it out."
        )
