"""Profiles by name: their words, their ages, and averages of all weights of a run."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from edm_jax import ema
from edm_jax.ema import grammar

BATCH, STEPS = 64, 1280
T = BATCH * STEPS


def recorded_run(units=20):
    """The weights after every step of SGD with momentum on a noisy quadratic."""
    rng = np.random.default_rng(0)
    curvature = np.geomspace(1, 30, units)
    target, weights = rng.standard_normal(units), np.zeros(units)
    momentum, path = np.zeros(units), []
    for _ in range(STEPS):
        noise = rng.standard_normal(units)
        momentum = 0.9 * momentum + curvature * (weights - target + noise)
        weights = weights - 0.002 * momentum
        path.append(weights)
    return np.array(path)


def stored_averages(path, every):
    averages, trees = {s: np.zeros(path.shape[1]) for s in (0.05, 0.1)}, []
    for i, weights in enumerate(path, 1):
        for s, average in averages.items():
            new = ema.power_weight(BATCH, i * BATCH, ema.gamma_from_sigma_rel(s))
            average += new * (weights - average)
            if i % every == 0:
                trees.append((i * BATCH, s, {"w": average.copy()}))
    return trees


def power(sigma_rel):
    return lambda tau: (tau / T) ** (ema.gamma_from_sigma_rel(sigma_rel) + 1)


def ramped(tau, halflife=4000.0, rampup=0.05):
    """What is kept of the images up to τ: a power of time, then an exponential."""
    knee = halflife / rampup
    early = (np.minimum(tau, knee) / knee) ** (math.log(2) / rampup)
    return early * 0.5 ** ((T - np.maximum(tau, knee)) / halflife)


def window(start, stop):
    return lambda tau: np.clip((tau - start) / (stop - start), 0, 1)


def decay(rate, fraction):
    """The rate's fall up to τ: 1 − λ, so that steps weigh λ_i − λ_(i+1)."""
    return lambda tau: 1 - rate(np.clip((tau / T - 1) / fraction + 1, 0, 1))


# The share of each average that lies on the weights up to τ, by how commands name it.
SHARES = {
    "power:0.08": power(0.08),
    "halflife:0.004": ramped,
    "exponential:0.004,inf": lambda tau: 0.5 ** ((T - tau) / 4000),
    f"uniform:{T // 4}-{3 * T // 4}": window(T / 4, 3 * T / 4),
    f"swa:{T // 4}": window(T / 4, T),
    f"lawa:{T // 10}": window(0.9 * T, T),
    "decay:cosine:0.5": decay(lambda p: (1 + np.cos(np.pi * p)) / 2, 0.5),
    "decay:linear:.5": decay(lambda p: 1 - p, 0.5),
    "decay:wsd": decay(lambda p: 1 - p, 0.2),
    "decay:1-sqrt:0.8": decay(
        lambda p: 1 - np.where(p < 1 / 64, 8 * p, np.sqrt(p)), 0.8
    ),
    "0.3*power:.15+.7*power:.04": lambda tau: (
        0.3 * power(0.15)(tau) + 0.7 * power(0.04)(tau)
    ),
    "4*power:.06-2*power:.1": lambda tau: 2 * power(0.06)(tau) - power(0.1)(tau),
    f"2*lawa:{T // 10}-decay:cosine:0.5": lambda tau: (
        2 * window(0.9 * T, T)(tau)
        - decay(lambda p: (1 + np.cos(np.pi * p)) / 2, 0.5)(tau)
    ),
}


@pytest.fixture(scope="module")
def run():
    path = recorded_run()
    targets = [ema.parse_profile(words) for words in SHARES]
    return path, ema.reconstruct_trees(stored_averages(path, 4), targets)


@pytest.mark.parametrize("words", SHARES)
def test_a_profile_is_the_average_of_all_weights_of_a_run(run, words):
    path, made = run
    share = SHARES[words](BATCH * np.arange(STEPS + 1.0))
    expected = np.diff(share) @ path / (share[-1] - share[0])
    found = made[ema.parse_profile(words)].params["w"]
    assert found.dtype == np.float64
    assert np.linalg.norm(found - expected) < 1e-6 * np.linalg.norm(expected)


@pytest.mark.parametrize("words", SHARES)
def test_the_mean_age_and_width_are_those_of_the_shares(words):
    edges = np.linspace(0, T, 400_001)
    share = SHARES[words](edges)
    mass, age = np.diff(share), 1 - (edges[1:] + edges[:-1]) / (2 * T)
    mean = mass @ age / mass.sum()
    variance = mass @ (age - mean) ** 2 / mass.sum()
    _, found, width = ema.parse_profile(words).moments(T)
    assert found == pytest.approx(mean, rel=1e-4)
    if variance > 0:
        assert width == pytest.approx(math.sqrt(variance), rel=1e-3)
    else:
        assert math.isnan(width)


