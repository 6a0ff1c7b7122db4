"""The samplers against data whose denoiser and paths are known in closed form."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback
from scipy.stats import norm

from edm_jax import fields, menu
from edm_jax.diffusion import samplers
from edm_jax.diffusion.noise_levels import NoiseLevels
from edm_jax.diffusion.samplers import (
    SAMPLERS,
    AncestralEuler,
    DPMSolver2M,
    Euler,
    Heun,
    StochasticHeun,
)

STD = 0.5  # of the Gaussian data
SHAPE = (4, 4, 1)
# A mixture of two Gaussians on the line: weights, means, standard deviations.
MIXTURE = np.array([0.3, 0.7]), np.array([-0.8, 0.4]), np.array([0.15, 0.3])
LEVELS = NoiseLevels().sigmas()


def gaussian_denoiser(x, sigma):
    """E[y | x] for y ~ N(0, STD^2): x s^2 / (s^2 + sigma^2)."""
    return x * (STD**2 / (STD**2 + sigma**2))[:, None, None, None]


def mixture_denoiser(x, sigma):
    """E[y | x] of MIXTURE: each part's mean, weighted by how likely it made x."""
    weight, mean, std = (jnp.asarray(a, jnp.float32) for a in MIXTURE)
    s2 = sigma[:, None, None, None, None] ** 2
    x = x[..., None]
    variance = std[(None,) * 4] ** 2 + s2
    centred = x - mean[(None,) * 4]
    log = jnp.log(weight)[(None,) * 4] - centred**2 / (2 * variance)
    share = jax.nn.softmax(log - jnp.log(variance) / 2, axis=-1)
    parts = mean[(None,) * 4] + centred * std[(None,) * 4] ** 2 / variance
    return jnp.sum(share * parts, axis=-1)


def mixture_cdf(x, sigma):
    weight, mean, std = MIXTURE
    return np.sum(weight * norm.cdf(x[..., None], mean, np.hypot(std, sigma)), axis=-1)


def exact_path(x, start, end):
    """Where the probability flow takes x: on the line it keeps every quantile."""
    quantile = mixture_cdf(x, start)
    low, high = np.full_like(x, -20.0), np.full_like(x, 20.0)
    for _ in range(60):
        middle = (low + high) / 2
        below = mixture_cdf(middle, end) < quantile
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return low


def sample(sampler, noise, sigmas, seeds=None, denoise=gaussian_denoiser):
    keys = samplers.seed_keys(range(len(noise)) if seeds is None else seeds)
    x = jnp.asarray(noise, jnp.float32) * sigmas[0]
    return np.asarray(sampler.sample(denoise, x, np.asarray(sigmas), keys))


def evaluations(sampler, noise, sigmas):
    """The levels at which a sampler asks for the denoiser, one after the other."""
    seen = []

    def denoise(x, sigma):
        assert sigma.shape == (len(x),) and x.dtype == sigma.dtype == jnp.float32
        io_callback(lambda s: seen.append(np.unique(s)), None, sigma, ordered=True)
        return gaussian_denoiser(x, sigma)

    sample(sampler, noise, sigmas, denoise=denoise)
    jax.effects_barrier()
    return np.concatenate(seen)


@pytest.fixture
def noise():
    return samplers.initial_noise(range(8), SHAPE)


def test_noise_levels_are_the_papers():
    np.testing.assert_allclose(LEVELS[:4], [80, 66.931, 55.736, 46.186], rtol=1e-5)
    assert len(LEVELS) == 33 and LEVELS[-1] == 0
    assert LEVELS[-2] == pytest.approx(0.002, rel=1e-12)
    assert np.all(np.diff(LEVELS) < 0)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"num_steps": 1}, "at least 2"),
        ({"sigma_min": 90.0}, "below sigma_max, which is 80"),
        ({"rho": 0.0}, "positive"),
    ],
)
def test_levels_that_make_no_sense_are_refused(settings, sentence):
    with pytest.raises(fields.Fault, match=sentence):
        NoiseLevels(**settings)


def test_the_menu_builds_each_sampler_from_its_name():
    for name, cls in SAMPLERS.items():
        built = menu.build(SAMPLERS, "evaluation.sampler", name)
        assert type(built) is cls and isinstance(built, samplers.Sampler)


