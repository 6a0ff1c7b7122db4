"""Resizing as other libraries do it: one matrix for an image's rows, one for its
columns.

Each returns (size_out, size_in) float64; all are separable.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from edm_jax.models.pretrained import PRECISION


@functools.cache
def bilinear_tf1(size_in: int, size_out: int) -> np.ndarray:
    """TensorFlow 1's default: the corner of pixel i at i, and no antialiasing."""
    places = np.arange(size_out) * (size_in / size_out)
    lower = np.floor(places).astype(int)
    upper = np.minimum(lower + 1, size_in - 1)
    weights = np.zeros((size_out, size_in))
    rows = np.arange(size_out)
    np.add.at(weights, (rows, lower), 1 - (places - lower))
    np.add.at(weights, (rows, upper), places - lower)
    return weights


@functools.cache
def bicubic(size_in: int, size_out: int) -> np.ndarray:
    """Keys's kernel of a = -1/2, widened where the image shrinks: Pillow's and PyTorch's
    with antialias=True."""
    scale = size_in / size_out
    width = max(scale, 1.0)
    centres = (np.arange(size_out) + 0.5) * scale
    distances = (np.arange(size_in) + 0.5 - centres[:, None]) / width
    weights = _keys(distances, -0.5)
    return weights / weights.sum(axis=1, keepdims=True)


@functools.cache
def bicubic_torch(size_in: int, size_out: int, scale_factor: float) -> np.ndarray:
    """PyTorch's interpolate(mode="bicubic", scale_factor=...): a = -3/4, no antialiasing.

    Coordinates follow the factor as given, even where size_out is not size_in times it;
    pixels beyond the edge are those of the edge.
    """
    places = (np.arange(size_out) + 0.5) / scale_factor - 0.5
    first = np.floor(places).astype(int) - 1
    weights = np.zeros((size_out, size_in))
    for tap in range(4):
        columns = np.clip(first + tap, 0, size_in - 1)
        values = _keys(places - (first + tap), -0.75)
        np.add.at(weights, (np.arange(size_out), columns), values)
    return weights


def _keys(x: np.ndarray, a: float) -> np.ndarray:
    """Keys's cubic convolution kernel (1981), of support 2."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x**2 + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def apply(rows: np.ndarray, columns: np.ndarray, images: jax.Array) -> jax.Array:
    """(N, H, W, C) to (N, H', W', C) by (H', H) and (W', W)."""
    return jnp.einsum(
        "hi,wj,nijc->nhwc",
        jnp.asarray(rows, jnp.float32),
        jnp.asarray(columns, jnp.float32),
        images,
        precision=PRECISION,
    )
