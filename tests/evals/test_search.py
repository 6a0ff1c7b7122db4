"""A search finds the optimum in fewer evaluations than a grid, and says how surely."""

import numpy as np
import pytest

from edm_jax import ema
from edm_jax.evals import search, sweeps


def noisy(best, noise, rows=400):
    """Rows of (ln x − ln best)² plus noise that all values share, and a little of each."""
    rng = np.random.default_rng(0)
    shared = rng.standard_normal(rows)

    def measure(x):
        each = np.random.default_rng(int(1e6 * x)).standard_normal(rows)
        return np.log(x / best) ** 2 + shared + noise * each

    return measure


@pytest.mark.parametrize("best", [0.03, 0.07, 0.18])
def test_the_optimum_of_a_smooth_metric_is_found_in_ten_evaluations(best):
    found = search.minimum(noisy(best, 0.0), 0.02, 0.25)
    assert found.best == pytest.approx(best, rel=0.05)
    assert found.low < best < found.high and found.high / found.low < 1.2
    assert found.evaluations <= 13


@pytest.mark.parametrize("best", [0.01, 0.5])
def test_an_optimum_beyond_the_range_is_at_its_edge(best):
    found = search.minimum(noisy(best, 0.0), 0.02, 0.25)
    edge = 0.02 if best < 0.02 else 0.25
    assert found.best == pytest.approx(edge, rel=0.1)
    assert edge in (found.low, found.high)


def test_noise_widens_the_interval():
    exact = search.minimum(noisy(0.07, 0.0), 0.02, 0.25)
    rough = search.minimum(noisy(0.07, 3.0), 0.02, 0.25)
    assert max(rough.evaluations, exact.evaluations) <= search.MOST
    assert rough.low < 0.07 < rough.high
    assert rough.high / rough.low > 1.5 * exact.high / exact.low


def test_intervals_hold_the_optimum_as_often_as_they_should():
    held = 0
    for trial in range(100):
        rng = np.random.default_rng(trial)
        tables = {}

        def measure(x, rng=rng, tables=tables):
            rows = np.log(x / 0.07) ** 2 + 1.0 * rng.standard_normal(400)
            return tables.setdefault(x, rows)

        found = search.minimum(measure, 0.02, 0.25)
        held += found.low < 0.07 < found.high
    assert held >= 95


def test_a_range_from_zero_is_searched_without_logarithms():
    found = search.minimum(lambda x: np.array([(x - 0.3) ** 2]), 0.0, 0.9)
    assert found.best == pytest.approx(0.3, abs=0.02)


def test_a_family_is_a_profile_with_a_range():
    family = search.Family.parse("power:.05-0..0.9*power:.1")
    assert family.profile(0.5) == ema.parse_profile("power:.05-.5*power:.1")
    assert search.Family.parse("decay:cosine:0.1..1").words(0.25) == "decay:cosine:0.25"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("power:0.1", "write a profile with a range"),
        ("power:0.2..0.1", "must rise"),
        ("power:0.1..0.9", "choose a relative EMA length"),
        ("0.1..2*power:.1+1..2*power:.2", "in place of one number"),
        ("powr:0.1..0.2", "Did you mean 'power'"),
    ],
)
def test_what_is_no_family_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        search.Family.parse(text)


class HeldOut:
    """A held-out loss that is least for weights of 3, and counts its calls."""

    def __init__(self):
        self.calls = 0

    def losses(self, params):
        self.calls += 1
        rows = np.random.default_rng(0).standard_normal(50)
        return (params["w"][0] - 3.0) ** 2 + rows


def test_a_search_of_snapshots_resumes_from_its_points(tmp_path):
    # The weights rise with time: an average that is 1 old holds 4 - 1.
    rising = {s: 4 * (1 - ema.PowerProfile(s).moments(1).mean_age) for s in (0.05, 0.1)}
    for i in range(1, 33):
        for s, weight in rising.items():
            meta = ema.SnapshotMeta(ema.PowerProfile(s), i * 64, 64, "c0ffee")
            params = {"w": np.full(3, weight * i / 32)}
            ema.write_snapshot(tmp_path, params, meta)
    stored, heldout = ema.list_snapshots(tmp_path), HeldOut()
    family = search.Family.parse("power:0.03..0.25")
    memory = tmp_path / "points.json"
    found = sweeps.Sweeps(heldout, stored, memory).search(family)
    age = ema.PowerProfile(found.best).moments(1).mean_age
    assert age == pytest.approx(0.25, rel=0.1)
    assert heldout.calls == found.evaluations <= 14
    again = sweeps.Sweeps(heldout, stored, memory).search(family)
    assert again == found and heldout.calls == found.evaluations
