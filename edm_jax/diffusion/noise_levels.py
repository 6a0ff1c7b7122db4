"""The noise levels that a sampler visits, whatever the sampler."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from edm_jax.fields import Positive, Settings, Several


@dataclasses.dataclass(frozen=True)
class NoiseLevels(Settings):
    """num_steps decreasing levels, then 0 (EDM, arXiv 2206.00364, Eq. 5).

    sigma_i = (s_max^(1/rho) + i / (num_steps - 1) (s_min^(1/rho) - s_max^(1/rho)))^rho
    """

    num_steps: Several = 32
    sigma_min: Positive = 0.002
    sigma_max: Positive = 80.0
    rho: Positive = 7.0

    def faults(self) -> Iterator[str]:
        """What contradicts itself."""
        if self.sigma_min >= self.sigma_max:
            yield (
                f"sigma_min={self.sigma_min:g}, but must be below sigma_max, which is "
                f"{self.sigma_max:g}."
            )

    def sigmas(self) -> np.ndarray:
        """The levels (num_steps + 1,), float64."""
        ramp = np.linspace(0, 1, self.num_steps)
        low, high = (s ** (1 / self.rho) for s in (self.sigma_min, self.sigma_max))
        return np.append((high + ramp * (low - high)) ** self.rho, 0.0)
