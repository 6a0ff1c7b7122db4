"""Random weights by name, the same in every process and library; and random pictures."""

import math
import zlib

import numpy as np


def tensor(name, shape):
    """A tensor of PyTorch's name and shape that keeps activations of order 1."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    leaf = name.rpartition(".")[2]
    if leaf == "running_var" or (leaf == "weight" and len(shape) == 1):
        drawn = rng.uniform(0.5, 1.5, shape)
    elif leaf in ("bias", "running_mean"):
        drawn = 0.1 * rng.standard_normal(shape)
    elif leaf == "weight":
        drawn = rng.standard_normal(shape) * math.sqrt(2 / math.prod(shape[1:]))
    else:  # tokens, positions, layer scales
        drawn = rng.standard_normal(shape)
    return drawn.astype(np.float32)


def pictures(count, height, width, seed=0):
    """Smooth uint8 images (N, H, W, 3)."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, (count, 5, 5, 3))
    rows, columns = (np.linspace(0, 4, n) for n in (height, width))
    weights = [
        np.maximum(0, 1 - abs(np.arange(5) - x[:, None])) for x in (rows, columns)
    ]
    smooth = np.einsum("hi,wj,nijc->nhwc", *weights, coarse)
    return np.uint8(np.clip(smooth + rng.normal(0, 12, smooth.shape), 0, 255))
