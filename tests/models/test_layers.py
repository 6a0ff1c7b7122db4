"""Every layer and operation against its formula in the paper."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax import platform
from edm_jax.models import inits, layers


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def rms(x, axis=None):
    return np.sqrt(np.mean(np.square(np.asarray(x, np.float64)), axis=axis))


def apply(module, x, **leaves):
    """A module's output; leaves that are not given keep their initial values."""
    variables = module.init(jax.random.key(0), x)
    undrawn = variables.get("params", {})
    rng = np.random.default_rng(0)
    params = {
        name: leaf.draw(rng, leaf.value.shape, leaf.fan_in).astype(np.float32)
        for name, leaf in undrawn.items()
    }
    assert leaves.keys() <= params.keys()
    return np.asarray(module.apply({"params": params | leaves}, x)), params | leaves


def make_layer(features, kernel_size, **slots):
    slots = {"normalized": False, "bias": False, "draw": inits.normal} | slots
    return layers.Layer(features, kernel_size, **slots)


# Alg. 1: additive eps, not under the root.


def test_normalize_adds_eps_to_the_rms():
    ones = jnp.ones((2, 4))
    np.testing.assert_allclose(layers.normalize(ones, (-1,)), 1 / 1.0001, rtol=1e-6)
    small = layers.normalize(1e-4 * ones, (-1,))
    np.testing.assert_allclose(small, 0.5, rtol=1e-6)


def test_normalize_units_gives_each_output_unit_rms_one():
    w = normal(3, 3, 5, 7) * np.exp(normal(7, seed=1))
    unit = layers.normalize_units(w)
    expected = w / (1e-4 + rms(w, axis=(0, 1, 2)))
    np.testing.assert_allclose(unit, expected, rtol=1e-5)
    np.testing.assert_allclose(rms(unit, axis=(0, 1, 2)), 1, atol=2e-3)


def test_pixel_norm_acts_on_the_channels_of_each_pixel():
    x = normal(2, 3, 3, 5)
    expected = x / (1e-4 + rms(x, axis=-1)[..., None])
    np.testing.assert_allclose(layers.pixel_norm(x), expected, rtol=1e-5)


def test_normalize_has_a_finite_gradient_at_zero():
    grad = jax.grad(lambda x: layers.normalize(x, (0,)).sum())(jnp.zeros(4))
    assert np.all(np.isfinite(grad))


def test_normalize_measures_half_precision_in_float32():
    x = jnp.full((1, 8), 300.0, jnp.float16)  # its square overflows float16
    unit = layers.normalize(x, (-1,))
    assert unit.dtype == jnp.float16
    np.testing.assert_allclose(np.asarray(unit, np.float32), 1, atol=1e-3)


@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_mp_sum_keeps_unit_magnitude_and_b_contributes_by_t(t):
    a, b = normal(100_000), normal(100_000, seed=1)
    y = layers.mp_sum(a, b, t)
    assert rms(y) == pytest.approx(1, abs=0.01)
    # Eq. 88; with t = 0.3 the paper's 70% main path to 30% branch.
    blend = ((1 - t) * a + t * b) / np.hypot(1 - t, t)
    np.testing.assert_allclose(y, blend, atol=1e-6)


def test_mp_sum_rounds_once_in_float16():
    a, b = (jnp.asarray(normal(10_000, seed=i), jnp.float16) for i in range(2))
    y = layers.mp_sum(a, b, 0.3)
    wide_a, wide_b = (np.asarray(x, np.float64) for x in (a, b))
    once = ((0.7 * wide_a + 0.3 * wide_b) / np.hypot(0.7, 0.3)).astype(np.float16)
    assert y.dtype == jnp.float16
    # Rounding to float32 on the way moves the result once in thousands.
    assert np.mean(np.asarray(y) != once) < 1e-3


