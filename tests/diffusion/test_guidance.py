"""Guidance against its formula, closed forms, and within its interval only."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax.diffusion.guidance import EVERYWHERE, WeightTable, guided
from edm_jax.diffusion.samplers import Heun


def strong(x, sigma):
    return x / (1 + sigma)[:, None, None, None] + 1


def weak(x, sigma):
    return x / (1 + sigma)[:, None, None, None] - 3


@pytest.fixture
def noise():
    return jnp.asarray(
        np.random.default_rng(0).standard_normal((8, 4, 4, 1)), jnp.float32
    )


def test_guidance_weight_1_is_the_plain_denoiser(noise):
    sigma = jnp.full(8, 2.0)
    found = guided(strong, weak, 1.0)(noise, sigma)
    np.testing.assert_allclose(found, strong(noise, sigma), rtol=1e-6)


def test_guidance_extrapolates_from_the_guide(noise):
    sigma = jnp.full(8, 2.0)
    # w D + (1 - w) D_guide, with D - D_guide = 4.
    expected = strong(noise, sigma) + 0.5 * 4
    found = jax.jit(guided(strong, weak, 1.5))(noise, sigma)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_guidance_acts_inside_its_half_open_interval_only(noise):
    sigma = jnp.array([0.1, 0.28, 0.29, 1.0, 2.9, 2.91, 10.0, 80.0])
    found = guided(strong, weak, 2.0, interval=(0.28, 2.9))(noise, sigma)
    shift = np.asarray(found - strong(noise, sigma))[:, 0, 0, 0]
    np.testing.assert_allclose(shift, [0, 0, 4, 4, 4, 0, 0, 0], atol=1e-5)


def test_the_guide_is_not_evaluated_outside_the_interval(noise):
    seen = []

    def counted(x, sigma):
        seen.append(float(sigma[0]))
        return weak(x, sigma)

    denoise = guided(strong, counted, 2.0, interval=(0.28, 2.9))
    with jax.disable_jit():
        for sigma in (0.28, 1.0, 2.9, 3.0):
            denoise(noise, jnp.full(8, sigma))
    np.testing.assert_allclose(seen, [1.0, 2.9], rtol=1e-6)


# Mixtures of Gaussians on the line: weights, means, standard deviations.
ONE_CLASS = np.array([0.2, 0.8]), np.array([-0.7, 0.5]), np.array([0.1, 0.3])
ALL_CLASSES = np.array([0.5, 0.5]), np.array([-0.4, 0.6]), np.array([0.5, 0.4])


def log_density(mixture, x, sigma):
    weight, mean, std = mixture
    variance = std**2 + sigma**2
    exponent = -((x[..., None] - mean) ** 2) / (2 * variance)
    return np.log(np.sum(weight / np.sqrt(variance) * np.exp(exponent), axis=-1))


def mixture_denoiser(mixture):
    """E[y | x]: each part's mean, weighted by how likely it made x."""
    weight, mean, std = (jnp.float32(each).reshape(1, 1, 1, 1, -1) for each in mixture)

    def denoise(x, sigma):
        variance = std**2 + sigma[:, None, None, None, None] ** 2
        centred = x[..., None] - mean
        log = jnp.log(weight) - centred**2 / (2 * variance) - jnp.log(variance) / 2
        parts = mean + centred * std**2 / variance
        return jnp.sum(jax.nn.softmax(log, axis=-1) * parts, axis=-1)

    return denoise


@pytest.mark.slow
@pytest.mark.parametrize(("weight", "interval"), [(2.5, EVERYWHERE), (2.5, (0.3, 1.5))])
def test_on_mixtures_the_guided_score_is_that_of_p_to_the_w_over_the_guides(
    weight, interval
):
    """D = x + sigma^2 d/dx of w ln p + (1 - w) ln p_guide, by differences in float64."""
    x = np.linspace(-2, 2, 40)
    for sigma in (0.3, 0.31, 1.5, 4.0):
        w = weight if interval[0] < sigma <= interval[1] else 1.0

        def log_power(x, sigma=sigma, w=w):
            own, guides = (log_density(m, x, sigma) for m in (ONE_CLASS, ALL_CLASSES))
            return w * own + (1 - w) * guides

        slope = (log_power(x + 1e-5) - log_power(x - 1e-5)) / 2e-5
        denoise = guided(
            mixture_denoiser(ONE_CLASS), mixture_denoiser(ALL_CLASSES), weight, interval
        )
        levels = jnp.full(1, sigma, jnp.float32)
        found = denoise(jnp.float32(x).reshape(1, 1, -1, 1), levels).ravel()
        np.testing.assert_allclose(found, x + sigma**2 * slope, rtol=1e-4, atol=1e-4)


def test_an_interval_guides_the_path_between_its_ends_only():
    """Of Gaussian data both slopes are linear: x ~ (s^2 + sigma^2)^(w/2) on each piece."""
    std, guides_std, weight, (low, high) = 0.5, 0.8, 3.0, (0.3, 2.0)

    def gaussian(std):
        return lambda x, sigma: x * (std**2 / (std**2 + sigma**2))[:, None, None, None]

    denoise = guided(gaussian(std), gaussian(guides_std), weight, (low, high))
    # A level at each end of the interval, from which the slope is the next piece's.
    pieces = [(10.0, high), (high, low), (low, 0.02)]
    levels = [np.geomspace(*piece, 129) for piece in pieces]
    sigmas = np.concatenate([levels[0], levels[1][1:], levels[2][1:]])
    expected, x = 1.0, jnp.ones((1, 1, 1, 1))
    for (start, end), w in zip(pieces, (1.0, weight, 1.0), strict=True):
        for s, power in ((std, w), (guides_std, 1 - w)):
            expected *= ((s**2 + end**2) / (s**2 + start**2)) ** (power / 2)
    found = Heun().sample(denoise, x, sigmas, jnp.zeros((1, 2)))
    assert float(found.squeeze()) == pytest.approx(expected, rel=0.01)
    everywhere = guided(gaussian(std), gaussian(guides_std), weight)
    other = Heun().sample(everywhere, x, sigmas, jnp.zeros((1, 2)))
    assert abs(float(other.squeeze()) / expected - 1) > 0.1


def test_a_table_gives_each_noise_level_its_own_weight(noise):
    table = WeightTable.of({1.0: 2.0, 0.01: 1.0, 10.0: 4.0})
    sigma = jnp.array([0.001, 0.01, 0.1, 1.0, 10**0.5, 10.0, 80.0, 0.1])
    found = jax.jit(guided(strong, weak, table))(noise, sigma)
    # w D + (1 - w) D_guide - D = 4 (w - 1), w linear in ln sigma.
    moved = np.asarray(found - strong(noise, sigma))[:, 0, 0, 0]
    np.testing.assert_allclose(moved, [0, 0, 2, 4, 8, 12, 12, 2], atol=1e-4)


@pytest.mark.parametrize("points", [{1.0: 2.0}, {0.0: 1.0, 1.0: 2.0}])
def test_a_table_of_no_interval_is_refused(points):
    with pytest.raises(ValueError, match="two levels or more, all positive"):
        WeightTable.of(points)