def test_32_steps_of_heun_take_63_evaluations(noise):
    # Two of each but the first and the last.
    expected = [80.0, *np.repeat(LEVELS[1:-1], 2)]
    np.testing.assert_allclose(evaluations(Heun(), noise, LEVELS), expected, rtol=1e-6)


@pytest.mark.parametrize("sampler", [Euler(), DPMSolver2M(), AncestralEuler()])
def test_the_other_samplers_take_one_evaluation_a_step(sampler, noise):
    found = evaluations(sampler, noise, LEVELS)
    np.testing.assert_allclose(found, LEVELS[:-1], rtol=1e-6)


@pytest.mark.parametrize(
    ("sampler", "order"),
    [(Euler(), 1), (Heun(), 2), (DPMSolver2M(), 2)],
    ids=str,
)
def test_samplers_converge_to_the_path_of_a_mixture_at_their_order(sampler, order):
    start, end = 3.0, 0.2
    noise = np.linspace(-1.5, 1.5, 64).reshape(1, 8, 8, 1)
    exact = exact_path(noise * start, start, end)

    def error(steps):
        levels = NoiseLevels(num_steps=steps, sigma_min=end, sigma_max=start).sigmas()
        found = sample(sampler, noise, levels[:-1], denoise=mixture_denoiser)
        return np.sqrt(np.mean((found - exact) ** 2))

    # As few steps as show the order: float32 hides smaller errors.
    steps = [33, 65, 129]
    errors = [error(n) for n in steps]
    slope = np.polyfit(np.log(np.subtract(steps, 1)), np.log(errors), 1)[0]
    assert -slope == pytest.approx(order, abs=0.15), errors


def output_variance(sampler, sigmas, monkeypatch):
    """The exact variance of what a sampler makes of Gaussian data.

    All is linear in x and in each step's noise. Image k is given noise in step k alone,
    and the last image a start alone: the squares of the outputs are the shares.
    """
    steps = len(sigmas) - 1

    def one_each(keys, step, like):
        del keys
        return jnp.zeros_like(like).at[step].set(1.0)

    monkeypatch.setattr(samplers, "fresh_noise", one_each)
    noise = np.zeros((steps + 1, 1, 1, 1))
    noise[-1] = np.hypot(STD, sigmas[0]) / sigmas[0]
    return np.sum(sample(sampler, noise, sigmas).astype(np.float64) ** 2)


@pytest.mark.parametrize(
    ("sampler", "order"),
    [(AncestralEuler(), 1), (StochasticHeun(s_noise=1.0, s_churn=8.0), 2)],
    ids=str,
)
def test_samplers_with_noise_keep_the_marginals_at_their_order(
    sampler, order, monkeypatch
):
    end, steps, errors = 0.1, [25, 49, 97], []
    for n in steps:
        levels = NoiseLevels(num_steps=n, sigma_min=end, sigma_max=10.0).sigmas()[:-1]
        found = output_variance(sampler, levels, monkeypatch)
        errors.append(abs(found - (STD**2 + end**2)))
    slope = np.polyfit(np.log(np.subtract(steps, 1)), np.log(errors), 1)[0]
    assert -slope == pytest.approx(order, abs=0.15), errors


@pytest.mark.slow
def test_churn_keeps_the_moments_of_a_mixture():
    """40,000 pixels, each a sample of its own, down to the data themselves."""
    noise = samplers.initial_noise(range(4), (100, 100, 1))
    sampler = StochasticHeun(s_churn=8.0, s_noise=1.0)
    levels = NoiseLevels(num_steps=64, sigma_max=10.0).sigmas()
    found = sample(sampler, noise, levels, denoise=mixture_denoiser).ravel()
    weight, mean, std = MIXTURE
    rng = np.random.default_rng(0)
    part = rng.choice(2, size=found.size, p=weight)
    data = rng.normal(mean[part], std[part])
    for power in (1, 2, 3, 4):
        expected = np.mean(data**power)
        spread = np.std(data**power) / np.sqrt(len(data))
        assert np.mean(found**power) == pytest.approx(expected, abs=6 * spread), power


def heun_factor(now, then):
    """What one of Heun's steps multiplies x by, as D is linear; Euler's to 0."""
    slopes = [sigma / (STD**2 + sigma**2) for sigma in (now, then)]
    euler = 1 + (then - now) * slopes[0]
    return 1 + (then - now) * (slopes[0] + slopes[1] * euler) / 2 if then else euler


