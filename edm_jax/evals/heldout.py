"""A denoiser in use: batched inference, the held-out loss, and the magnitudes."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from scipy.special import ndtri

from edm_jax import data, diffusion, platform
from edm_jax.evals import dynamics
from edm_jax.evals.config import Config
from edm_jax.evals.devices import Devices
from edm_jax.models.unet import Params


class Inference:
    """A denoiser compiled once, for one batch shape, on all devices of this process.

    Args:
        denoiser: the network.
        batch_size: images at a time; the next multiple of the number of devices.
        devices: those that share a batch, all local ones by default.
    """

    def __init__(
        self,
        denoiser: diffusion.Denoiser,
        batch_size: int,
        devices: Sequence[Any] | None = None,
    ):
        platform.prepare()
        self._devices = Devices(devices)
        self.batch_size = self._devices.batch_size(batch_size)
        options = platform.compiler_options(self._devices.platform)
        self._weights = denoiser.model.weights
        denoiser = dataclasses.replace(denoiser, model=denoiser.model.network)
        self._forward = jax.jit(
            lambda *inputs: denoiser(*inputs).image,
            out_shardings=self._devices.rows,
            compiler_options=options,
        )
        # A function of its own, as it keeps the outputs of all layers.
        self._statistics = jax.jit(
            lambda *inputs: denoiser(*inputs, statistics=True).mean_squares,
            compiler_options=options,
        )

    def denoise(self, params: Params, x: Any, sigma: Any, label: Any) -> np.ndarray:
        """D of any number of images (N, H, W, C); NumPy float32."""
        outputs = []
        params = self._devices.place(self._weights(params))
        for start in range(0, len(x), self.batch_size):
            inputs = self._batch(start, x, sigma, label)
            outputs.append(np.asarray(self._forward(params, *inputs)))
        return np.concatenate(outputs)[: len(x)]

    def mean_squares(self, params: Params, x: Any, sigma: Any, label: Any) -> Params:
        """Mean squares of every layer's features over the first batch of the images."""
        inputs = self._batch(0, x, sigma, label)
        params = self._devices.place(self._weights(params))
        return self._statistics(params, *inputs)

    def _batch(self, start: int, *inputs: Any) -> Any:
        # The last batch is filled up with rows from the start.
        rows = np.arange(start, start + self.batch_size) % len(inputs[0])
        return self._devices.spread(*(np.asarray(each)[rows] for each in inputs))


class HeldOut:
    """Fixed noisy held-out images, and how well a denoiser restores them.

    Image, noise and sigma of every row are the same for every network and every average
    of it, so that two losses differ by the weights alone.
    """

    def __init__(self, denoiser: diffusion.Denoiser, config: Config):
        evaluation, split_name = config.evaluation, config.data.heldout_split
        split = data.load_split(
            config.data, split_name, evaluation.num_heldout, config.network.num_classes
        )
        _check_shape(split["image"].shape[1:], config)
        self.image = np.repeat(split["image"], evaluation.num_sigmas, axis=0)
        self.label = np.repeat(split["label"], evaluation.num_sigmas, axis=0)
        rows, self._num_sigmas = len(self.image), evaluation.num_sigmas
        rng = np.random.default_rng(0)
        # Stratified: the middle of each of `rows` equal parts of the distribution.
        quantiles = (rng.permutation(rows) + 0.5) / rows
        ln_sigma = evaluation.P_mean + evaluation.P_std * ndtri(quantiles)
        self.sigma = np.exp(ln_sigma).astype(np.float32)
        noise = rng.standard_normal(self.image.shape).astype(np.float32)
        self.noisy = self.image + self.sigma[:, None, None, None] * noise
        self.abstract_params = denoiser.model.shapes
        self._weights = denoiser.model.weights
        self.inference = Inference(denoiser, min(evaluation.batch_size, rows))
        self._weight = diffusion.loss_weight(
            self.sigma.astype(np.float64), denoiser.sigma_data
        )

    def loss(self, params: Params) -> float:
        """Mean over the rows of lambda(sigma) |D - y|^2 per element (Eq. 14, 15).

        1 is the loss of a network that outputs zero.
        """
        return float(np.mean(self._losses(params)))

    def losses(self, params: Params) -> np.ndarray:
        """The loss of each held-out image: the mean over its noise levels."""
        return self._losses(params).reshape(-1, self._num_sigmas).mean(axis=1)

    def _losses(self, params: Params) -> np.ndarray:
        inputs = self.noisy, self.sigma, self.label
        residual = self.inference.denoise(params, *inputs) - self.image
        return self._weight * np.mean(np.square(residual), axis=(1, 2, 3))

    def magnitudes(self, params: Params) -> dict[str, dynamics.Magnitudes]:
        """Activations over one batch of the rows, and weights (Fig. 3)."""
        inputs = self.noisy, self.sigma, self.label
        mean_squares = self.inference.mean_squares(params, *inputs)
        return {
            "activations": dynamics.activation_magnitudes(mean_squares),
            "weights": dynamics.weight_magnitudes(self._weights(params)),
        }

    def units(self, params: Params) -> dict[str, np.ndarray]:
        """{'enc_8x8_block0/conv0': (units,), ...}: RMS of every layer's output units."""
        inputs = self.noisy, self.sigma, self.label
        mean_squares = self.inference.mean_squares(params, *inputs)
        return dynamics.unit_magnitudes(mean_squares)


def _check_shape(shape: tuple[int, ...], config: Config) -> None:
    net, name = config.network, config.data.name
    expected = (net.resolution, net.resolution, net.channels)
    if shape != expected:
        raise ValueError(
            f"Data set {name!r} has images of shape {shape}, and the network takes "
            f"{expected}; set network.resolution and network.channels to the data's."
        )
