"""Clipping, normalization and noise of gradients, each update by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edm_jax.optim import clipping, noise

TREE = {
    "conv": {"kernel": np.array([[[[3.0, 0.1]]]]), "bias": np.array([0.5, -4.0])},
    "out_conv": {"kernel": np.array([[[[2.0, 1.0]]]]), "gain": np.array(0.0)},
}


def clipped(entry, gradients, params=TREE):
    """The output of a link for one gradient, as float64."""
    link = entry.link()
    as_arrays = jax.tree.map(jnp.float32, gradients)
    found, _ = link.update(as_arrays, link.init(params), params)
    return jax.tree.map(lambda x: np.asarray(x, np.float64), found)


def assert_equal(found, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected
    )


def times(tree, factor):
    return jax.tree.map(lambda x: x * factor, tree)


NORM = math.sqrt(9 + 0.01 + 0.25 + 16 + 4 + 1)


def test_by_value_bounds_every_element():
    expected = jax.tree.map(lambda x: np.clip(x, -1.5, 1.5), TREE)
    assert_equal(clipped(clipping.ByValue(1.5), TREE), expected)


def test_by_global_norm_scales_all_alike_and_only_where_it_is_above():
    assert_equal(clipped(clipping.GlobalNorm(2.0), TREE), times(TREE, 2 / NORM))
    assert_equal(clipped(clipping.GlobalNorm(6.0), TREE), TREE)


def test_by_block_scales_each_array_by_its_rms():
    def block(x):
        return x / max(1, math.sqrt(np.mean(x**2)) / 1.0)

    assert_equal(clipped(clipping.BlockRms(1.0), TREE), jax.tree.map(block, TREE))


def test_unit_norm_divides_by_the_norm():
    assert_equal(clipped(clipping.UnitNorm(), TREE), times(TREE, 1 / NORM))


def test_agc_bounds_each_unit_by_its_weights_but_not_the_last_layer_or_gains():
    """|g| = .3 against .01 |w| = .03: a tenth; the second unit's weight counts as eps."""
    weights = TREE | {
        "conv": {"kernel": np.array([[[[3.0, 0.0]]]]), "bias": np.array([3.0, 4.0])}
    }
    gradients = jax.tree.map(np.ones_like, TREE)
    gradients["conv"] = {
        "kernel": np.array([[[[0.3, 0.3]]]]),
        "bias": np.array([0.3, -0.4]),
    }
    found = clipped(clipping.Adaptive(0.01, eps=0.1), gradients, weights)
    np.testing.assert_allclose(
        found["conv"]["kernel"].ravel(), [0.03, 0.001], rtol=1e-6
    )
    np.testing.assert_allclose(found["conv"]["bias"], [0.03, -0.04], rtol=1e-6)
    assert_equal(found["out_conv"], gradients["out_conv"])


NORMS = [1.0, 1.2, 0.9, 1.1, 1.0, 9.0, 1.05, 30.0, 1.0]


def zclip_by_hand(norms, warmup, decay=0.97, threshold=2.5):
    found, mean, variance = [], 0.0, 0.0
    for i, norm in enumerate(norms):
        if i < warmup:
            found.append(norm)
            mean, variance = np.mean(norms[: i + 1]), np.var(norms[: i + 1])
            continue
        z = (norm - mean) / math.sqrt(variance)
        if z > threshold:
            norm = mean + threshold**2 / z * math.sqrt(variance)
        found.append(norm)
        mean = decay * mean + (1 - decay) * norm
        variance = decay * variance + (1 - decay) * (norm - mean) ** 2
    return found


def test_zclip_brings_spikes_down_as_derived_by_hand():
    """(arXiv 2504.02507); 5 updates of warm-up."""
    link, params = clipping.ZClip(warmup=5).link(), {"w": jnp.zeros(2)}
    state, found = link.init(params), []
    for norm in NORMS:
        updates, state = link.update({"w": jnp.asarray([0.6, -0.8]) * norm}, state)
        found.append(float(jnp.linalg.norm(updates["w"])))
        assert float(updates["w"][1] / updates["w"][0]) == pytest.approx(-4 / 3)
    expected = zclip_by_hand(NORMS, 5)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert expected[5] < 1.2 and expected[7] < 1.3
    assert expected[6] == NORMS[6]


def test_zclip_takes_gradients_that_do_not_vary():
    link = clipping.ZClip(warmup=2).link()
    state = link.init({})
    for _ in range(5):
        updates, state = link.update({"w": jnp.ones(2)}, state)
        np.testing.assert_allclose(updates["w"], 1.0, rtol=1e-5)
    updates, state = link.update({"w": jnp.zeros(2)}, state)
    np.testing.assert_array_equal(updates["w"], 0.0)


def test_annealed_noise_has_the_papers_variance_and_follows_its_seed():
    """eta / (1 + t)^gamma (arXiv 1511.06807)."""
    zeros = {
        "w": jnp.zeros(20_000),
        "b": jnp.zeros(20_000),
        "features": {"freqs": jnp.zeros(3)},
    }

    def draws(seed):
        link = noise.Annealed(eta=0.04, gamma=0.5, seed=seed).link()
        state, found = link.init(zeros), []
        for _ in range(4):
            updates, state = link.update(zeros, state)
            found.append(updates)
        return found

    for t, updates in enumerate(found := draws(0)):
        expected = 0.04 / (1 + t) ** 0.5
        assert np.var(updates["w"]) == pytest.approx(expected, rel=0.05)
        assert abs(np.corrcoef(updates["w"], updates["b"])[0, 1]) < 0.05
        np.testing.assert_array_equal(updates["features"]["freqs"], 0)
    assert abs(np.corrcoef(found[0]["w"], found[1]["w"])[0, 1]) < 0.05
    np.testing.assert_array_equal(found[3]["w"], draws(0)[3]["w"])
    assert np.abs(found[3]["w"] - draws(1)[3]["w"]).max() > 0


@pytest.mark.parametrize("name", clipping.CLIPS)
def test_every_clip_takes_a_step(name):
    if name != "none":
        found = clipped(clipping.CLIPS[name](), TREE)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))
