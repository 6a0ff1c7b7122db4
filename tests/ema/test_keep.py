"""Snapshots are dropped with the least loss, and never below what was promised."""

import numpy as np
import pytest

from edm_jax import ema
from edm_jax.ema import keep, solver

ROUNDOFF = 2.0**-24


def stored(times):
    return [(float(t), ema.PowerProfile(s)) for t in times for s in (0.05, 0.1)]


def worst(times, shortest=0.015, longest=0.25):
    lengths = np.geomspace(shortest, longest, 25)
    targets = [(float(times[-1]), ema.PowerProfile(s)) for s in lengths]
    return max(each.error for each in ema.solve(stored(times), targets))


def test_the_losses_of_all_groups_are_those_of_solving_without_each():
    basis = stored(range(1, 25))
    lengths = (0.02, 0.03, 0.07, 0.15, 0.2)
    targets = [(24.0, ema.PowerProfile(s)) for s in lengths]
    groups = [[0, 1], [20, 21], [44, 45], [3], [10, 31, 47]]
    losses = solver.losses(basis, targets, groups)
    for group, row in zip(groups, losses, strict=True):
        rest = [each for i, each in enumerate(basis) if i not in group]
        found = [each.fit_error for each in ema.solve(rest, targets)]
        np.testing.assert_allclose(row, found, rtol=0.02)  # before Σx = 1


@pytest.mark.slow
def test_thinning_while_training_never_breaks_its_promise():
    policy = keep.Thinned(count=14)
    whole, left = [], []
    for now in range(1, 37):
        whole, left = [*whole, now], [*left, now]
        gone = policy.dropped(stored(left), ROUNDOFF, ())
        left = [t for t in left if t not in gone]
        assert left[-1] == now
        # Early on, not even all snapshots would do: then all are kept.
        assert left == whole or worst(left) <= 0.1 * 1.02
    assert whole != left
    assert len(left) == 14
    even = list(np.linspace(36 / 14, 36, 14))
    recent = list(range(23, 37))
    assert worst(left) < min(worst(even), worst(recent)) / 2


def test_a_promise_that_needs_more_keeps_more():
    times = list(range(1, 41))
    loose = keep.Thinned(count=4, shortest=0.03, longest=0.2, max_error=0.1)
    strict = keep.Thinned(count=4, shortest=0.03, longest=0.2, max_error=0.02)
    left = {}
    for policy in (loose, strict):
        gone = policy.dropped(stored(times), ROUNDOFF, ())
        left[policy] = [t for t in times if t not in gone]
        assert worst(left[policy], 0.03, 0.2) <= policy.max_error * 1.02
    assert 4 <= len(left[loose]) < len(left[strict]) < 40
    impossible = keep.Thinned(count=4, max_error=1e-6)
    assert impossible.dropped(stored(times), ROUNDOFF, ()) == []


def test_times_that_are_needed_stay():
    times = list(range(1, 33))
    policy = keep.Thinned(count=12, max_error=1.0)
    assert 6 in policy.dropped(stored(times), ROUNDOFF, ())
    assert 6 not in policy.dropped(stored(times), ROUNDOFF, (6.0,))
    assert keep.All().dropped(stored(times), ROUNDOFF, ()) == []


@pytest.mark.parametrize(
    "fields",
    [
        {"shortest": 0.3},
        {"shortest": 0.2, "longest": 0.1},
        {"longest": 0.29},
        {"count": 1},
        {"max_error": 0.0},
    ],
)
def test_an_impossible_promise_is_refused(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        keep.Thinned(**fields)
