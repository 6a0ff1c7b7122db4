"""EMA profiles and their algebra against the paper (App. C) and direct integration."""

import math
from fractions import Fraction

import numpy as np
import pytest

from edm_jax import ema

PAPER_GAMMAS = {
    0.05: 16.972199,
    0.10: 6.937204,
    0.13: 4.603597,
    0.15: 3.557869,
    0.20: 1.826214,
    0.25: 0.719824,
}
P = ema.PowerProfile(0.1)
TRACKED = [(0.05, 0.10), (0.05, 0.075, 0.10), (0.05, 0.06, 0.10, 0.20)]


def integrate(function, edges, nodes=40):
    """Gauss-Legendre on every interval between the edges."""
    x, w = np.polynomial.legendre.leggauss(nodes)
    low, high = np.asarray(edges[:-1])[:, None], np.asarray(edges[1:])[:, None]
    tau = (low + high) / 2 + (high - low) / 2 * x
    return float(np.sum((high - low) / 2 * w * function(tau)))


def moments_of(profile, t, edges):
    return [
        integrate(lambda tau, k=k: tau**k * profile.density(tau, t), edges)
        for k in range(3)
    ]


def geometric(t, smallest=1e-12):
    """Interval edges on (0, t] that resolve a power of τ near 0."""
    return np.concatenate([[0.0], t * np.geomspace(smallest, 1, 41)])


def stored_profiles(count, sigma_rels):
    profiles = [ema.PowerProfile(s) for s in sigma_rels]
    return [((i + 1) * 2.0**23, p) for i in range(count) for p in profiles]


def at_the_end(stored, sigma_rels):
    return [(stored[-1][0], ema.PowerProfile(s)) for s in sigma_rels]


@pytest.mark.parametrize(("sigma_rel", "gamma"), PAPER_GAMMAS.items())
def test_gamma_is_the_papers(sigma_rel, gamma):
    assert ema.gamma_from_sigma_rel(sigma_rel) == pytest.approx(gamma, abs=1e-6)


@pytest.mark.parametrize("sigma_rel", [0.001, 0.015, 0.05, 0.13, 0.25, 0.288])
def test_gamma_is_the_largest_root_of_the_papers_cubic(sigma_rel):
    roots = np.roots([1, 7, 16 - sigma_rel**-2, 12 - sigma_rel**-2])
    expected = roots[np.abs(roots.imag) < 1e-9].real.max()
    assert ema.gamma_from_sigma_rel(sigma_rel) == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("sigma_rel", np.linspace(0.001, 0.288, 50))
def test_sigma_rel_and_gamma_are_inverse(sigma_rel):
    gamma = ema.gamma_from_sigma_rel(sigma_rel)
    assert ema.sigma_rel_from_gamma(gamma) == pytest.approx(sigma_rel, rel=1e-14, abs=0)


@pytest.mark.parametrize("sigma_rel", [-0.1, 0.0, 0.28868, 1.0, math.nan])
def test_a_sigma_rel_without_a_profile_is_refused(sigma_rel):
    with pytest.raises(ValueError, match="choose a relative EMA length"):
        ema.PowerProfile(sigma_rel)


def test_a_gamma_without_a_profile_is_refused():
    with pytest.raises(ValueError, match="choose an exponent above 0"):
        ema.sigma_rel_from_gamma(0.0)


@pytest.mark.parametrize("sigma_rel", [0.02, 0.05, 0.10, 0.25])
def test_power_density_has_unit_mass_and_relative_deviation_sigma_rel(sigma_rel):
    t, profile = 3.0, ema.PowerProfile(sigma_rel)
    moments = moments_of(profile, t, geometric(t))
    assert moments[0] == pytest.approx(1, abs=1e-12)
    deviation = math.sqrt(moments[2] - moments[1] ** 2) / t
    assert deviation == pytest.approx(sigma_rel, rel=1e-10)
    assert not profile.density(np.array([-0.1, 3.01]), t).any()