def test_32_steps_of_heun_follow_the_exact_path(noise):
    factor = np.prod(list(itertools.starmap(heun_factor, itertools.pairwise(LEVELS))))
    x = sample(Heun(), noise, LEVELS)
    np.testing.assert_allclose(x, 80 * factor * noise, rtol=1e-4)
    # dx/dsigma = x sigma / (s^2 + sigma^2), so that x ~ sqrt(s^2 + sigma^2).
    np.testing.assert_allclose(x, noise * 80 * STD / np.hypot(STD, 80), rtol=0.02)


def test_churn_adds_the_variance_that_its_higher_noise_level_has(monkeypatch):
    """Variances in closed form: churn adds raised^2 - sigma^2, a step multiplies."""
    steps, amount = 24, 6.0
    sigmas = NoiseLevels(num_steps=steps).sigmas()
    variance = STD**2 + 80.0**2
    for now, then in itertools.pairwise(sigmas):
        raised = now * (1 + amount / steps)
        variance += 1.1**2 * (raised**2 - now**2)
        variance *= heun_factor(raised, then) ** 2
    sampler = StochasticHeun(amount, s_min=0.0, s_max=100.0, s_noise=1.1)
    found = output_variance(sampler, sigmas, monkeypatch)
    assert found == pytest.approx(variance, rel=1e-4)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_step_to_0_lands_on_the_denoised_image(name, noise):
    x = sample(SAMPLERS[name](), noise, [1.0, 0.0])
    if name == "stochastic_heun":  # of an image with more noise than that
        assert x.shape == noise.shape
        return
    denoised = gaussian_denoiser(jnp.asarray(noise), jnp.ones(len(noise)))
    np.testing.assert_allclose(x, denoised, rtol=1e-5)


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_seed_gives_one_image_in_any_batch(name):
    def images(seeds):
        noise = samplers.initial_noise(seeds, SHAPE)
        levels = NoiseLevels(num_steps=8).sigmas()
        return sample(SAMPLERS[name](), noise, levels, seeds)

    together, reordered = images([3, 14, 15, 92]), images([92, 3])
    np.testing.assert_allclose(reordered, together[[3, 0]], rtol=1e-6, atol=1e-7)
    assert not np.allclose(together[0], together[1])


def test_initial_noise_is_white_and_of_unit_variance():
    noise = samplers.initial_noise(range(1000), SHAPE).astype(np.float64)
    assert noise.mean() == pytest.approx(0, abs=0.02)
    assert noise.std() == pytest.approx(1, abs=0.02)
    flat = noise.reshape(1000, -1)
    np.testing.assert_allclose(flat.T @ flat / 1000, np.eye(16), atol=0.2)


@pytest.mark.slow
def test_churn_raises_the_noise_by_at_most_sqrt_2_and_within_its_range(noise):
    sigmas = NoiseLevels(num_steps=4).sigmas()
    for amount, raise_by in [(0.4, 1.1), (100.0, 2**0.5)]:
        sampler = StochasticHeun(amount, s_min=0.01, s_max=50.0)
        found = evaluations(sampler, noise, sigmas)
        # Of 80, 3.6..., 0.07..., 0.002 the two in the middle lie in [s_min, s_max].
        factors = np.array([1.0, raise_by, raise_by, 1.0])
        starts = [found[i] for i in (0, 2, 4, 6)]
        np.testing.assert_allclose(starts, sigmas[:-1] * factors, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("make", [StochasticHeun, AncestralEuler])
def test_noise_is_drawn_anew_at_every_step_and_for_every_seed(make, noise, monkeypatch):
    drawn, fresh = [], samplers.fresh_noise

    def remember(keys, step, like):
        drawn.append(np.asarray(fresh(keys, step, like)))
        return drawn[-1]

    monkeypatch.setattr(samplers, "fresh_noise", remember)
    with jax.disable_jit():
        sample(make(), noise, [2.0, 1.0, 0.5, 0.25])
    flat = np.unique(np.concatenate(drawn).reshape(-1, 16), axis=0)
    assert len(flat) == 3 * len(noise)  # a step's two evaluations see one noise
    assert np.abs(np.corrcoef(flat) - np.eye(len(flat))).max() < 0.9
    assert flat.std() == pytest.approx(1, abs=0.15)
