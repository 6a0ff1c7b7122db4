"""How a run is evaluated: a config's `evaluation` fields."""

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Protocol

from edm_jax.data.store import DataConfig
from edm_jax.diffusion.denoiser import LossConfig
from edm_jax.ema.config import length_faults
from edm_jax.fields import Count, Finite, Positive, Range, Settings
from edm_jax.models.ops import NetworkConfig
from edm_jax.models.unet import UNetSpec

Several = Annotated[int, Range(2, float("inf"), "[)", "at least 2")]


@dataclasses.dataclass(frozen=True)
class EvaluationConfig(Settings):
    """A config's `evaluation` fields."""

    sigma_rels: tuple[float, ...]  # EMA lengths to try
    P_mean: Finite  # noise levels of the held-out loss
    P_std: Positive
    num_heldout: Count  # images at most
    num_sigmas: Count  # per held-out image
    batch_size: Count
    num_samples: Several
    num_steps: Several  # of the sampler
    sigma_min: Positive
    sigma_max: Positive
    rho: Positive

    def faults(self) -> Iterator[str]:
        yield from length_faults("sigma_rels", self.sigma_rels)
        if self.sigma_min >= self.sigma_max:
            yield (
                f"sigma_min={self.sigma_min} must be below "
                f"evaluation.sigma_max={self.sigma_max}."
            )


class Config(Protocol):
    """What an evaluation reads of a run's config."""

    @property
    def seed(self) -> int: ...
    @property
    def data(self) -> DataConfig: ...
    @property
    def network(self) -> NetworkConfig: ...
    @property
    def loss(self) -> LossConfig: ...
    @property
    def evaluation(self) -> EvaluationConfig: ...
    @property
    def spec(self) -> UNetSpec: ...