def test_half_life_of_50_mimg_is_a_sigma_rel_of_03359_after_2147_mimg():
    t, profile = 2147.48e6, ema.TraditionalProfile(50.0)
    edges = np.union1d(np.linspace(0, t, 401), 1e9)  # with the rampup's knee
    moments = moments_of(profile, t, edges)
    assert moments[0] == pytest.approx(1, abs=1e-10)
    deviation = math.sqrt(moments[2] - moments[1] ** 2) / t
    assert deviation == pytest.approx(0.03359, abs=5e-6)


def test_traditional_updates_leave_the_traditional_density():
    profile, batch, steps = ema.TraditionalProfile(0.05), 500, 4000
    ends = batch * np.arange(1, steps + 1)
    new = ema.traditional_weight(batch, ends - batch, 0.05e6, 0.05)
    kept = np.cumprod((1 - new)[::-1])[::-1]
    mass = np.cumsum(new * np.append(kept[1:], 1.0))
    for i in (1000, 1990, 2600, 3800):  # before and after the knee at step 2000
        expected = moments_of(profile, ends[-1], geometric(ends[i]))[0]
        assert mass[i] == pytest.approx(expected, rel=0.02)


def test_traditional_weight_halves_over_a_half_life_and_starts_at_one():
    weight = ema.traditional_weight(50e6, np.array([0.0, 100e6, 2e9]), 50e6, 0.05)
    # At 100 Mimg the rampup holds the half-life at 5 Mimg: ten half-lives.
    np.testing.assert_allclose(weight, [1, 1 - 2.0**-10, 0.5], rtol=1e-14)
    assert ema.traditional_weight(50e6, 1.0, 50e6, math.inf) == pytest.approx(0.5)


