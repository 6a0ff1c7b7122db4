"""The sampler against Gaussian data, whose denoiser and ODE are known in closed form."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax.diffusion import samplers
from edm_jax.diffusion.samplers import Churn

STD = 0.5  # of the Gaussian data
SHAPE = (4, 4, 1)


def gaussian_denoiser(x, sigma):
    """E[y | x] for y ~ N(0, STD^2): x s^2 / (s^2 + sigma^2)."""
    return x * (STD**2 / (STD**2 + sigma**2))[:, None, None, None]


def exact_solution(noise):
    """dx/dsigma = x sigma / (s^2 + sigma^2) from 80 noise to 0: x ~ sqrt(s^2 + sigma^2)."""
    return noise * 80.0 * STD / np.hypot(STD, 80.0)


class Counted:
    """A denoiser that remembers the noise levels it was asked for."""

    def __init__(self, denoise=gaussian_denoiser):
        self.denoise, self.sigmas = denoise, []

    def __call__(self, x, sigma):
        assert sigma.shape == (len(x),) and x.dtype == sigma.dtype == jnp.float32
        assert np.unique(np.asarray(sigma)).size == 1
        self.sigmas.append(float(sigma[0]))
        return self.denoise(x, sigma)


@pytest.fixture
def noise():
    return samplers.initial_noise(range(8), SHAPE)


def test_noise_levels_are_the_papers():
    sigmas = samplers.sigma_steps(32)
    np.testing.assert_allclose(sigmas[:4], [80, 66.931, 55.736, 46.186], rtol=1e-5)
    assert len(sigmas) == 33 and sigmas[-1] == 0
    assert sigmas[-2] == pytest.approx(0.002, rel=1e-12)
    assert np.all(np.diff(sigmas) < 0)


def test_a_sampler_of_one_step_is_refused():
    with pytest.raises(ValueError, match="at least 2 steps"):
        samplers.sigma_steps(1)


def test_32_steps_take_63_evaluations(noise):
    denoise, seen = Counted(), []
    sigmas = samplers.sigma_steps(32)
    samplers.heun(denoise, noise, sigmas, on_step=seen.append)
    assert len(denoise.sigmas) == 63
    # Two of each but the first and the last.
    expected = [80.0, *np.repeat(sigmas[1:-1], 2)]
    np.testing.assert_allclose(denoise.sigmas, expected, rtol=1e-6)
    assert seen == list(range(1, 33))


def test_sampler_converges_at_second_order(noise):
    # Few steps and a narrow range, so that float32 does not hide the order.
    def error(steps):
        sigmas = samplers.sigma_steps(steps, sigma_min=0.1, sigma_max=2.0)[:-1]
        x = samplers.heun(gaussian_denoiser, noise, sigmas)
        exact = noise * 2.0 * np.hypot(STD, 0.1) / np.hypot(STD, 2.0)
        return float(np.max(np.abs(np.asarray(x) - exact)))

    orders = np.log2([error(9) / error(17), error(17) / error(33)])
    np.testing.assert_allclose(orders, 2, atol=0.2)


def heun_factor(now, then):
    """What one of Heun's steps multiplies x by, as D is linear; Euler's to 0."""
    slopes = [sigma / (STD**2 + sigma**2) for sigma in (now, then)]
    euler = 1 + (then - now) * slopes[0]
    return 1 + (then - now) * (slopes[0] + slopes[1] * euler) / 2 if then else euler


def test_32_steps_follow_the_exact_path(noise):
    sigmas = samplers.sigma_steps(32)
    factor = np.prod(list(itertools.starmap(heun_factor, itertools.pairwise(sigmas))))
    x = samplers.heun(gaussian_denoiser, noise, sigmas)
    np.testing.assert_allclose(x, 80 * factor * noise, rtol=1e-4)
    np.testing.assert_allclose(x, exact_solution(noise), rtol=0.02)


def test_samples_have_the_standard_deviation_of_the_data():
    noise, sigmas = samplers.initial_noise(range(1000), SHAPE), samplers.sigma_steps(32)
    x = samplers.heun(gaussian_denoiser, noise, sigmas)
    assert float(jnp.std(x)) == pytest.approx(STD, rel=0.03)


def test_churn_adds_the_variance_that_its_higher_noise_level_has():
    """Variances in closed form: churn adds raised^2 - sigma^2, a step multiplies."""
    steps, amount = 24, 6.0
    noise = samplers.initial_noise(range(1000), SHAPE)
    sigmas = samplers.sigma_steps(steps)
    variance = 80.0**2
    for now, then in itertools.pairwise(sigmas):
        raised = now * (1 + amount / steps)
        variance += raised**2 - now**2
        variance *= heun_factor(raised, then) ** 2
    x = samplers.heun(gaussian_denoiser, noise, sigmas, range(1000), Churn(amount))
    assert float(jnp.std(x)) == pytest.approx(variance**0.5, rel=0.02)
    assert variance**0.5 == pytest.approx(STD, rel=0.1)


def test_last_step_is_eulers_and_lands_on_the_denoised_image(noise):
    sigmas = np.array([1.0, 0.0])
    x = samplers.heun(gaussian_denoiser, noise, sigmas)
    denoised = gaussian_denoiser(jnp.asarray(noise), jnp.ones(len(noise)))
    np.testing.assert_allclose(x, denoised, rtol=1e-5)


@pytest.mark.parametrize("churn", [Churn(), Churn(20.0, 0.05, 50.0, 1.003)])
def test_one_seed_gives_one_image_in_any_batch(churn):
    def images(seeds):
        noise = samplers.initial_noise(seeds, SHAPE)
        sigmas = samplers.sigma_steps(8)
        return np.asarray(samplers.heun(gaussian_denoiser, noise, sigmas, seeds, churn))

    together, reordered = images([3, 14, 15, 92]), images([92, 3])
    np.testing.assert_array_equal(reordered, together[[3, 0]])
    assert not np.allclose(together[0], together[1])


def test_initial_noise_is_white_and_of_unit_variance():
    noise = samplers.initial_noise(range(1000), SHAPE).astype(np.float64)
    assert noise.mean() == pytest.approx(0, abs=0.02)
    assert noise.std() == pytest.approx(1, abs=0.02)
    flat = noise.reshape(1000, -1)
    np.testing.assert_allclose(flat.T @ flat / 1000, np.eye(16), atol=0.2)


def test_churn_needs_a_seed_for_each_image(noise):
    sigmas = samplers.sigma_steps(4)
    for seeds in [(), range(7)]:
        with pytest.raises(ValueError, match="seed for each of the 8 images"):
            samplers.heun(gaussian_denoiser, noise, sigmas, seeds, Churn(10.0))


def test_churn_raises_the_noise_by_at_most_sqrt_2_and_within_its_range(noise):
    sigmas = samplers.sigma_steps(4)
    for amount, raise_by in [(0.4, 1.1), (100.0, 2**0.5)]:
        denoise = Counted()
        churn = Churn(amount, s_min=0.01, s_max=50.0)
        samplers.heun(denoise, noise, sigmas, range(8), churn)
        # Of 80, 3.6..., 0.07..., 0.002 the two in the middle lie in [s_min, s_max].
        starts = [denoise.sigmas[i] for i in (0, 2, 4, 6)]
        factors = np.array([1.0, raise_by, raise_by, 1.0])
        np.testing.assert_allclose(starts, sigmas[:-1] * factors, rtol=1e-6)


def test_churn_draws_anew_at_every_step_and_for_every_seed(noise):
    """With D = x nothing is denoised: what was added remains."""
    sigmas = np.array([1.0, 0.9, 0.8, 0.0])

    def added(seeds, churn):
        x = samplers.heun(lambda x, sigma: x, noise, sigmas, seeds, churn)
        return np.asarray(x) - noise

    ranges = [Churn(0.3, 0.95, 2.0), Churn(0.3, 0.85, 0.95), Churn(0.3, 0.0, 0.85)]
    steps = [
        added(range(8), churn) / s for churn, s in zip(ranges, sigmas[:3], strict=True)
    ]
    flat = np.stack([step.ravel() for step in steps])
    # sqrt(1.1^2 - 1) of each level, and no step repeats another's noise.
    np.testing.assert_allclose(flat.std(axis=1), (1.1**2 - 1) ** 0.5, rtol=0.2)
    assert np.abs(np.corrcoef(flat) - np.eye(3)).max() < 0.3
    assert not np.allclose(added(range(8), ranges[0]), added(range(8, 16), ranges[0]))


def strong(x, sigma):
    return gaussian_denoiser(x, sigma) + 1


def weak(x, sigma):
    return gaussian_denoiser(x, sigma) - 3


def test_guidance_weight_1_is_the_plain_denoiser(noise):
    guided = samplers.guided(strong, weak, 1.0)
    sigma = jnp.full(8, 2.0)
    np.testing.assert_allclose(guided(noise, sigma), strong(noise, sigma), rtol=1e-6)


def test_guidance_extrapolates_from_the_guide(noise):
    guided = samplers.guided(strong, weak, 1.5)
    sigma = jnp.full(8, 2.0)
    # w D + (1 - w) D_guide, with D - D_guide = 4.
    expected = gaussian_denoiser(noise, sigma) + 1 + 0.5 * 4
    np.testing.assert_allclose(guided(noise, sigma), expected, rtol=1e-5)
    assert jax.jit(guided)(noise, sigma).shape == noise.shape


def test_guidance_acts_inside_its_half_open_interval_only(noise):
    guided = samplers.guided(strong, weak, 2.0, interval=(0.28, 2.9))
    sigma = jnp.array([0.1, 0.28, 0.29, 1.0, 2.9, 2.91, 10.0, 80.0])
    shift = np.asarray(guided(noise, sigma) - strong(noise, sigma))[:, 0, 0, 0]
    np.testing.assert_allclose(shift, [0, 0, 4, 4, 4, 0, 0, 0], atol=1e-5)
