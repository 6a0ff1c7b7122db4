"""Divergence from a density that is known, against closed forms and faults made on purpose."""

import types

import numpy as np
import pytest

import configs
from edm_jax.data import plane
from edm_jax.evals import density

ROUND = plane.Mixture(
    np.ones(1), np.zeros((1, 2)), np.array([[1.0, 0.0]]), np.array([[1.0, 1.0]])
)


def test_entropy_and_divergence_of_gaussians_are_the_closed_forms():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((8000, 2)) * [0.5, 0.8] + [0.3, 0.0]
    entropy = np.log(2 * np.pi * np.e) + np.log(0.5 * 0.8)
    assert density.entropy_of(x) == pytest.approx(entropy, abs=0.03)
    found = density.compare(ROUND, x, 1e-3)
    expected = (0.5**2 + 0.8**2 + 0.3**2) / 2 - 1 - np.log(0.5 * 0.8)
    assert found["kl"] == pytest.approx(expected, abs=0.03)
    assert found["kl_floor"] == pytest.approx(0, abs=0.05)


def _upper_half(x):
    """The upper half of each class, each of its points twice (and apart by noise)."""
    kept = np.zeros_like(x)
    for label in (0, 1):
        own = x[label::2]
        upper = own[np.argsort(own[:, 1])[1000:]]
        kept[label::2] = np.repeat(upper, 2, axis=0)
    return kept


@pytest.fixture(scope="module")
def measure():
    config = configs.load(f"{configs.letter_path('g')}:toy")
    labels = np.arange(4000) % 2
    rng = np.random.default_rng(5)
    exact = np.zeros((4000, 2))
    for label, mixture in enumerate(config.data.reader.mixtures()):
        exact[labels == label] = mixture.sample(rng, 2000)

    def measure(change=lambda x: x):
        images = np.float32(change(exact) * 0.5).reshape(-1, 1, 1, 2)
        subject = types.SimpleNamespace(config=config, images=images, labels=labels)
        return density.Density().evaluate(subject)

    return measure


def test_exact_draws_are_at_the_floor(measure):
    found = measure()
    assert next(iter(found)) == density.Density.headline  # which sweeps are named after
    assert found["density_kl"] == pytest.approx(found["density_kl_floor"], abs=0.06)
    assert found["density_outliers"] == pytest.approx(0.001, abs=0.002)


def test_blur_is_worse_by_its_cross_entropy_and_dropped_modes_by_their_entropy(measure):
    exact = measure()
    rng = np.random.default_rng(0)
    blurred = measure(lambda x: x + 0.05 * rng.standard_normal(x.shape))
    assert blurred["density_cross_entropy"] > exact["density_cross_entropy"] + 0.2
    assert blurred["density_entropy"] > exact["density_entropy"]
    assert blurred["density_outliers"] > 0.02
    # Every place keeps the half of its class that lies above the rest, twice each.
    dropped = measure(_upper_half)
    assert dropped["density_kl"] > exact["density_kl"] + 0.5


def test_data_without_a_known_density_are_refused():
    config = configs.load(f"{configs.letter_path('g')}:digits-tiny")
    subject = types.SimpleNamespace(config=config)
    with pytest.raises(ValueError, match="leave it out of evaluation.evaluators"):
        density.Density().evaluate(subject)


def test_samples_that_are_not_finite_are_refused(measure):
    with pytest.raises(ValueError, match="1 of 2000 samples are not finite"):
        measure(lambda x: np.where(np.arange(4000)[:, None] == 7, np.nan, x))
