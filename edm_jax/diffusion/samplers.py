"""Deterministic and stochastic sampling with guidance (EDM, arXiv 2206.00364, Alg. 2).

A denoiser here is any function (x (N, H, W, C), sigma (N,)) -> D(x; sigma).
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax.models.layers import Array

Denoise = Callable[[Array, Array], Array]


@dataclasses.dataclass(frozen=True)
class Churn:
    """Noise put back at every step with sigma in [s_min, s_max]; amount 0 is none."""

    amount: float = 0.0
    s_min: float = 0.0
    s_max: float = float("inf")
    s_noise: float = 1.0


def sigma_steps(
    num_steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> np.ndarray:
    """num_steps decreasing noise levels, then 0 (EDM Eq. 5); float64."""
    if num_steps < 2:
        raise ValueError(f"A sampler needs at least 2 steps, not {num_steps}.")
    ramp = np.linspace(0, 1, num_steps)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return np.append((high + ramp * (low - high)) ** rho, 0.0)


def initial_noise(seeds: Sequence[int], shape: tuple[int, ...]) -> np.ndarray:
    """(N, *shape) float32, each image from its own seed, whatever the batch."""
    draws = [np.random.default_rng(seed).standard_normal(shape) for seed in seeds]
    return np.stack(draws).astype(np.float32)


def guided(
    denoise: Denoise,
    guide: Denoise,
    weight: float,
    interval: tuple[float, float] = (0.0, float("inf")),
) -> Denoise:
    """w D + (1-w) D_guide for sigma in (low, high] (arXiv 2404.07724, 2406.02507).

    The guide is an unconditional network (classifier-free guidance), or a smaller or
    less trained conditional one (autoguidance).
    """

    def denoise_guided(x: Array, sigma: Array) -> Array:
        low, high = interval
        plain = denoise(x, sigma)
        inside = ((sigma > low) & (sigma <= high))[:, None, None, None]
        blend = weight * plain + (1 - weight) * guide(x, sigma)
        return jnp.where(inside, blend, plain)

    return denoise_guided


def heun(
    denoise: Denoise,
    noise: Array | np.ndarray,
    sigmas: np.ndarray,
    seeds: Sequence[int] = (),
    churn: Churn = Churn(),
    on_step: Callable[[int], None] = lambda step: None,
) -> Array:
    """Integrates from unit `noise` (N, H, W, C) down `sigmas`, which end in 0.

    Heun's second-order step, Euler's at the last: 2 (len(sigmas) - 1) - 1 evaluations.
    seeds: one for each image, needed for churn only. float32.
    """
    gamma_max = min(churn.amount / (len(sigmas) - 1), 2**0.5 - 1)
    keys = jax.vmap(jax.random.PRNGKey)(jnp.asarray(seeds, jnp.uint32))
    if gamma_max > 0 and len(keys) != len(noise):
        raise ValueError(f"Churn needs a seed for each of the {len(noise)} images.")

    def slope(x: Array, sigma: float) -> Array:
        levels = jnp.full(len(x), sigma, jnp.float32)
        return (x - denoise(x, levels)) / sigma

    x = jnp.asarray(noise, jnp.float32) * float(sigmas[0])
    for i, (sigma, sigma_next) in enumerate(zip(sigmas[:-1].tolist(), sigmas[1:])):
        sigma_next = float(sigma_next)
        if gamma_max > 0 and churn.s_min <= sigma <= churn.s_max:
            raised = sigma * (1 + gamma_max)
            fresh = jax.vmap(
                lambda key, i=i: jax.random.normal(
                    jax.random.fold_in(key, i), noise.shape[1:]
                )
            )(keys)
            x = x + (raised**2 - sigma**2) ** 0.5 * churn.s_noise * fresh
            sigma = raised
        d = slope(x, sigma)
        x_next = x + (sigma_next - sigma) * d
        if sigma_next > 0:
            d = (d + slope(x_next, sigma_next)) / 2
            x_next = x + (sigma_next - sigma) * d
        x = x_next
        on_step(i + 1)
    return x
