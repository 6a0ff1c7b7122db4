"""Fréchet distances against closed forms of Gaussians."""

import numpy as np
import pytest
import scipy.linalg

from edm_jax.evals import frechet


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def random_gaussian(rng, dims, rank=None):
    factor = rng.standard_normal((dims, rank or dims))
    return rng.standard_normal(dims), factor @ factor.T / dims


def distance_of(a, b):
    """Of two pairs (mean, covariance)."""
    return frechet.frechet_distance(frechet.Gaussian.of(*a), frechet.Gaussian.of(*b))


def test_distance_of_equal_sets_is_0(rng):
    features = rng.standard_normal((200, 16)) @ rng.standard_normal((16, 16))
    fit = frechet.gaussian_fit(features)
    assert abs(frechet.frechet_distance(fit, fit)) < 1e-8
    shuffled = frechet.gaussian_fit(features[rng.permutation(200)])
    assert abs(frechet.frechet_distance(fit, shuffled)) < 1e-8


def test_shifting_the_mean_costs_its_squared_length(rng):
    features, shift = rng.standard_normal((100, 8)), rng.standard_normal(8)
    fits = frechet.gaussian_fit(features), frechet.gaussian_fit(features + shift)
    assert frechet.frechet_distance(*fits) == pytest.approx(shift @ shift, rel=1e-8)


def test_diagonal_gaussians_differ_by_means_and_standard_deviations(rng):
    means = rng.standard_normal((2, 12))
    stds = rng.uniform(0.1, 3, (2, 12))
    fits = [(mean, np.diag(std**2)) for mean, std in zip(means, stds, strict=True)]
    expected = np.sum((means[0] - means[1]) ** 2) + np.sum((stds[0] - stds[1]) ** 2)
    assert distance_of(*fits) == pytest.approx(expected, rel=1e-10)


def test_distance_agrees_with_the_general_matrix_square_root(rng):
    a, b = random_gaussian(rng, 24), random_gaussian(rng, 24)
    root = scipy.linalg.sqrtm(a[1] @ b[1])
    expected = np.sum((a[0] - b[0]) ** 2) + np.trace(a[1] + b[1] - 2 * root.real)
    assert distance_of(a, b) == pytest.approx(expected, rel=1e-8)


def test_distance_is_symmetric_and_quadratic_in_scale(rng):
    a, b = random_gaussian(rng, 10), random_gaussian(rng, 10)
    distance = distance_of(a, b)
    assert distance_of(b, a) == pytest.approx(distance, rel=1e-9)
    doubled = [(2 * mean, 4 * covariance) for mean, covariance in (a, b)]
    assert distance_of(*doubled) == pytest.approx(4 * distance, rel=1e-9)


def test_singular_covariances_keep_their_closed_form(rng):
    # Two Gaussians on one line: the distance is that of their standard deviations.
    direction = rng.standard_normal(30)
    direction /= np.linalg.norm(direction)
    line = np.outer(direction, direction)
    fits = [(np.zeros(30), std**2 * line) for std in (1.0, 3.0)]
    assert distance_of(*fits) == pytest.approx(4.0, rel=1e-9)
    point = (np.zeros(30), np.zeros((30, 30)))
    assert distance_of(fits[1], point) == pytest.approx(9.0, rel=1e-9)


def test_few_images_of_many_features_give_what_an_independent_root_gives(rng):
    """The square root of S_a S_b by its eigenvalues, as no code here computes it."""
    features = [
        rng.standard_normal((n, 48)) @ np.diag(rng.uniform(0, 2, 48)) for n in (20, 31)
    ]
    means = [x.mean(axis=0) for x in features]
    covariances = [np.cov(x, rowvar=False) for x in features]
    eigenvalues = np.linalg.eigvals(covariances[0] @ covariances[1]).real
    # Of the product of ranks 19 and 30 only 19 are not 0.
    root = np.sqrt(np.sort(eigenvalues)[-19:]).sum()
    wanted = np.sum((means[0] - means[1]) ** 2)
    wanted += sum(np.trace(c) for c in covariances) - 2 * root
    fits = [frechet.gaussian_fit(x) for x in features]
    assert frechet.frechet_distance(*fits) == pytest.approx(wanted, rel=1e-10)
    pairs = zip(means, covariances, strict=True)
    assert distance_of(*pairs) == pytest.approx(wanted, rel=1e-10)


def test_moments_of_parts_merge_into_those_of_the_whole(rng):
    # Far from 0, where sums of squares would have lost the variance.
    features = 1e6 + rng.standard_normal((50, 4))
    parts = [features[:1], features[1:20], features[20:]]
    first, *others = map(frechet.Moments.of, parts)
    merged = sum(others, start=first)
    assert merged.count == 50
    found = merged.gaussian()
    np.testing.assert_allclose(found.mean, features.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(found.covariance, np.cov(features.T), rtol=1e-8)
    with pytest.raises(ValueError, match="at least two images"):
        first.gaussian()


@pytest.mark.parametrize("counts", [(20, 20), (7, 90), (90, 7)], ids=str)
def test_fewer_images_than_pixels_give_what_the_covariances_give(rng, counts):
    images = [rng.standard_normal((count, 8, 8, 1)) + count for count in counts]
    flat = [x.reshape(len(x), 64) for x in images]
    wanted = distance_of(*((x.mean(axis=0), np.cov(x, rowvar=False)) for x in flat))
    assert frechet.pixel_frechet(*images) == pytest.approx(wanted, rel=1e-6)
    assert frechet.pixel_frechet(images[0], images[0]) < 1e-9


def test_fit_is_the_mean_and_unbiased_covariance_in_float64(rng):
    # Around 1e3, float32 sums would lose the variance's last digits.
    features = (1e3 + rng.standard_normal((500, 3))).astype(np.float32)
    fit = frechet.gaussian_fit(features)
    wide = features.astype(np.float64)
    centred = wide - wide.mean(axis=0)
    np.testing.assert_allclose(fit.mean, wide.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(fit.covariance, centred.T @ centred / 499, rtol=1e-10)
    assert frechet.gaussian_fit(features[:, :1]).covariance.shape == (1, 1)


def test_one_feature_vector_is_refused():
    with pytest.raises(ValueError, match="N >= 2"):
        frechet.gaussian_fit(np.zeros((1, 4)))


def test_features_that_are_not_finite_are_named():
    images = np.zeros((5, 2, 2, 1))
    broken = images.copy()
    broken[3, 1, 0, 0], broken[4, 0, 0, 0] = np.nan, np.inf
    rows = "2 of 5 rows of features are not finite, the first of them row 3"
    with pytest.raises(ValueError, match=f"distance, samples: {rows}"):
        frechet.pixel_frechet(broken, images)
    with pytest.raises(ValueError, match=f"distance, reference images: {rows}"):
        frechet.pixel_frechet(images, broken)


@pytest.mark.parametrize("name", ["mean", "covariance"])
def test_statistics_that_are_not_finite_are_named(name):
    statistics = {"mean": np.zeros(2), "covariance": np.eye(2)}
    statistics[name] = statistics[name] * np.nan
    with pytest.raises(ValueError, match=f"needs a finite {name}\\.$"):
        frechet.Gaussian.of(**statistics)
