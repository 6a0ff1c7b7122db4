"""The layers: every operation that differs between configs A-G (paper App. B).

Images are (N, H, W, C); the embedding is (N, C). Parameters are float32 and are cast to
the dtype of the activations that they multiply. The last axis of every kernel is the
output unit.
"""

import functools
import math
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from edm_jax import platform
from edm_jax.models.inits import Draw, declare, normal, ones, unit_interval, zeros
from edm_jax.platform import alone, broadcast_to

Array = jax.Array

# Keeps the gradient of the square root finite at an all-zero vector; elsewhere it is far
# below the resolution of float32.
_TINY = 1e-30


def mean(x: Array, axes: tuple[int, ...]) -> Array:
    """Mean over `axes`, kept as size 1."""
    total = jnp.expand_dims(platform.total(x, axes), axes)
    return total / (x.size // total.size)


def magnitude(x: Array, axes: tuple[int, ...], eps: float = 1e-4) -> Array:
    """eps + RMS over `axes`, kept as size 1, in float32: the divisor in Alg. 1."""
    return eps + jnp.sqrt(mean(jnp.square(x.astype(jnp.float32)), axes) + _TINY)


@alone
def normalize(x: Array, axes: tuple[int, ...]) -> Array:
    """Divides by eps + RMS over `axes`, in float32 (Alg. 1); keeps the dtype."""
    scale = broadcast_to(1 / magnitude(x, axes), x.shape)
    return (x.astype(jnp.float32) * scale).astype(x.dtype)


def unit_magnitude(kernel: Array) -> Array:
    """The divisor (1, ..., out) of `normalize_units` for a kernel (..., out)."""
    return magnitude(kernel, axes=tuple(range(kernel.ndim - 1)))


def normalize_units(kernel: Array) -> Array:
    """Scales each output unit of a kernel (..., out) to RMS 1 (Eq. 66)."""
    return normalize(kernel, axes=tuple(range(kernel.ndim - 1)))


def pixel_norm(x: Array) -> Array:
    """Normalizes each pixel's (or head's) feature vector, the last axis (Eq. 30)."""
    return normalize(x, axes=(-1,))


def plain_sum(a: Array, b: Array, t: float) -> Array:
    """a + b; ignores the balance `t`."""
    del t
    return a + b


def mp_sum(a: Array, b: Array, t: float) -> Array:
    """Magnitude-preserving blend (1-t)a + tb (Eq. 88).

    In float16 it is rounded once, not its products as well: it runs through the whole
    network, and nearly halves its error so. In bfloat16 that would gain 1 to 4%, and
    take a TPU 6% more activations.
    """
    norm, dtype = math.hypot(1 - t, t), jnp.result_type(a, b)
    wide = jnp.float32 if dtype == jnp.float16 else dtype
    blend = (1 - t) / norm * a.astype(wide) + t / norm * b.astype(wide)
    return blend.astype(dtype)


def plain_cat(a: Array, b: Array, t: float) -> Array:
    """Concatenates channels; ignores the balance `t`."""
    del t
    return jnp.concatenate([a, b], axis=-1)


def mp_cat(a: Array, b: Array, t: float) -> Array:
    """Magnitude-preserving channel concatenation; b contributes the share t (Eq. 103)."""
    channels_a, channels_b = a.shape[-1], b.shape[-1]
    scale = math.sqrt((channels_a + channels_b) / ((1 - t) ** 2 + t**2))
    scale_a = scale * (1 - t) / math.sqrt(channels_a)
    scale_b = scale * t / math.sqrt(channels_b)
    return jnp.concatenate([scale_a * a, scale_b * b], axis=-1)


def modulate(x: Array, scale: Array, shift: Array | None = None) -> Array:
    """x (1 + scale) + shift: (N, H, W, C) by (N, C), in the dtype of x."""

    def each_pixel(value: Array) -> Array:
        return broadcast_to(value.astype(x.dtype)[:, None, None, :], x.shape)

    y = x * each_pixel(1 + scale)
    return y if shift is None else y + each_pixel(shift)


def float32_precision(
    x: Array, precision: jax.lax.Precision | None
) -> jax.lax.Precision | None:
    """`precision` for float32 factors; products of shorter ones are exact anyway."""
    return precision if x.dtype == jnp.float32 else None


def resample(x: Array, mode: str) -> Array:
    """Filter [1, 1]: 'down' is the 2x2 mean, 'up' the nearest pixel, 'keep' the input."""
    if mode == "keep":
        return x
    n, h, w, c = x.shape
    if mode == "down":
        return x.reshape(n, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))
    return upsample(x)


@alone
def upsample(x: Array) -> Array:
    """Repeats each pixel as a 2x2 square: (N, H, W, C) -> (N, 2H, 2W, C)."""
    n, h, w, c = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (n, h, 2, w, 2, c))
    return x.reshape(n, 2 * h, 2 * w, c)


@alone
def convolve(
    x: Array,
    kernel: Array,
    precision: jax.lax.Precision | None,
    padding: str | tuple[tuple[int, int], ...] = "SAME",
) -> Array:
    """(N, H, W, C) and (rows, columns, C, out) -> (N, H, W, out)."""
    dims = ("NHWC", "HWIO", "NHWC")
    strides = (1, 1)
    return jax.lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=dims, precision=precision
    )


@alone
def matmul(x: Array, kernel: Array, precision: jax.lax.Precision | None) -> Array:
    """(..., C) and (C, out) -> (..., out)."""
    # As rows, so that the kernel's gradient is one product without transpositions.
    y = jnp.matmul(x.reshape(-1, x.shape[-1]), kernel, precision=precision)
    return y.reshape(*x.shape[:-1], -1)