@pytest.mark.parametrize("every", [1, 4, 10])
@pytest.mark.parametrize("sigma_rel", [0.05, 0.10, 0.25])
def test_updates_every_k_steps_leave_exactly_the_power_profile(every, sigma_rel):
    batch, steps = 2048, 200
    profile = ema.PowerProfile(sigma_rel)
    ends = every * batch * np.arange(1, steps // every + 1)
    weights = np.zeros(len(ends))
    for i, end in enumerate(ends):
        new = ema.power_weight(every * batch, end, profile.gamma)
        weights *= 1 - new
        weights[i] = new
    cumulative = (ends / ends[-1]) ** (profile.gamma + 1)
    np.testing.assert_allclose(
        weights, np.diff(cumulative, prepend=0), rtol=1e-10, atol=1e-300
    )
    second_half = moments_of(profile, ends[-1], [ends[-1] / 2, ends[-1]])[0]
    assert weights[ends > ends[-1] / 2].sum() == pytest.approx(second_half, abs=1e-12)


def test_power_weight_keeps_its_digits_at_two_billion_images():
    # Not 2^31: 1 - 2048/2^31 is exact in binary and would hide the cancellation.
    exact = 1 - (1 - Fraction(2048, 2_147_000_320)) ** 18
    weight = ema.power_weight(2048, 2_147_000_320, 17.0)
    assert weight == pytest.approx(float(exact), rel=1e-14, abs=0)


def test_the_first_update_takes_the_weights_as_they_are():
    assert ema.power_weight(2048, 2048, 16.97) == 1.0


@pytest.mark.parametrize("delta", [0, -1, 2049])
def test_an_update_over_an_impossible_number_of_images_is_refused(delta):
    with pytest.raises(ValueError, match="must span more than 0"):
        ema.power_weight(delta, 2048, 7.0)


def test_inner_products_are_the_papers():
    short, long = ema.gamma_from_sigma_rel(0.05), ema.gamma_from_sigma_rel(0.10)
    assert ema.inner_product(1, short, 1, long) == pytest.approx(5.7267132, abs=5e-8)
    assert ema.inner_product(0.5, short, 1, long) == pytest.approx(0.04673034, abs=5e-9)


@pytest.mark.parametrize("t_a", [0.01, 0.5, 0.999, 1.0, 1.7])
@pytest.mark.parametrize("sigma_a", [0.01, 0.05, 0.25])
@pytest.mark.parametrize("sigma_b", [0.015, 0.10, 0.28])
def test_inner_product_equals_the_integral_of_the_densities(t_a, sigma_a, sigma_b):
    a, b = ema.PowerProfile(sigma_a), ema.PowerProfile(sigma_b)
    integral = integrate(
        lambda tau: a.density(tau, t_a) * b.density(tau, 1.0), geometric(min(t_a, 1.0))
    )
    closed = ema.inner_product(t_a, a.gamma, 1.0, b.gamma)
    assert closed == pytest.approx(integral, rel=1e-10, abs=1e-290)


def test_inner_product_stays_finite_for_extreme_profiles():
    t = np.array([1.0, 1e-9])
    product = ema.inner_product(t[:, None], 1e4, t, 1e4)
    assert np.isfinite(product).all()
    assert product[0, 1] == product[1, 0] == 0


@pytest.mark.parametrize("sigma_rels", TRACKED)
def test_a_stored_profile_is_reproduced(sigma_rels):
    stored = stored_profiles(64, sigma_rels)
    targets = stored[-len(sigma_rels) :]
    for i, solution in enumerate(ema.solve(stored, targets)):
        expected = np.zeros(len(stored))
        expected[len(stored) - len(targets) + i] = 1
        np.testing.assert_allclose(solution.coefficients, expected, atol=1e-12)
        assert solution.fit_error < 1e-7


def test_coefficients_sum_to_one_and_sum_abs_is_theirs():
    stored = stored_profiles(64, (0.05, 0.10))
    targets = at_the_end(stored, (0.02, 0.15, 0.25))
    for solution in ema.solve(stored, targets):
        assert solution.coefficients.sum() == pytest.approx(1, abs=1e-12)
        assert solution.sum_abs == np.abs(solution.coefficients).sum()


@pytest.mark.parametrize(("sigma_rel", "nimg_factor"), [(0.02, 1), (0.15, 1), (0.2, 2)])
def test_solution_and_fit_error_equal_least_squares_on_sampled_densities(
    sigma_rel, nimg_factor
):
    stored = stored_profiles(24, (0.05, 0.10))
    t = 24 * 2.0**23 * nimg_factor
    target = ema.PowerProfile(sigma_rel)
    solution = ema.solve(stored, [(t, target)])[0]
    x, w = np.polynomial.legendre.leggauss(48)
    edges = np.linspace(0, t, 24 * nimg_factor + 1)
    half = np.diff(edges)[:, None] / 2
    tau = (edges[:-1, None] + half + half * x).ravel()
    root = np.sqrt((half * w).ravel())
    basis = np.stack([root * p.density(tau, end) for end, p in stored], axis=1)
    wanted = root * target.density(tau, t)
    norms = np.linalg.norm(basis, axis=0)
    expected = np.linalg.lstsq(basis / norms, wanted, rcond=None)[0] / norms
    expected /= expected.sum()
    np.testing.assert_allclose(solution.coefficients, expected, atol=1e-8)
    error = np.linalg.norm(basis @ expected - wanted) / np.linalg.norm(wanted)
    assert solution.fit_error == pytest.approx(error, rel=1e-6, abs=1e-8)


def plain_solution(stored, target):
    """Coefficients and fit error from solving the normal equations directly."""
    t, gamma = np.array([(t, p.gamma) for t, p in stored]).T
    gram = ema.inner_product(t[:, None], gamma[:, None], t, gamma)
    target = target[0], target[1].gamma
    rhs = ema.inner_product(t, gamma, *target)
    norm2 = ema.inner_product(*target, *target)
    x = np.linalg.solve(gram, rhs)
    x /= x.sum()
    return x, math.sqrt(max(norm2 - 2 * x @ rhs + x @ gram @ x, 0) / norm2)


@pytest.mark.slow
@pytest.mark.parametrize("sigma_rels", TRACKED[:2])
def test_the_solve_fits_no_worse_than_the_plain_normal_equations(sigma_rels):
    stored = stored_profiles(96, sigma_rels)
    targets = at_the_end(stored, (0.02, 0.06, 0.08, 0.15, 0.22))
    for target, solution in zip(targets, ema.solve(stored, targets), strict=True):
        _, fit_error = plain_solution(stored, target)
        # 5e-8: what cancellation leaves of the two errors.
        assert solution.fit_error <= fit_error * (1 + 1e-6) + 5e-8


@pytest.mark.slow
def test_a_numerically_singular_basis_makes_no_coefficients_out_of_noise():
    stored = stored_profiles(64, (0.05, 0.06, 0.08, 0.10, 0.15, 0.20))
    targets = at_the_end(stored, (0.02, 0.04, 0.09, 0.12, 0.22))
    for target, solution in zip(targets, ema.solve(stored, targets), strict=True):
        x, fit_error = plain_solution(stored, target)
        rounding = ema.RMS_ROUNDING * 2.0**-24 * np.linalg.norm(x)
        total = math.hypot(solution.fit_error, solution.rounding_error)
        assert total <= 1.1 * math.hypot(fit_error, rounding) + 5e-8
        # Measured 3.7e3 at .02 and 1e0 to 5e1 above it; plain: 2e5 and 2e2 to 2e3.
        assert solution.sum_abs < (1e4 if target == targets[0] else 100)


@pytest.mark.slow
def test_a_thousand_snapshots_of_four_lengths_are_well_conditioned():
    stored = stored_profiles(256, (0.03, 0.05, 0.10, 0.20))
    targets = at_the_end(stored, (0.015, 0.04, 0.07, 0.13, 0.22))
    for target, solution in zip(targets, ema.solve(stored, targets), strict=True):
        # The plain normal equations are beyond float64: Σ|x| of 1e3 to 5e5.
        short = target[1].sigma_rel < 0.03
        assert solution.sum_abs < (2000 if short else 10)
        assert solution.error < (2e-5 if short else 5e-6)
        assert solution.rounding_error < (2e-5 if short else 6e-8)


@pytest.mark.parametrize(
    "profile",
    [
        ema.TraditionalProfile(5.0),
        ema.TraditionalProfile(20.0, math.inf),
        ema.UniformProfile(60e6, 110e6),
        ema.UniformProfile(100e6),
        ema.TableProfile((0, 70e6, 80e6, 134e6), (1, 1, 3, 0)),
        ema.FunctionProfile("jump", lambda tau: np.where(tau > 77e6, 2.0, 1.0)),
        ema.DecayProfile("cosine"),
        ema.DecayProfile("linear", 0.2),
    ],
    ids=lambda profile: profile.label,
)
def test_the_fit_error_of_any_profile_equals_direct_integration(profile):
    # Uneven in time, with some missing.
    stored = [
        s for i, s in enumerate(stored_profiles(16, (0.05, 0.10))) if i not in (3, 9)
    ]
    t = stored[-1][0]
    (solution,) = ema.solve(stored, [(t, profile)])
    assert solution.coefficients.sum() == pytest.approx(1, abs=1e-12)
    kinks = [60e6, 70e6, 77e6, 80e6, 100e6, 110e6, 5e6 / 0.05, 0.8 * t]
    times = np.union1d([end for end, _ in stored], np.linspace(0, t, 500))
    edges = np.union1d(np.union1d(times, kinks), geometric(2.0**23))
    mass = integrate(lambda tau: profile.density(tau, t), edges)

    def residual(tau):
        fitted = sum(
            x * p.density(tau, end)
            for x, (end, p) in zip(solution.coefficients, stored, strict=True)
        )
        return profile.density(tau, t) / mass - fitted

    error2 = integrate(lambda tau: residual(tau) ** 2, edges)
    norm2 = integrate(lambda tau: (profile.density(tau, t) / mass) ** 2, edges)
    # A constant half-life leaves some weight on what was before the training.
    before = (
        2 ** (-t / 20e6) if profile == ema.TraditionalProfile(20.0, math.inf) else 0
    )
    expected = math.sqrt(error2 / norm2) + before
    assert solution.fit_error == pytest.approx(expected, rel=1e-5)


# Each rate's factor λ of p, the part of the decay that is over.
DECAYS = {"linear": lambda p: 1 - p, "cosine": lambda p: (1 + np.cos(np.pi * p)) / 2}


@pytest.mark.parametrize("fraction", [1.0, 0.2])
@pytest.mark.parametrize("shape", DECAYS)
def test_a_decay_profile_is_what_the_decay_leaves_of_the_same_updates(shape, fraction):
    """Σ λ_i g_i of updates g, against the average of the path of the undecayed sum."""
    steps = 20_000
    updates = np.random.default_rng(0).standard_normal(steps)
    at = np.arange(steps) / steps
    rate = DECAYS[shape](np.clip((at - (1 - fraction)) / fraction, 0, 1))
    decayed = np.sum(rate * updates)
    density = ema.DecayProfile(shape, fraction).density(
        np.arange(1, steps + 1) - 0.5, steps
    )
    assert density.sum() == pytest.approx(1, rel=1e-6)
    assert density @ np.cumsum(updates) == pytest.approx(decayed, abs=0.05)
    assert abs(np.sum(updates) - decayed) > 5


def test_a_linear_decay_is_a_uniform_average():
    stored = stored_profiles(16, (0.05, 0.10))
    t = stored[-1][0]
    decay, uniform = ema.solve(
        stored,
        [(t, ema.DecayProfile("linear", 0.25)), (t, ema.UniformProfile(0.75 * t))],
    )
    np.testing.assert_allclose(decay.coefficients, uniform.coefficients, rtol=1e-6)


@pytest.mark.slow
def test_a_function_equals_its_closed_form_wherever_it_jumps():
    stored = stored_profiles(32, (0.05, 0.10))
    t = stored[-1][0]
    rng = np.random.default_rng(0)
    for _ in range(8):
        low, high = np.sort(rng.uniform(0.05, 1, 2)) * t
        window = ema.UniformProfile(low, high)
        function = ema.FunctionProfile(
            "window",
            lambda tau, low=low, high=high: 1.0 * ((tau > low) & (tau <= high)),
        )
        exact, found = ema.solve(stored, [(t, window), (t, function)])
        assert found.fit_error == pytest.approx(exact.fit_error, abs=2e-3)
        difference = np.abs(found.coefficients - exact.coefficients).sum()
        assert difference < 0.01 * exact.sum_abs


@pytest.mark.parametrize("sigma_rel", [0.25, 0.288, 0.2886])
def test_the_fit_error_of_one_snapshot_is_its_closed_form(sigma_rel):
    gamma, other = P.gamma, ema.PowerProfile(sigma_rel).gamma
    product, norm2, target2 = (
        ema.inner_product(1.0, a, 1.0, b)
        for a, b in ((gamma, other), (gamma, gamma), (other, other))
    )
    expected = math.sqrt((norm2 - 2 * product + target2) / target2)
    (solution,) = ema.solve([(1.0, P)], [(1.0, ema.PowerProfile(sigma_rel))])
    assert solution.fit_error == pytest.approx(expected, abs=1e-12)


def test_the_integration_does_not_miss_short_averages():
    stored = stored_profiles(32, (0.05, 0.10))
    t = stored[-1][0]
    for profile in (ema.TraditionalProfile(1e-3), ema.UniformProfile(0, 1)):
        (solution,) = ema.solve(stored, [(t, profile)])
        assert solution.fit_error > 0.9


@pytest.mark.slow
def test_a_constant_half_life_counts_what_it_leaves_on_the_initial_weights():
    stored = stored_profiles(64, (0.05, 0.10))
    t = stored[-1][0]
    for halflife, least in ((t / 2e6, 0.25), (t / 10e6, 2.0**-10)):
        profile = ema.TraditionalProfile(halflife, math.inf)
        (solution,) = ema.solve(stored, [(t, profile)])
        assert least < solution.fit_error < least + 0.1


@pytest.mark.parametrize(
    "profile",
    [
        ema.TableProfile((0, 200e6), (1, 2)),
        ema.FunctionProfile("line", lambda tau: tau),
        ema.UniformProfile(50e6),
        ema.TraditionalProfile(5.0),
        ema.PowerProfile(0.15),
    ],
    ids=lambda profile: profile.label,
)
def test_a_target_does_not_depend_on_targets_at_other_times(profile):
    stored = stored_profiles(12, (0.05, 0.10))
    early, late = stored[-1][0], 1.25 * stored[-1][0]
    alone = ema.solve(stored, [(early, profile)])[0]
    beside = ema.solve(stored, [(late, profile), (early, profile)])[1]
    np.testing.assert_allclose(beside.coefficients, alone.coefficients, atol=1e-10)
    assert beside.fit_error == pytest.approx(alone.fit_error, rel=1e-9)


def test_only_the_ratios_of_a_table_count_however_large_its_numbers():
    tau = np.array([0.0, 320.0, 640.0])
    small, large = (ema.TableProfile((0, 640), (w / 2, w)) for w in (1.0, 1e308))
    assert small.density(tau, 640.0).tolist() == [0.5, 0.75, 1.0]
    assert large.density(tau, 640.0).tolist() == [0.5, 0.75, 1.0]
    stored = [(t, ema.PowerProfile(s)) for t in (320.0, 640.0) for s in (0.05, 0.1)]
    found = [
        each.fit_error
        for p in (small, large)
        for each in ema.solve(stored, [(640.0, p)])
    ]
    assert found[0] == found[1] < 1


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        (lambda: ema.UniformProfile(5, 5), "contains no images"),
        (lambda: ema.DecayProfile("steep"), "choose linear, cosine or 1-sqrt"),
        (lambda: ema.DecayProfile("linear", 0.0), "above 0 and up to 1"),
        (lambda: ema.TableProfile((0, 1), (0, 0)), "not all zero"),
        (lambda: ema.TableProfile((1, 0), (1, 1)), "and rise"),
        (lambda: ema.TableProfile((1,), (1,)), "two points"),
        (lambda: ema.TraditionalProfile(0.0), "halflife_mimg = 0.0"),
        (lambda: ema.TraditionalProfile(1.0, -1), "rampup = -1"),
    ],
)
def test_a_profile_without_weight_is_refused(profile, message):
    with pytest.raises(ValueError, match=message):
        profile()


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        (ema.UniformProfile(200.0), "starts after the time of the average"),
        (ema.TableProfile((150, 160), (1, 1)), "gives no weight to any image"),
        (
            ema.FunctionProfile("f", lambda tau: -tau),
            "must all be finite and at least 0",
        ),
        (ema.FunctionProfile("f"), "Only the name of the function"),
    ],
)
def test_a_profile_without_weight_before_its_time_is_refused(profile, message):
    with pytest.raises(ValueError, match=message):
        ema.solve([(100.0, P)], [(100.0, profile)])


