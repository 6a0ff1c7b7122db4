"""Images to features: one compiled program for each size of image, on all devices."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax import platform
from edm_jax.evals.devices import Devices
from edm_jax.evals.features.networks import Loaded, Network
from edm_jax.evals.features.sources import Source
from edm_jax.models import resizing

OnProgress = Callable[[int, int], None]  # (images done, total)


class Features(NamedTuple):
    """Of N images, float32.

    vectors: (N, D).
    logits: (N, classes), of a network that has them.
    """

    vectors: np.ndarray
    logits: np.ndarray | None


class Extractor:
    """A network with its weights on all devices.

    Args:
        loaded: the network and its weights.
        batch_size: images at a time; the last batch is filled up.
        devices: those that share a batch, all local ones by default.
    """

    def __init__(
        self,
        loaded: Loaded,
        batch_size: int = 64,
        devices: Sequence[Any] | None = None,
    ):
        platform.prepare()
        self.digest = loaded.digest
        self._devices = Devices(devices)
        self._batch_size = self._devices.batch_size(batch_size)
        self._params = self._devices.place(loaded.params)
        self._compute = jax.jit(
            functools.partial(_features, loaded.network),
            out_shardings=self._devices.rows,
            compiler_options=platform.compiler_options(self._devices.platform),
        )

    def __call__(
        self, images: Source, on_progress: OnProgress = lambda *_: None
    ) -> Features:
        """The features of images (N, H, W, 1 or 3), gray ones as three equal channels.

        Raises:
            ValueError: the images are of another form.
        """
        if len(images.shape) != 4 or images.shape[-1] not in (1, 3) or not len(images):
            raise ValueError(
                f"A feature network takes images (N, H, W, 1 or 3), not {images.shape}."
            )
        vectors, logits = [], []
        on_progress(0, len(images))
        for start in range(0, len(images), self._batch_size):
            count = min(self._batch_size, len(images) - start)
            rows = start + np.arange(self._batch_size) % count
            batch = np.repeat(images[rows], 3 // images.shape[-1], axis=-1)
            (spread,) = self._devices.spread(batch)
            found, classes = self._compute(self._params, spread)
            vectors.append(np.asarray(found)[:count])
            if classes is not None:
                logits.append(np.asarray(classes)[:count])
            on_progress(start + count, len(images))
        joined = np.concatenate(logits) if logits else None
        return Features(np.concatenate(vectors), joined)


def _features(network: Network, params: Any, images: jax.Array) -> Any:
    x = images.astype(jnp.float32)
    rows, columns = (network.resize(size, network.side) for size in x.shape[1:3])
    x = resizing.apply(rows, columns, x)
    if network.clip:
        x = jnp.clip(x, 0, 255)
    mean, std = (jnp.float32(v)[None, None, None] for v in (network.mean, network.std))
    return network.module.apply({"params": params}, (x - mean) / std)
