"""Guidance: a second denoiser from whose images those of the first are moved away."""

import jax
import jax.numpy as jnp

from edm_jax.diffusion.samplers import Denoise
from edm_jax.models.layers import Array

EVERYWHERE = (0.0, float("inf"))


def guided(
    denoise: Denoise,
    guide: Denoise,
    weight: float | Array,
    interval: tuple[float | Array, float | Array] = EVERYWHERE,
) -> Denoise:
    """w D + (1 - w) D_guide for sigma in (low, high], D elsewhere.

    The guide is an unconditional network (classifier-free guidance, arXiv 2207.12598), or
    a smaller or less trained one (autoguidance, arXiv 2406.02507). The interval is that
    of arXiv 2404.07724. Where no sigma is in it, the guide is not evaluated.

    Args:
        denoise: D.
        guide: D_guide.
        weight: w; 1 is no guidance.
        interval: (low, high).
    """

    def denoise_guided(x: Array, sigma: Array) -> Array:
        low, high = interval
        plain = denoise(x, sigma)
        inside = (sigma > low) & (sigma <= high)

        def blend() -> Array:
            moved = weight * plain + (1 - weight) * guide(x, sigma)
            return jnp.where(inside[:, None, None, None], moved, plain)

        return jax.lax.cond(jnp.any(inside), blend, lambda: plain)

    return denoise_guided
