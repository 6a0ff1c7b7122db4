"""The held-out denoising loss and the magnitudes, at noise that never changes."""

from typing import Any

import jax
import numpy as np
from scipy.special import ndtri

from edm_jax import backend, data, diffusion, dynamics
from edm_jax.networks import Params


class HeldOut:
    """A denoiser beside fixed noisy held-out images.

    Image, noise and sigma of every row are the same for every network and every average
    of it, so that two losses differ by the weights alone. `forward` is compiled for one
    batch shape and serves the loss, the magnitudes and the sampler.
    """

    def __init__(self, denoiser: diffusion.Denoiser, config: Any):
        self.denoiser = denoiser
        evaluation, split_name = config.evaluation, config.data.heldout_split
        split = data.load_split(config.data, split_name, evaluation.num_heldout)
        repeats = evaluation.num_sigmas
        self.image = np.repeat(split["image"], repeats, axis=0)
        self.label = np.repeat(split["label"], repeats, axis=0)
        rows = len(self.image)
        rng = np.random.default_rng(0)
        # Stratified: the middle of each of `rows` equal parts of the distribution.
        quantiles = (rng.permutation(rows) + 0.5) / rows
        ln_sigma = evaluation.P_mean + evaluation.P_std * ndtri(quantiles)
        self.sigma = np.exp(ln_sigma).astype(np.float32)
        noise = rng.standard_normal(self.image.shape).astype(np.float32)
        self.noisy = self.image + self.sigma[:, None, None, None] * noise
        self.batch_size = min(evaluation.batch_size, rows)
        self._forward = jax.jit(
            lambda *inputs: denoiser(*inputs, statistics=True),
            compiler_options=backend.compiler_options(),
        )

    def loss(self, params: Params) -> float:
        """Mean over the rows of lambda(sigma) |D - y|^2 per element (Eq. 14, 15).

        1 is the loss of a network that outputs zero.
        """
        denoised = self.denoise(params, self.noisy, self.sigma, self.label)
        error = np.mean(np.square(denoised - self.image), axis=(1, 2, 3))
        sigma = self.sigma.astype(np.float64)
        weight = diffusion.loss_weight(sigma, self.denoiser.sigma_data)
        return float(np.mean(weight * error))

    def denoise(self, params: Params, x: Any, sigma: Any, label: Any) -> np.ndarray:
        """D of any number of images, in batches of one shape; NumPy float32."""
        outputs = []
        for start in range(0, len(x), self.batch_size):
            # The last batch is filled up with rows from the start.
            rows = np.arange(start, start + self.batch_size) % len(x)
            inputs = (np.asarray(a)[rows] for a in (x, sigma, label))
            outputs.append(np.asarray(self._forward(params, *inputs).image))
        return np.concatenate(outputs)[: len(x)]

    def magnitudes(self, params: Params) -> dict[str, dynamics.Magnitudes]:
        """Activations over one batch of the rows, and weights (Fig. 3)."""
        rows = slice(self.batch_size)
        inputs = self.noisy[rows], self.sigma[rows], self.label[rows]
        statistics = self._forward(params, *inputs).mean_squares
        return {
            "activations": dynamics.activation_magnitudes(statistics),
            "weights": dynamics.weight_magnitudes(params),
        }
