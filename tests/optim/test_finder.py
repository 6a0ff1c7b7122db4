"""The learning-rate finder on losses whose answers are known."""

import math

import numpy as np
import pytest

from edm_jax.optim import finder


def descent(curvatures, noise=0.0, seed=0):
    """The loss after a step of noisy gradient descent on sum(c x^2) / 2."""
    c = np.asarray(curvatures, np.float64)
    x = np.ones_like(c)
    rng = np.random.default_rng(seed)

    def step(rate):
        nonlocal x
        x = x - rate * (c * x + noise * rng.standard_normal(c.shape))
        return np.sum(c * x**2) / 2

    return step


def logistic(rates, centre, width=1.0):
    """A loss that falls from 1 to 0 in log rate, steepest at `centre`."""
    return 1 / (1 + np.exp(np.log(rates / centre) / width))


RATES = finder.grid(1e-5, 1e3, 100)


@pytest.mark.parametrize("curvature", [0.03, 1.0, 70.0])
def test_gradient_descent_diverges_at_two_over_the_curvature(curvature):
    curve = finder.search(descent([curvature]), RATES)
    assert curve.diverged
    assert 1 / 1.5 < curve.limit * curvature / 2 < 1.5


@pytest.mark.parametrize("seed", range(3))
def test_the_largest_curvature_of_many_sets_the_limit(seed):
    # The finer the grid, the sooner its growth shows above the loss of the others.
    rates = finder.grid(1e-4, 1e3, 400)
    spectrum = np.geomspace(1e-3, 1, 20)
    curve = finder.search(descent(spectrum, 0.1, seed), rates)
    assert curve.diverged and 1 / 1.5 < curve.limit / 2 < 1.5


@pytest.mark.parametrize("seed", range(8))
def test_a_direction_that_had_died_out_sets_the_limit_all_the_same(seed):
    """Without noise that direction has vanished when the rate reaches 2 / lambda."""
    rng = np.random.default_rng(seed)
    least, most = 10 ** rng.uniform(-3, 0), 10 ** rng.uniform(0.5, 3)
    spectrum = np.geomspace(least, most, rng.integers(2, 60))
    curve = finder.search(descent(spectrum), finder.grid(1e-6, 10.0, 100))
    assert curve.diverged and 1 / 1.5 < curve.limit * most / 2 < 1.5


def test_the_average_of_equal_losses_is_that_loss_from_the_first_on():
    np.testing.assert_allclose(finder.smooth([3.0] * 30), 3.0, rtol=1e-12)


def test_the_average_is_the_weighted_mean_of_the_losses():
    losses = np.random.default_rng(0).random(20)
    for n in range(1, 21):
        weights = 0.9 ** np.arange(n)[::-1]
        expected = weights @ losses[:n] / weights.sum()
        assert finder.smooth(losses, 0.9)[n - 1] == pytest.approx(expected, rel=1e-12)


def test_a_loss_that_is_not_finite_ends_the_search_and_is_left_out():
    losses = iter([1.0, 0.9, 0.8, math.nan, 0.1])
    curve = finder.search(lambda rate: next(losses), RATES[:5])
    assert curve.losses.tolist() == [1.0, 0.9, 0.8] and curve.diverged
    assert next(losses) == 0.1  # no step more


def test_a_search_ends_once_the_smoothed_loss_is_four_times_its_best():
    taken = []

    def step(rate):
        taken.append(rate)
        return 1.0 if len(taken) < 50 else 5.0

    curve = finder.search(step, RATES)
    # 1 + 4 (1 - 0.8^k) is above 4 from the seventh on.
    assert len(taken) == 49 + 7 and curve.diverged
    assert not finder.search(lambda rate: 1.0, RATES).diverged


@pytest.mark.parametrize("steps", [60, 400])
def test_the_steepest_place_is_that_over_the_logarithm_of_the_rate(steps):
    """Over the rate itself it would be far lower: 1 / rate times as steep."""
    rates, centre = finder.grid(1e-6, 10, steps), 3e-3
    values = iter(logistic(rates, centre))
    curve = finder.search(lambda rate: next(values), rates)
    (steepest, *_) = finder.suggestions(curve)
    apart = math.log(rates[1] / rates[0])
    assert abs(math.log(steepest.rate / centre)) < 0.2 + apart
    # d loss / d log rate is 1/4 there, d loss / d log10 rate ln(10) / 4 = 0.58.
    slope = float(steepest.why.split("by ")[1].split()[0])
    assert slope == pytest.approx(0.58, rel=0.25)


def test_the_valley_is_two_thirds_into_the_longest_fall():
    parts = [
        np.linspace(1, 1 - 1e-4, 60),  # a longer one, but flat
        np.linspace(1, 0.9, 5),
        np.linspace(0.95, 0.2, 31),
        np.linspace(0.3, 0.6, 4),
    ]
    loss = np.concatenate(parts)
    curve = finder.Curve(np.geomspace(1e-4, 1, len(loss)), loss, loss, False)
    _, valley, minimum = finder.suggestions(curve)
    assert valley.rate == curve.places[65 + 20]
    assert minimum.rate == pytest.approx(curve.places[95] / 10)


def test_a_smoothed_loss_belongs_to_the_smoothed_logarithm_of_the_rate():
    """Where the loss is linear in log rate, smoothing does not move the line."""
    loss = 5 - 0.3 * np.log(RATES)
    curve = finder.Curve(RATES, loss, finder.smooth(loss), False)
    np.testing.assert_allclose(5 - 0.3 * np.log(curve.places), curve.smoothed)


def test_repeats_say_their_geometric_mean_and_range():
    curves = []
    for centre in (1e-3, 4e-3):
        loss = logistic(RATES, centre) + 1e-4 * RATES / centre
        curves.append(finder.Curve(RATES, loss, loss, False))
    steepest, _, minimum = finder.agreement(curves)
    for each in (steepest, minimum):
        assert each.high / each.low == pytest.approx(4, rel=0.25)
        assert each.rate == pytest.approx(math.sqrt(each.low * each.high))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 1.0, 100), "minimum above 0"),
        ((1.0, 1.0, 100), "cannot grow from 1 to 1"),
        ((1e-3, math.inf, 100), "finite maximum"),
        ((1e-3, 1.0, 3), "3 steps are too few"),
    ],
)
def test_a_grid_that_does_not_grow_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        finder.grid(*arguments)


def test_a_loss_that_only_rises_is_refused():
    loss = np.linspace(1, 2, 50)
    curve = finder.Curve(RATES[:50], loss, loss, False)
    with pytest.raises(ValueError, match="smaller minimum"):
        finder.suggestions(curve)