@pytest.mark.slow
def test_two_tracked_lengths_cover_the_papers_range_of_targets():
    stored = stored_profiles(256, (0.05, 0.10))
    targets = at_the_end(stored, (0.015, 0.02, 0.06, 0.13, 0.25))
    solutions = ema.solve(stored, targets)
    assert max(s.fit_error for s in solutions) < 4e-3
    alternating, inside = solutions[1], solutions[2]
    assert 17 < alternating.sum_abs < 50
    assert inside.sum_abs < 2


@pytest.mark.parametrize("sigma_rel", [0.02, 0.08, 0.20])
def test_rounding_error_is_what_rounding_the_snapshots_leaves(sigma_rel):
    stored = stored_profiles(64, (0.05, 0.10))
    targets = at_the_end(stored, [sigma_rel])
    solution = ema.solve(stored, targets, unit_roundoff=2.0**-11)[0]
    weights = np.random.default_rng(0).standard_normal((len(stored), 4000))
    error = solution.coefficients @ (weights.astype(np.float16) - weights)
    rms = math.sqrt(np.mean(error**2))
    assert solution.rounding_error == pytest.approx(rms, rel=0.05)


def test_mixed_formats_count_each_snapshot_with_its_own_roundoff():
    stored = stored_profiles(4, (0.05, 0.10))
    roundoff = [2.0**-24] * 7 + [2.0**-8]
    short, long = ema.solve(stored, stored[-2:], roundoff)
    assert long.rounding_error == pytest.approx(2.0**16 * short.rounding_error)


@pytest.mark.parametrize(
    ("snapshots", "targets", "message"),
    [
        ([], [(1.0, P)], "at least one snapshot"),
        ([(1.0, P)], [], "at least one target"),
        ([(0.0, P)], [(1.0, P)], "must be above 0"),
        ([(1.0, P), (1.0, P)], [(1.0, P)], "same profile, power-0.100"),
        ([(2.0, P)], [(1.0, P)], "later than the target"),
    ],
)
def test_an_unsolvable_request_is_refused_with_a_sentence(snapshots, targets, message):
    with pytest.raises(ValueError, match=message):
        ema.solve(snapshots, targets)