def dropout(x: Array, rate: float, keys: Array | None, salt: int) -> Array:
    """Zeroes features with probability `rate`, each example by its own key.

    keys: (N,) keys, or None at evaluation. salt: differs between call sites. The mask
    belongs to the example, so it is the same on any number of devices.
    """
    if keys is None or rate == 0.0:
        return x
    keep = jax.vmap(
        lambda key: jax.random.bernoulli(
            jax.random.fold_in(key, salt), 1 - rate, x.shape[1:]
        )
    )(keys)
    return jnp.where(keep, x / (1 - rate), 0)


def effective_kernel(kernel: Array, gain: Array | float, normalized: bool) -> Array:
    """The kernel that a layer uses: normalize(w) * gain / sqrt(fan_in) (Eq. 47)."""
    if normalized:
        kernel = normalize_units(kernel) / math.sqrt(math.prod(kernel.shape[:-1]))
    return kernel * gain


class Layer(nn.Module):
    """Convolution (kernel_size 3) or linear map over the last axis (kernel_size 1).

    With `normalized`, the layer uses `effective_kernel`, so that unit-RMS inputs give
    unit-RMS outputs (Eq. 47). `gain` adds a learned scalar that starts at zero (App. B.7).
    A convolution can `resample` its input first; its padding is zero and 'same'.
    """

    features: int
    kernel_size: int
    normalized: bool
    bias: bool
    draw: Draw
    draw_bias: Draw = zeros
    gain: bool = False
    resample: str = "keep"
    precision: jax.lax.Precision | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        window = (self.kernel_size,) * 2 if self.kernel_size > 1 else ()
        shape = (*window, x.shape[-1], self.features)
        fan_in = math.prod(shape[:-1])
        kernel = declare(self, "kernel", self.draw, shape, fan_in)
        gain = declare(self, "gain", zeros, ()) if self.gain else 1.0
        kernel = effective_kernel(kernel, gain, self.normalized).astype(x.dtype)
        precision = float32_precision(x, self.precision)
        if window and self.resample == "up":
            conv = functools.partial(convolve, precision=precision)
            y = platform.convolve_upsampled(x, kernel, conv, upsample)
        else:
            product = convolve if window else matmul
            y = product(resample(x, self.resample), kernel, precision)
        if self.bias:
            bias = declare(self, "bias", self.draw_bias, (self.features,), fan_in)
            y = y + jnp.expand_dims(bias.astype(x.dtype), range(y.ndim - 1))
        # For the dynamics plots; costs nothing unless the collection is requested.
        axes = tuple(range(y.ndim - 1))
        mean_square = jnp.mean(jnp.square(y.astype(jnp.float32)), axis=axes)
        self.sow("mean_squares", "output", mean_square)
        return y


class GroupNorm(nn.Module):
    """ADM's group normalization: min(32, C // 4) groups, learned scale and bias.

    In float32, eps 1e-5 (App. B.1). Without `affine` the mean is not subtracted, there are
    no scale and bias, and eps is 1e-4 (Eq. 29).
    """

    affine: ClassVar[bool] = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1]
        groups = min(32, channels // 4)

        def group_mean(y: Array) -> Array:
            # Channels first: CPUs are slow at reducing a short last axis.
            means = mean(y, (1, 2)).reshape(y.shape[0], groups, -1).mean(axis=-1)
            means = jnp.repeat(means, channels // groups, axis=-1)
            return broadcast_to(means[:, None, None, :], y.shape)

        y = x.astype(jnp.float32)
        if self.affine:
            y = y - group_mean(y)
        eps = 1e-5 if self.affine else 1e-4
        y = y * jax.lax.rsqrt(group_mean(jnp.square(y)) + eps)
        if self.affine:
            scale = declare(self, "scale", ones, (channels,))
            bias = declare(self, "bias", zeros, (channels,))
            y = y * scale[None, None, None] + bias[None, None, None]
        return y.astype(x.dtype)


class RMSGroupNorm(GroupNorm):
    """Divides by the RMS of each group (Eq. 29)."""

    affine: ClassVar[bool] = False


class NoNorm(nn.Module):
    """No normalization (App. B.6)."""

    def __call__(self, x: Array) -> Array:
        return x


NORMS = {"group": GroupNorm, "rms_group": RMSGroupNorm, "none": NoNorm}


class PositionalFeatures(nn.Module):
    """ADM's timestep features: (N,) -> (N, features), cosines then sines (App. B.1)."""

    features: int

    def __call__(self, c_noise: Array) -> Array:
        half = self.features // 2
        angular = (1 / 10000) ** (jnp.arange(half, dtype=jnp.float32) / half)
        angles = c_noise[:, None] * angular[None]
        return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class FourierFeatures(nn.Module):
    """scale * cos(2 pi (f c_noise + phi)): (N,) -> (N, features) (Eq. 35, 36, 75).

    Frequencies ~ N(0, 1) and phases ~ U(0, 1) are stored with the weights, so that averaged
    networks include them, but are never trained.
    """

    features: int
    scale: float = 1.0

    @nn.compact
    def __call__(self, c_noise: Array) -> Array:
        shape = (self.features,)
        freqs = declare(self, "freqs", normal, shape)
        phases = declare(self, "phases", unit_interval, shape)
        freqs, phases = jax.lax.stop_gradient((freqs, phases))
        angles = c_noise[:, None] * freqs[None] + phases[None]
        return self.scale * jnp.cos(2 * math.pi * angles)


FROZEN_LEAVES = ("freqs", "phases")