@pytest.mark.parametrize("t", [0.2, 0.5, 0.7])
def test_mp_cat_keeps_unit_magnitude_and_b_contributes_by_t(t):
    a, b = normal(4, 50, 50, 12), normal(4, 50, 50, 36, seed=1)
    y = layers.mp_cat(a, b, t)
    assert y.shape == (4, 50, 50, 48)
    assert rms(y) == pytest.approx(1, abs=0.01)
    # A layer after it sums over channels: each input adds its squared norm (Eq. 103).
    part_a, part_b = np.sum(y[..., :12] ** 2), np.sum(y[..., 12:] ** 2)
    assert math.sqrt(part_b / part_a) == pytest.approx(t / (1 - t), rel=0.02)
    np.testing.assert_allclose(
        y[..., :12] / a, float(y[0, 0, 0, 0] / a[0, 0, 0, 0]), 1e-4
    )


def test_plain_sum_and_cat_are_plain():
    a, b = normal(2, 3), normal(2, 3, seed=1)
    np.testing.assert_array_equal(layers.plain_sum(a, b, 0.3), a + b)
    np.testing.assert_array_equal(layers.plain_cat(a, b, 0.3), np.hstack([a, b]))


def test_down_is_the_two_by_two_mean_and_up_the_nearest_pixel():
    x = normal(2, 4, 6, 3)
    down, up = layers.resample(x, "down"), layers.resample(x, "up")
    assert down.shape == (2, 2, 3, 3)
    assert up.shape == (2, 8, 12, 3)
    for i, j in np.ndindex(2, 3):
        window = x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
        np.testing.assert_allclose(down[:, i, j], window.mean(axis=(1, 2)), atol=1e-6)
    for i, j in np.ndindex(8, 12):
        np.testing.assert_array_equal(up[:, i, j], x[:, i // 2, j // 2])
    assert layers.resample(x, "keep") is x


@pytest.mark.parametrize("shape", [(2, 4, 4, 3), (1, 3, 5, 2), (2, 1, 1, 4)])
def test_upsampling_within_a_convolution_changes_no_number(shape):
    x, kernel = normal(*shape), normal(3, 3, shape[-1], 5, seed=1)
    weights = normal(shape[0], 2 * shape[1], 2 * shape[2], 5, seed=2)

    def value_and_gradients(function):
        def weighted(x, kernel):
            y = function(x, kernel)
            return jnp.sum(weights * y), y

        gradient = jax.jit(jax.value_and_grad(weighted, (0, 1), has_aux=True))
        return jax.tree.leaves(gradient(x, kernel))

    def convolve(x, kernel, **padding):
        return layers.convolve(x, kernel, None, **padding)

    within = value_and_gradients(
        lambda x, k: platform.convolve_upsampled(x, k, convolve, layers.upsample)
    )
    before = value_and_gradients(lambda x, k: convolve(layers.upsample(x), k))
    for a, b in zip(within, before, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("channels", [8, 24, 256])  # 2, 6 and the most, 32 groups
@pytest.mark.parametrize("affine", [True, False])
def test_group_norm_is_computed_per_group(affine, channels):
    x = 2 + 3 * normal(2, 4, 4, channels)
    leaves = {"scale": normal(channels, seed=1), "bias": normal(channels, seed=2)}
    norm = layers.GroupNorm if affine else layers.RMSGroupNorm
    y, _ = apply(norm(), x, **(leaves if affine else {}))
    width = channels // min(32, channels // 4)
    for n in range(2):
        for first in range(0, channels, width):
            part = x[n, :, :, first : first + width].astype(np.float64)
            mean = part.mean() if affine else 0.0
            eps = 1e-5 if affine else 1e-4
            expected = (part - mean) / np.sqrt(np.mean((part - mean) ** 2) + eps)
            if affine:
                expected *= leaves["scale"][first : first + width]
                expected += leaves["bias"][first : first + width]
            actual = y[n, :, :, first : first + width]
            np.testing.assert_allclose(actual, expected, atol=2e-5)


@pytest.mark.parametrize(("scale", "magnitude"), [(1, math.sqrt(0.5)), (2**0.5, 1)])
def test_fourier_features_have_magnitude_half_or_one(scale, magnitude):
    c_noise = np.linspace(-1, 1, 7, dtype=np.float32)
    features, leaves = apply(layers.FourierFeatures(20_000, scale=scale), c_noise)
    np.testing.assert_allclose(rms(features, axis=-1), magnitude, rtol=0.02)
    angles = np.outer(c_noise.astype(np.float64), leaves["freqs"]) + leaves["phases"]
    np.testing.assert_allclose(features, scale * np.cos(2 * np.pi * angles), atol=1e-5)
    assert np.std(leaves["freqs"]) == pytest.approx(1, rel=0.05)
    phases = leaves["phases"]
    assert 0 <= phases.min() < 0.01
    assert 0.99 < phases.max() <= 1


def test_positional_features_are_cosines_then_sines():
    c_noise = np.array([-0.7, 0.0, 1.3], np.float32)
    features, _ = apply(layers.PositionalFeatures(8), c_noise)
    for i in range(4):
        angle = c_noise * 10000 ** (-i / 4)
        np.testing.assert_allclose(features[:, i], np.cos(angle), atol=1e-6)
        np.testing.assert_allclose(features[:, 4 + i], np.sin(angle), atol=1e-6)


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_normalized_layers_preserve_magnitude_whatever_their_weights_scale(kernel_size):
    x = normal(4, 16, 16, 16)
    layer = make_layer(400, kernel_size, normalized=True)
    shape = (3, 3, 16, 400) if kernel_size == 3 else (16, 400)
    y, _ = apply(layer, x, kernel=7 * normal(*shape, seed=1))
    assert rms(y[:, 1:-1, 1:-1]) == pytest.approx(1, rel=0.03)


def test_convolution_is_a_cross_correlation_with_zero_padding():
    x, kernel = normal(1, 4, 4, 2), normal(3, 3, 2, 5, seed=1)
    y, _ = apply(make_layer(5, 3), x, kernel=kernel)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    for i, j in np.ndindex(4, 4):
        expected = np.einsum("yxc,yxcf->f", padded[0, i : i + 3, j : j + 3], kernel)
        np.testing.assert_allclose(y[0, i, j], expected, atol=1e-5)


def test_bias_and_gain_act_on_the_output():
    x, kernel = normal(3, 4), normal(4, 2, seed=1)
    bias = normal(2, seed=2)
    y, _ = apply(make_layer(2, 1, bias=True), x, kernel=kernel, bias=bias)
    np.testing.assert_allclose(y, x @ kernel + bias, atol=1e-6)
    gain = np.float32(0.25)
    y, _ = apply(make_layer(2, 1, gain=True), x, kernel=kernel, gain=gain)
    np.testing.assert_allclose(y, 0.25 * (x @ kernel), atol=1e-6)
    y, _ = apply(make_layer(2, 1, gain=True), x, kernel=kernel)
    assert not y.any()  # gains start at zero


def test_layers_report_the_mean_square_of_their_outputs():
    x, kernel = normal(3, 4, 4, 6), normal(6, 2, seed=1)
    layer = make_layer(2, 1)
    y, state = layer.apply({"params": {"kernel": kernel}}, x, mutable=["mean_squares"])
    (mean_square,) = state["mean_squares"]["output"]
    np.testing.assert_allclose(mean_square, rms(y, axis=(0, 1, 2)) ** 2, rtol=1e-5)


@pytest.mark.slow
def test_dropout_belongs_to_the_example():
    x = jnp.ones((6, 4, 4, 3))
    keys = jax.random.split(jax.random.key(0), 6)
    y = layers.dropout(x, 0.4, keys, salt=3)
    order = jnp.array([4, 1, 5])
    np.testing.assert_array_equal(layers.dropout(x[:3], 0.4, keys[order], 3), y[order])
    assert not np.array_equal(y[0], y[1])
    assert not np.array_equal(y, layers.dropout(x, 0.4, keys, salt=4))


def test_dropout_zeroes_its_share_and_keeps_the_mean():
    x = jnp.ones((8, 32, 32, 8))
    y = layers.dropout(x, 0.1, jax.random.split(jax.random.key(0), 8), salt=0)
    assert np.mean(y == 0) == pytest.approx(0.1, abs=0.01)
    np.testing.assert_allclose(np.unique(y), [0, 1 / 0.9], rtol=1e-6)


def test_dropout_is_off_at_evaluation_and_at_rate_zero():
    x = jnp.ones((2, 4))
    assert layers.dropout(x, 0.5, None, salt=0) is x
    assert layers.dropout(x, 0.0, jax.random.split(jax.random.key(0)), 0) is x
