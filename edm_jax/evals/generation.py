"""Images of seeds: one compiled program for a batch of fixed size, on all devices."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax import platform
from edm_jax.diffusion import Denoiser, samplers
from edm_jax.diffusion.guidance import EVERYWHERE, Weight, guided
from edm_jax.diffusion.noise_levels import NoiseLevels
from edm_jax.evals.devices import Devices
from edm_jax.models.unet import Params

OnProgress = Callable[[int, int], None]  # (images done, total)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How images are made, apart from the weights."""

    sampler: samplers.Sampler
    levels: NoiseLevels


class Guidance(NamedTuple):
    """The guide's weights, w and (low, high) of `guided`: no number is compiled in."""

    params: Params
    weight: Weight
    interval: tuple[float, float] = EVERYWHERE


class Generator:
    """Makes an image from each seed, the same whatever the other seeds are.

    All batches have one size, a multiple of the number of devices, and the last is
    filled up: XLA may sum in another order for another size, which changes an image by
    rounding.

    Args:
        denoiser: the network.
        recipe: how images are made.
        batch_size: images at a time.
        guide: the network of `guided`, if any.
        devices: those that share a batch, all local ones by default.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        recipe: Recipe,
        batch_size: int,
        guide: Denoiser | None = None,
        devices: Sequence[Any] | None = None,
    ):
        platform.prepare()
        self._devices = Devices(devices)
        self.batch_size = self._devices.batch_size(batch_size)
        self._weights = denoiser.model.weights
        self._guide_weights = guide.model.weights if guide else None
        denoiser, guide = _plain(denoiser), guide and _plain(guide)
        spec = denoiser.model.spec
        self._shape = (spec.resolution, spec.resolution, spec.channels)
        self._sample = jax.jit(
            _make_sample(denoiser, recipe, guide),
            out_shardings=self._devices.rows,
            compiler_options=platform.compiler_options(self._devices.platform),
        )

    def place(self, tree: Any) -> Any:
        """Puts weights and numbers on all devices; moves nothing that is there
        already."""
        return self._devices.place(tree)

    def batches(
        self,
        params: Params,
        seeds: Sequence[int],
        labels: Any,
        guidance: Guidance | None = None,
    ) -> Iterator[np.ndarray]:
        """Yields the images (n, H, W, C) float32 of one batch of seeds after the other.

        Args:
            params: the weights.
            seeds: one for each image.
            labels: its class; ignored by a network without classes.
            guidance: needed with a guide.
        """
        numbers, labels = np.asarray(seeds, np.uint32), np.asarray(labels, np.int32)
        params = self._weights(params)
        if guidance is not None and self._guide_weights is not None:
            guidance = guidance._replace(params=self._guide_weights(guidance.params))
        params, guidance = self.place((params, guidance))
        for start in range(0, len(numbers), self.batch_size):
            count = min(self.batch_size, len(numbers) - start)
            rows = start + np.arange(self.batch_size) % count
            noise = samplers.initial_noise(numbers[rows].tolist(), self._shape)
            inputs = self._devices.spread(noise, numbers[rows], labels[rows])
            yield np.asarray(self._sample(params, guidance, *inputs))[:count]

    def __call__(
        self,
        params: Params,
        seeds: Sequence[int],
        labels: Any,
        guidance: Guidance | None = None,
        on_progress: OnProgress = lambda *_: None,
    ) -> np.ndarray:
        """The images (N, H, W, C) float32 of all seeds; arguments as of `batches`."""
        images: list[np.ndarray] = []
        on_progress(0, len(seeds))
        for batch in self.batches(params, seeds, labels, guidance):
            images += list(batch)
            on_progress(len(images), len(seeds))
        return np.stack(images)


def _plain(denoiser: Denoiser) -> Denoiser:
    """The denoiser on the network's own parameters, into which adapters are merged."""
    return dataclasses.replace(denoiser, model=denoiser.model.network)


def _make_sample(
    denoiser: Denoiser, recipe: Recipe, guide: Denoiser | None
) -> Callable[..., jax.Array]:
    """(params, guidance, unit noise, seeds, labels) -> images."""
    sigmas = recipe.levels.sigmas()

    def sample(
        params: Params, guidance: Guidance | None, noise: Any, seeds: Any, labels: Any
    ) -> jax.Array:
        def by(network: Denoiser, weights: Params) -> samplers.Denoise:
            return lambda x, sigma: network(weights, x, sigma, labels).image

        denoise = by(denoiser, params)
        if guide is not None and guidance is not None:
            weights, strength, interval = guidance
            denoise = guided(denoise, by(guide, weights), strength, interval)
        x = jnp.asarray(noise, jnp.float32) * sigmas[0]
        return recipe.sampler.sample(denoise, x, sigmas, samplers.seed_keys(seeds))

    return sample