def test_a_sum_of_stored_averages_is_exactly_their_sum():
    stored = [(t, ema.PowerProfile(s)) for t in (50.0, 100.0) for s in (0.05, 0.1)]
    (found,) = ema.solve(stored, [(100.0, ema.parse_profile("3*power:.05-power:.1"))])
    np.testing.assert_allclose(found.coefficients, [0, 0, 1.5, -0.5], atol=1e-15)
    assert found.fit_error < 1e-14


def test_a_sum_has_the_errors_of_its_own_residual():
    stored = [
        ((i + 1) * 8.0, ema.PowerProfile(s)) for i in range(8) for s in (0.05, 0.1)
    ]
    parts = [ema.TableProfile((0, 64), (1, 3)), ema.UniformProfile(16)]
    mixed = ema.MixedProfile((3.0, -1.0), tuple(parts))
    (alone,) = ema.solve(stored, [(64.0, mixed)])
    # Beside others, and as one function: the same average.
    beside = ema.solve(stored, [(64.0, p) for p in (*parts, mixed)])
    x = 1.5 * beside[0].coefficients - 0.5 * beside[1].coefficients
    np.testing.assert_allclose(alone.coefficients, x, atol=1e-10)
    tau = (np.arange(64_000) + 0.5) / 1000
    wanted = 1.5 * (1 + tau / 32) / 128 - 0.5 * (tau > 16) / 48
    np.testing.assert_allclose(mixed.density(tau, 64.0), wanted, atol=1e-12)
    made = sum(c * p.density(tau, t) for c, (t, p) in zip(x, stored, strict=True))
    error = np.linalg.norm(wanted - made) / np.linalg.norm(wanted)
    assert alone.fit_error == pytest.approx(error, rel=1e-4)


@pytest.mark.parametrize("words", SHARES)
def test_files_keep_a_profile(words):
    profile = ema.parse_profile(words)
    fields = json.loads(json.dumps(grammar.to_fields(profile)))
    assert grammar.from_fields(fields) == profile
    assert set(profile.label) < set(
        "abcdefghijklmnopqrstuvwxyz0123456789.-+"
    )  # a file's name


@pytest.mark.parametrize(
    ("words", "same"),
    [
        ("2*power:0.1", "power:0.1"),
        ("swa:100", "uniform:100"),
        (" .5*power:0.1 + 0.5*uniform:1e2-2e2", "power:.1+uniform:100-200"),
        ("2e-1*power:.1-1e-1*power:.2", "2*power:.1-power:.2"),
        ("-1*power:.2+2*power:.1", "-power:.2+2*power:.1"),
    ],
)
def test_words_that_mean_the_same(words, same):
    assert ema.parse_profile(words) == ema.parse_profile(same)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "write power:SIGMA_REL, halflife"),
        ("0.1", "write power:SIGMA_REL"),
        ("powr:0.1", "Did you mean 'power'"),
        ("2*lava:4", "or a sum such as"),
        ("power:0.1+", "write power:SIGMA_REL"),
        ("power:0.1*2", "write power:SIGMA_REL"),
        ("power:.1-power:.2", "add up to 0, but only a positive sum"),
        ("power:.1-2*power:.2", "add up to -1"),
        ("lawa:0", "choose a finite number above 0"),
        ("lawa:1e999", "choose a finite number above 0"),
        ("decay:1-sqrt:2", "above 0 and up to 1"),
        ("1e999*power:.1+power:.2", "only a positive sum"),
    ],
)
def test_words_that_mean_nothing_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        ema.parse_profile(words)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weights": [1], "parts": 3}, "parts of its mixed profile"),
        ({"weights": [1], "parts": [3]}, "parts of its mixed profile"),
        ({"weights": [1], "parts": []}, "one weight for each"),
        ({"weights": ["1"], "parts": []}, "weights of its mixed profile"),
        ({"weights": [1], "parts": [{"kind": "mixed"}]}, "holds another"),
        ({"weights": [1], "parts": [{"kind": "none"}]}, "not one of power"),
    ],
)
def test_a_sum_in_a_damaged_file_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        grammar.from_fields({"kind": "mixed"} | fields)


def test_sums_whose_weights_differ_little_have_names_of_their_own():
    labels = {
        ema.parse_profile(f"{w}*power:.1+power:.2").label for w in (1, 1.00001, 1.00002)
    }
    assert len(labels) == 3
    many = "+".join(f"{i}*power:.{i}1" for i in (1, 2)) + "+decay:cosine:.123456" * 9
    assert len(ema.parse_profile(many).label) < 130


def test_the_page_lists_every_form():
    page = (Path(__file__).parents[2] / "docs" / "ema.md").read_text(encoding="utf-8")
    for each in ema.PROFILES.values():
        assert f"| `{each.form.replace('|', chr(92) + '|')}` |" in page
