"""Power-function profiles: γ, σ_rel and their inner products (App. C). NumPy float64."""

import math

import numpy as np
from numpy.typing import ArrayLike

# The uniform average (gamma = 0) has relative standard deviation 1/sqrt(12).
SIGMA_REL_LIMIT = 1 / math.sqrt(12)
# Too short for any two snapshots of a training to differ.
SIGMA_REL_SHORTEST = 1e-4


def gamma_from_sigma_rel(sigma_rel: float) -> float:
    """Exponent γ of the power profile with relative standard deviation σ_rel (App. C).

    The largest root of γ³ + 7γ² + (16 − σ⁻²)γ + (12 − σ⁻²).

    Raises:
        ValueError: σ_rel is outside (0, 0.28867).
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
        raise ValueError(f"gamma = {gamma}: choose an exponent above 0.")
    return math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


def inner_product(
    t_a: ArrayLike, gamma_a: ArrayLike, t_b: ArrayLike, gamma_b: ArrayLike
) -> np.ndarray:
    """⟨p_a, p_b⟩ = ∫ p_a p_b dτ of power profiles at times t_a, t_b (App. C, Alg. 3).

    Broadcasts; per image, in the unit of t. The ratio of times is taken below 1 and raised
    to the later profile's exponent, so that nothing overflows.
    """
    t_a, t_b = np.asarray(t_a, np.float64), np.asarray(t_b, np.float64)
    gamma_a, gamma_b = np.asarray(gamma_a), np.asarray(gamma_b)
    later = np.maximum(t_a, t_b)
    exponent = np.where(t_a < t_b, gamma_b, gamma_a)
    scale = (gamma_a + 1) / (gamma_a + gamma_b + 1) * (gamma_b + 1)
    return scale / later * (np.minimum(t_a, t_b) / later) ** exponent
