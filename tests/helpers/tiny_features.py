"""A network of six features that stands for the large ones in tests of metrics."""

import flax.linen as nn
import numpy as np
import safetensors.numpy

from edm_jax.evals.features import networks
from edm_jax.models import resizing

FILE = "tiny.safetensors"
WEIGHTS = {
    "fc.weight": np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32),
    "fc.bias": np.zeros(6, np.float32),
}


class Tiny(nn.Module):
    """Six features of the mean colour."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(6, name="fc")(x.mean(axis=(1, 2))), None


def tiny(**fields):
    """The network, whose weights lie in a file of that name."""
    return networks.Network(
        title="a tiny network",
        module=Tiny(),
        side=4,
        resize=resizing.bilinear_tf1,
        mean=(128.0,) * 3,
        std=(128.0,) * 3,
        files=(FILE,),
        about="96 bytes",
        **fields,
    )


def write(place):
    """Writes its weights to a directory."""
    safetensors.numpy.save_file(WEIGHTS, place / FILE)
