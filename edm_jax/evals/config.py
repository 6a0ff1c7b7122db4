"""How a run is evaluated: a config's `evaluation` fields."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Annotated, Protocol

from edm_jax import menu
from edm_jax.data.config import DataConfig
from edm_jax.diffusion.denoiser import LossConfig
from edm_jax.diffusion.noise_levels import NoiseLevels
from edm_jax.diffusion.samplers import SAMPLERS, Sampler
from edm_jax.ema.config import length_faults
from edm_jax.evals.evaluators import EVALUATORS
from edm_jax.evals.latents import DECODERS, Decoder, NotDecoded
from edm_jax.fields import Count, Fault, Finite, Positive, Settings, Several
from edm_jax.models.build import Model
from edm_jax.models.ops import NetworkConfig
from edm_jax.models.unet import Params

_NOT_DECODED = NotDecoded()


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
    evaluators: Annotated[str, menu.Word(EVALUATORS, "evaluator", several=True)]
    sampler: Annotated[Sampler, menu.Entry(SAMPLERS)]
    num_steps: Several
    sigma_min: Positive
    sigma_max: Positive
    rho: Positive
    # How images become pictures, where they are latents.
    decoder: Annotated[Decoder, menu.Entry(DECODERS)] = _NOT_DECODED

    def faults(self) -> Iterator[str]:
        yield from length_faults("sigma_rels", self.sigma_rels)
        try:
            self.levels  # noqa: B018
        except Fault as fault:
            yield str(fault)

    @property
    def levels(self) -> NoiseLevels:
        """The noise levels that the sampler visits."""
        return NoiseLevels(self.num_steps, self.sigma_min, self.sigma_max, self.rho)


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
    def model(self) -> Model: ...
    @property
    def is_adapted(self) -> bool: ...
    @property
    def base(self) -> Callable[[], Params] | None: ...
