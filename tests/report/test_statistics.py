"""Claims about means over seeds, their intervals, and tests of differences."""

import math

import numpy as np
import pytest
from scipy import stats

from edm_jax.report.statistics import Difference, difference, estimate, holm


def by_seed(values):
    return dict(enumerate(values))


@pytest.mark.parametrize(
    ("n", "quantile"), [(2, 12.706), (3, 4.303), (4, 3.182), (6, 2.571), (11, 2.228)]
)
def test_the_half_width_is_the_tabled_t_quantile_times_s_over_root_n(n, quantile):
    values = [1.0, 2.0, 4.0, 8.0, 3.0, 5.0, 9.0, 7.0, 6.0, 2.5, 1.5][:n]
    found = estimate(values)
    s = math.sqrt(sum((v - sum(values) / n) ** 2 for v in values) / (n - 1))
    assert found.mean == pytest.approx(sum(values) / n)
    assert found.half_width == pytest.approx(quantile * s / math.sqrt(n), rel=2e-4)
    assert found.n == n


@pytest.mark.parametrize("n", [2, 3, 5])
def test_the_interval_covers_the_mean_19_times_in_20(n):
    rng = np.random.default_rng(1)
    trials = 4000
    found = [estimate(rng.normal(7, 3, n).tolist()) for _ in range(trials)]
    covered = sum(abs(e.mean - 7) <= e.half_width for e in found) / trials
    # Four standard errors of a proportion of 0.95 over so many trials.
    assert covered == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / trials))


def test_one_seed_has_a_mean_and_no_interval():
    assert (estimate([3.0]).mean, estimate([3.0]).half_width) == (3.0, None)
    assert estimate([]) is None


def test_equal_values_have_an_interval_of_no_width():
    # A third of 0.3 is not 0.1: the spread of rounding is none.
    found = estimate([0.1, 0.1, 0.1])
    assert (found.mean, found.half_width) == (0.1, 0.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_never_dropped_from_the_mean(bad):
    found = estimate([1.0, bad, 2.0])
    assert found.n == 3
    assert found.half_width is None
    assert not math.isfinite(found.mean)
    for sides in (([1.0, bad], [1.0, 2.0]), ([1.0, 2.0], [bad, 1.0])):
        paired = difference(*map(by_seed, sides))
        welch = difference(by_seed(sides[0]), {7: sides[1][0], 8: sides[1][1]})
        for found in (paired, welch):
            assert not math.isfinite(found.mean)
            assert (found.p, found.half_width) == (None, None)


def test_common_seeds_are_compared_in_pairs():
    rng = np.random.default_rng(2)
    baseline = rng.normal(0, 5, 6)
    values = baseline + rng.normal(0.3, 0.2, 6)
    found = difference(by_seed(values), by_seed(baseline))
    oracle = stats.ttest_rel(values, baseline)
    interval = oracle.confidence_interval(0.95)
    assert found.paired
    assert found.n == 6
    assert found.p == pytest.approx(oracle.pvalue, rel=1e-9)
    assert found.mean - found.half_width == pytest.approx(interval.low)
    assert found.mean + found.half_width == pytest.approx(interval.high)


def test_seeds_are_matched_by_number_and_not_by_place():
    found = difference({2: 12.1, 0: 10.0, 1: 11.0}, {0: 9.0, 1: 10.0, 2: 11.0, 5: 99.0})
    assert (found.n, found.paired) == (3, True)
    assert found.mean == pytest.approx(3.1 / 3)


@pytest.mark.parametrize("common", [0, 1])
def test_without_two_common_seeds_the_test_is_welchs(common):
    values = {0: 1.0, 1: 1.4, 2: 0.7}
    other = [2.0, 2.9, 1.1, 6.0]
    baseline = dict(zip(range(3 - common, 9), other, strict=False))
    oracle = stats.ttest_ind(list(values.values()), other, equal_var=False)
    interval = oracle.confidence_interval(0.95)
    found = difference(values, baseline)
    assert (found.n, found.paired) == (3, False)
    assert found.p == pytest.approx(oracle.pvalue, rel=1e-9)
    assert found.mean - found.half_width == pytest.approx(interval.low)
    assert found.mean + found.half_width == pytest.approx(interval.high)


def test_against_a_side_without_spread_welchs_test_is_that_of_one_sample():
    other = [1.3, 1.5, 1.4]
    oracle = stats.ttest_1samp(other, 1.0)
    found = difference(dict(zip((7, 8, 9), other, strict=True)), by_seed([1.0, 1.0]))
    assert found.p == pytest.approx(oracle.pvalue)


@pytest.mark.parametrize("paired", [True, False])
def test_no_difference_is_called_significant_one_time_in_20(paired):
    rng = np.random.default_rng(3)
    seeds = range(3) if paired else range(10, 13)
    trials, false = 4000, 0
    for _ in range(trials):
        values, other = rng.normal(1, 0.1, (2, 3)).tolist()
        found = difference(by_seed(values), dict(zip(seeds, other, strict=True)))
        false += found.p < 0.05
    # Welch's test of so few is a little too careful, never bolder than it says.
    assert false / trials < 0.05 + 4 * math.sqrt(0.05 * 0.95 / trials)
    assert false / trials > 0.025


@pytest.mark.parametrize(
    ("values", "baseline"),
    [
        ([1.0], [2.0]),
        ([1.0], [2.0, 3.0]),
        ([1.0, 2.0], [2.0]),
    ],
)
def test_one_seed_on_a_side_has_a_difference_and_no_test(values, baseline):
    found = difference(by_seed(values), by_seed(baseline))
    assert found.mean == pytest.approx(np.mean(values) - np.mean(baseline))
    assert (found.p, found.half_width, found.n) == (None, None, 1)
    assert not found.significant
    assert difference({}, by_seed(baseline)) is None


def test_differences_without_spread_are_not_tested():
    # Rounding makes 0.4 - 0.2 and 0.3 - 0.1 differ, which would be p = 1e-16.
    found = difference(by_seed([0.3, 0.4, 0.5]), by_seed([0.1, 0.2, 0.3]))
    assert found.mean == pytest.approx(0.2)
    assert (found.half_width, found.p) == (0.0, None)
    found = difference(by_seed([1.0, 1.0]), {7: 2.0, 8: 2.0})
    assert (found.half_width, found.p, found.paired) == (0.0, None, False)


def test_holm_multiplies_the_smallest_by_the_number_and_never_falls():
    # By hand: .01 * 4, .02 * 3, .03 * 2 raised to .06 as before it, .5 * 1.
    assert holm([0.03, 0.5, 0.01, 0.02]) == pytest.approx([0.06, 0.5, 0.04, 0.06])
    assert holm([0.6, 0.4]) == pytest.approx([0.8, 0.8])
    assert holm([0.9, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_holm_keeps_any_false_claim_to_one_table_in_20():
    rng = np.random.default_rng(4)
    trials = 4000
    tables = rng.uniform(size=(trials, 6)).tolist()
    false = sum(min(holm(table)) < 0.05 for table in tables) / trials
    assert false == pytest.approx(0.05, abs=4 * math.sqrt(0.05 * 0.95 / trials))


def test_significance_is_of_the_corrected_p_alone():
    def of(p_corrected):
        return Difference(1.0, 0.1, 3, True, p=0.001, p_corrected=p_corrected)

    assert of(0.049).significant
    assert not of(0.05).significant
    assert not of(None).significant
