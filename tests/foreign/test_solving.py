"""Coefficients for any stored averages, against integrals and random walks."""

import itertools

import numpy as np
import pytest

from edm_jax import ema
from edm_jax.foreign import kernels, solving
from edm_jax.foreign.kernels import Plain, Power, Tracked, Traditional


def test_checkpoints_share_each_moment_as_linear_interpolation_does():
    times = [100, 250, 300, 480, 500]
    stored = [(t, Plain()) for t in times]
    [solution] = solving.solve(stored, [(500, ema.PowerProfile(0.2))], 0.0)
    # Step s of the walk lies between the last file before s and the first from s on.
    gamma = ema.PowerProfile(0.2).gamma
    share = (np.arange(501) / 500) ** (gamma + 1)
    steps = share[:-1]  # P before step s = 1, 2, …
    ends = np.array([0, *times])
    means = [steps[a:b].mean() for a, b in itertools.pairwise(ends)]
    wanted = np.diff([0.0, *means[1:], 1.0])
    assert np.allclose(solution.coefficients, wanted, atol=1e-6)
    within = [
        ((steps[a:b] - steps[a:b].mean()) ** 2).sum()
        for a, b in itertools.pairwise(ends[1:])
    ]
    first = (steps[:100] ** 2).sum()
    error = np.sqrt((first + sum(within)) / (steps**2).sum())
    assert solution.fit_error == pytest.approx(error, rel=1e-6)


@pytest.mark.slow
@pytest.mark.slow
@pytest.mark.parametrize("profile", [ema.PowerProfile(0.1), ema.UniformProfile(700.0)])
@pytest.mark.parametrize("basis", ["plain", "traditional", "power"])
def test_the_error_is_that_of_a_random_walk(basis, profile):
    t = 1000
    kinds = {
        "plain": [Plain()],
        "traditional": [Tracked(Traditional(0.99, "none"))],
        "power": [Tracked(Power(17.0), 2), Tracked(Power(3.0), 2)],
    }
    stored = [(s, kind) for s in range(50, t + 1, 50) for kind in kinds[basis]]
    [solution] = solving.solve(stored, [(t, profile)], 0.0)
    walk = np.random.default_rng(1).standard_normal((t + 1, 3000)).cumsum(axis=0)
    steps = np.arange(t + 1.0)

    def average(share):
        return np.diff(share) @ walk[1:]

    held = [average(kernel.share(steps, s)) for s, kernel in stored]
    wanted = average(solving.share(profile, steps, t))
    found = solution.coefficients @ np.stack(held)
    measured = np.linalg.norm(found - wanted) / np.linalg.norm(wanted - walk[-1])
    assert measured == pytest.approx(solution.fit_error, rel=0.1)


def test_many_steps_are_grouped_and_change_nothing():
    few = [(t, Tracked(Traditional(0.98, "none"))) for t in range(500, 8001, 500)]
    many = [(t * 100, Tracked(Traditional(0.98, "none"), 100)) for t, _ in few]
    [a] = solving.solve(few, [(8000, ema.PowerProfile(0.1))])
    [b] = solving.solve(many, [(800_000, ema.PowerProfile(0.1))])
    assert np.allclose(a.coefficients, b.coefficients, atol=3e-3)
    assert a.fit_error == pytest.approx(b.fit_error, rel=0.05)


def test_a_stored_average_is_its_own_best_fit():
    stored = [(t, Tracked(Power(g))) for t in (300, 600) for g in (17.0, 7.0)]
    wanted = stored[2][1].share(np.arange(600.0), 600)
    profile = ema.FunctionProfile(
        "mine", lambda tau: np.interp(tau, np.arange(0.5, 599.5), np.diff(wanted))
    )
    [solution] = solving.solve(stored, [(600, profile)])
    assert np.allclose(solution.coefficients, [0, 0, 1, 0], atol=0.02)


def test_rounding_noise_keeps_coefficients_small():
    stored = [
        (t, Tracked(Power(g), 10)) for t in range(100, 2001, 100) for g in (17.0, 3.0)
    ]
    target = [(2000, ema.PowerProfile(0.05))]
    [fine], [coarse] = (solving.solve(stored, target, u) for u in (2.0**-24, 2.0**-11))
    assert coarse.sum_abs < fine.sum_abs / 3
    assert coarse.fit_error > fine.fit_error


def test_updates_count_as_the_package_does():
    # PostHocEMA copies at the first call; then beta(c) = (1 - 1/(c + 1))^(gamma + 1).
    tracked = Tracked(Power(2.0), every=3, start=4)
    share = tracked.share(np.arange(13.0), 12)  # updates at 5, 8 and 11
    beta8, beta11 = (1 - 1 / 5) ** 3, (1 - 1 / 8) ** 3
    assert np.allclose(share, [0] * 5 + [beta8 * beta11] * 3 + [beta11] * 3 + [1] * 2)
    with pytest.raises(ValueError, match="too many"):
        kernels.Tracked(Power(2.0)).share(np.array([1.0]), 1e10)


def test_no_change_of_the_coefficients_makes_error_and_noise_smaller():
    stored = [(t, Tracked(Power(g), 5)) for t in (200, 400, 600) for g in (17.0, 3.0)]
    u, t = 2.0**-8, 600
    [solution] = solving.solve(stored, [(t, ema.PowerProfile(0.08))], u)
    steps = np.arange(float(t))
    basis = np.stack([kernel.share(steps, s) for s, kernel in stored], axis=1)
    wanted = (steps / t) ** (ema.PowerProfile(0.08).gamma + 1)

    def cost(x):
        return ((wanted - basis @ x) ** 2).sum() + t * ((0.4254 * u * x) ** 2).sum()

    x = solution.coefficients
    for i, j in itertools.combinations(range(len(x)), 2):
        for step in (-1e-4, 1e-4):  # keeps the sum
            moved = x.copy()
            moved[[i, j]] += [step, -step]
            assert cost(moved) > cost(x)
