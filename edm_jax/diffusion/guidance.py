"""Guidance: moves a denoiser's images away from those of a second, worse one."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax.diffusion.samplers import Denoise
from edm_jax.models.layers import Array

EVERYWHERE = (0.0, float("inf"))


class WeightTable(NamedTuple):
    """w(sigma), linear in ln sigma between levels and constant beyond the outer ones."""

    ln_sigma: Array | np.ndarray  # (K,), rising, K >= 2
    weight: Array | np.ndarray  # (K,)

    @classmethod
    def of(cls, points: Mapping[float, float]) -> "WeightTable":
        """A table of {sigma: w}; raises ValueError for fewer than two, or sigma <= 0."""
        if len(points) < 2 or min(points) <= 0:
            raise ValueError(
                "A table of weights takes two levels or more, all positive."
            )
        levels = sorted(points)
        weights = np.array([points[sigma] for sigma in levels], np.float32)
        return cls(np.log(levels).astype(np.float32), weights)

    def at(self, sigma: Array) -> Array:
        """w (N,) at levels sigma (N,)."""
        return jnp.interp(jnp.log(sigma), self.ln_sigma, self.weight)


Weight = float | Array | WeightTable


def guided(
    denoise: Denoise,
    guide: Denoise,
    weight: Weight,
    interval: tuple[float | Array, float | Array] = EVERYWHERE,
) -> Denoise:
    """w D + (1 - w) D_guide for sigma in (low, high], D elsewhere.

    The guide is an unconditional network (classifier-free guidance, arXiv 2207.12598), or
    a smaller or less trained one (autoguidance, arXiv 2406.02507). The interval is that
    of arXiv 2404.07724. Where no sigma is in it, the guide is not evaluated.

    Args:
        denoise: D.
        guide: D_guide.
        weight: w, or a table of it by sigma; 1 is no guidance.
        interval: (low, high).
    """

    def denoise_guided(x: Array, sigma: Array) -> Array:
        low, high = interval
        plain = denoise(x, sigma)
        inside = (sigma > low) & (sigma <= high)

        def blend() -> Array:
            if isinstance(weight, WeightTable):
                w = weight.at(sigma)[:, None, None, None]
            else:
                w = weight
            moved = w * plain + (1 - w) * guide(x, sigma)
            return jnp.where(inside[:, None, None, None], moved, plain)

        return jax.lax.cond(jnp.any(inside), blend, lambda: plain)

    return denoise_guided
