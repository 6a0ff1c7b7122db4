"""The exact density of the plane: against float64, differences and its own samples."""

import jax.numpy as jnp
import numpy as np
import pytest

import configs
from edm_jax import data
from edm_jax.data import plane
from edm_jax.data.readers import Fractal


@pytest.fixture(scope="module")
def mixture():
    return plane.fractal(2)[1]


def log_density(mixture, x, sigma):
    """By the formula of a Gaussian with a covariance matrix, in float64."""
    total = np.zeros(len(x))
    for weight, mean, along, std in zip(
        mixture.weight, mixture.mean, mixture.along, mixture.std, strict=True
    ):
        axes = np.array([along, [-along[1], along[0]]])
        covariance = axes.T @ np.diag(std**2) @ axes + sigma**2 * np.eye(2)
        centred = x - mean
        power = np.einsum("ni,ij,nj->n", centred, np.linalg.inv(covariance), centred)
        norm = 2 * np.pi * np.sqrt(np.linalg.det(covariance))
        total += weight * np.exp(-power / 2) / norm
    return np.log(np.maximum(total, 1e-300))


@pytest.mark.slow
@pytest.mark.parametrize("sigma", [0.02, 0.3, 5.0])
def test_density_and_denoiser_agree_with_float64_and_its_slope(mixture, sigma):
    rng = np.random.default_rng(0)
    x = mixture.sample(rng, 200) + sigma * rng.standard_normal((200, 2))
    expected = log_density(mixture, x, sigma)
    found = mixture.log_density(jnp.float32(x), sigma)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    # Tweedie: D = x + sigma^2 d ln p / dx.
    steps = 1e-5 * np.eye(2)
    slope = [
        log_density(mixture, x + h, sigma) - log_density(mixture, x - h, sigma)
        for h in steps
    ]
    exact = x + sigma**2 * np.stack(slope, axis=1) / 2e-5
    points = jnp.float32(x).reshape(-1, 1, 1, 2)
    denoised = mixture.denoise(points, jnp.full(200, sigma, jnp.float32))
    np.testing.assert_allclose(denoised.reshape(-1, 2), exact, atol=2e-3)


@pytest.mark.slow
def test_samples_have_the_moments_of_the_density(mixture):
    x = mixture.sample(np.random.default_rng(0), 100_000)
    np.testing.assert_allclose(x.mean(axis=0), mixture.weight @ mixture.mean, atol=0.01)
    # E[ln p] under p, by a grid that holds everything.
    side = np.linspace(-2.5, 2.5, 501)
    grid = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    log = log_density(mixture, grid, 0.05)
    mass = np.exp(log) * 0.01**2
    assert mass.sum() == pytest.approx(1, abs=1e-3)
    noisy = x[:20_000] + 0.05 * np.random.default_rng(1).standard_normal((20_000, 2))
    found = np.mean(mixture.log_density(jnp.float32(noisy), 0.05))
    assert found == pytest.approx(np.sum(mass * log), abs=0.03)


def test_the_workload_has_mean_0_and_the_deviation_that_the_network_expects():
    config = configs.load(f"{configs.letter_path('g')}:toy").data
    found = data.load_split(config, "test", 20_000)
    assert found["image"].shape == (20_000, 1, 1, 2)
    assert np.abs(found["image"].mean(axis=(0, 1, 2))).max() < 0.02
    assert found["image"].std() == pytest.approx(0.5, abs=0.01)
    assert np.bincount(found["label"]).tolist() == [10_000, 10_000]


def test_splits_differ_and_stay_the_same():
    reader = Fractal(depth=1, count=80)
    config = configs.load(f"{configs.letter_path('g')}:toy").data
    train, test = (reader.arrays(config, split)[0] for split in ("train", "test"))
    assert (len(train), len(test)) == (80, 10) and not np.isin(test, train).any()
    np.testing.assert_array_equal(train, reader.arrays(config, "train")[0])
    with pytest.raises(ValueError, match="no 'validation'"):
        reader.arrays(config, "validation")


def test_together_is_the_mean_of_the_classes():
    one, other = plane.fractal(1)
    both = plane.together([one, other])
    x = np.random.default_rng(0).normal(size=(50, 2))
    parts = [log_density(each, x, 0.5) for each in (one, other)]
    expected = np.logaddexp(*parts) - np.log(2)
    np.testing.assert_allclose(both.log_density(jnp.float32(x), 0.5), expected, 1e-4)
