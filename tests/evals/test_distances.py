"""Distances between sets of features, against scalar loops and closed forms."""

import itertools
import math

import numpy as np
import pytest

from edm_jax.evals import distances, frechet, protocol


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_the_kernel_distance_is_its_definition_pair_by_pair(rng):
    real, fake = rng.standard_normal((9, 5)), 0.5 + rng.standard_normal((9, 5))

    def kernel(x, y):
        return (sum(a * b for a, b in zip(x, y, strict=True)) / 5 + 1) ** 3

    def within(x):
        pairs = itertools.permutations(range(9), 2)
        return sum(kernel(x[i], x[j]) for i, j in pairs) / (9 * 8)

    between = sum(kernel(x, y) for x in real for y in fake) / 81
    wanted = within(real) + within(fake) - 2 * between
    # A subset of all images is always the same.
    mean, std = distances.kid(real, fake, subsets=3)
    assert mean == pytest.approx(wanted, rel=1e-12)
    assert std == pytest.approx(0, abs=1e-12)


def test_the_kernel_distance_is_unbiased(rng):
    halves = rng.standard_normal((2, 3000, 4))
    mean, std = distances.kid(*halves, subsets=50, size=200)
    assert abs(mean) < 3 * std / math.sqrt(50)
    assert distances.kid(halves[0], 1 + halves[1], 50, 200)[0] > 30 * std


def test_the_inception_score_is_the_exponential_of_the_mean_divergence(rng):
    logits = 2 * rng.standard_normal((7, 4))
    p = [[math.exp(v) / sum(map(math.exp, row)) for v in row] for row in logits]
    marginal = [sum(column) / 7 for column in zip(*p, strict=True)]
    divergence = sum(
        q * math.log(q / m) for row in p for q, m in zip(row, marginal, strict=True)
    )
    mean, std = distances.inception_score(logits, splits=1)
    assert mean == pytest.approx(math.exp(divergence / 7), rel=1e-12)
    assert std == 0


def test_certain_and_equally_frequent_classes_score_their_number():
    logits = np.tile(1e4 * np.eye(8), (5, 1))  # 40 images
    assert distances.inception_score(logits, splits=1)[0] == pytest.approx(8)
    assert distances.inception_score(np.zeros((20, 8)))[0] == pytest.approx(1)
    with pytest.raises(ValueError, match="10 parts needs at least as many images"):
        distances.inception_score(np.zeros((9, 8)))


def by_loops(real, fake, k):
    """Precision, recall, density and coverage, from their definitions."""

    def radius(points, i):
        others = [math.dist(points[i], p) for j, p in enumerate(points) if j != i]
        return sorted(others)[k - 1]

    def holds(points):
        radii = [radius(points, i) for i in range(len(points))]
        return lambda i, x: math.dist(points[i], x) <= radii[i]

    in_real, in_fake = holds(real), holds(fake)
    rows, columns = range(len(real)), range(len(fake))
    precision = sum(any(in_real(i, y) for i in rows) for y in fake) / len(fake)
    recall = sum(any(in_fake(j, x) for j in columns) for x in real) / len(real)
    density = sum(in_real(i, y) for i in rows for y in fake) / (k * len(fake))
    coverage = sum(any(in_real(i, y) for y in fake) for i in rows) / len(real)
    return precision, recall, density, coverage


@pytest.mark.parametrize("block", [1 << 24, 70], ids=["whole", "blocks"])
def test_manifolds_are_those_of_a_loop_over_all_pairs(rng, monkeypatch, block):
    monkeypatch.setattr(distances, "_BLOCK", block)
    real, fake = rng.standard_normal((31, 2)), 0.7 * rng.standard_normal((23, 2)) + 1
    for k in (1, 3, 5):
        found = (
            *distances.precision_recall(real, fake, k),
            *(distances.density_coverage(real, fake, k)),
        )
        assert found == pytest.approx(by_loops(real, fake, k), abs=1e-12)


def test_a_set_is_its_own_manifold_and_a_lost_mode_costs_recall_alone(rng):
    real = rng.standard_normal((60, 3)) + 100 * (np.arange(60) % 2)[:, None]
    assert distances.precision_recall(real, real.copy()) == (1, 1)
    assert distances.density_coverage(real, real.copy())[1] == 1
    precision, recall = distances.precision_recall(real, real[::2])
    assert precision == 1 and recall == 0.5
    assert distances.density_coverage(real, real[::2])[1] == 0.5
    with pytest.raises(ValueError, match="needs more than 3 images, not 3"):
        distances.precision_recall(real, real[:3])


def test_draws_report_the_lowest_and_an_interval():
    draws = protocol.Draws((3.0, 1.0, 2.0))
    assert (draws.lowest, draws.mean) == (1, 2)
    # Student's t of 2 degrees of freedom at 97.5% is 4.3027.
    assert draws.half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert protocol.Draws((3.0,)).half_width is None


@pytest.mark.slow
def test_the_bias_of_a_frechet_distance_is_extrapolated_away(rng):
    """Both sets are of one Gaussian: without bias the distance is 0."""
    features = rng.standard_normal((2000, 64))
    reference = frechet.Gaussian.of(np.zeros(64), np.eye(64))

    def distance(few):
        return frechet.frechet_distance(frechet.gaussian_fit(few), reference)

    whole, at_infinity = distance(features), protocol.at_infinity(distance, features)
    assert whole > 0.5
    assert abs(at_infinity) < whole / 5
    # Of a distance that is exactly a + b / N the intercept is a.
    exact = protocol.at_infinity(lambda few: 3 + 40 / len(few), features)
    assert exact == pytest.approx(3, rel=1e-9)
    with pytest.raises(ValueError, match="at least 20 images, not 19"):
        protocol.at_infinity(distance, features[:19])
