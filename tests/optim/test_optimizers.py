"""Every optimizer: two updates by hand on two parameters, and Muon's orthogonality."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optax import contrib
from optimizer_options import optimizer_config

from edm_jax.optim import by_images, chain, links, optimizers
from edm_jax.optim.optimizers import OPTIMIZERS

W = (0.5, -2.0)
GRADIENTS = ((0.3, -0.1), (-0.2, 0.4))
RATE = 0.1


def updates_of(method):
    """The two updates of two weights, before the rate."""
    tx, w = method.rule(), {"kernel": jnp.asarray(W)}
    state, found = tx.init(w), []
    for g in GRADIENTS:
        u, state = tx.update({"kernel": jnp.asarray(g)}, state, w)
        w = {"kernel": w["kernel"] - RATE * u["kernel"]}
        found.append(np.asarray(u["kernel"], np.float64))
    return found


def by_element(update):
    """A rule by hand: update(t, g, w, memory) for each weight, t from 1."""

    def both(_):
        found = [[], []]
        for i, w in enumerate(W):
            memory = {}
            for t in (1, 2):
                u = update(t, GRADIENTS[t - 1][i], w, memory)
                w -= RATE * u
                found[t - 1].append(u)
        return found

    return both


def moments(t, g, memory, beta1=0.9, beta2=0.99):
    m = memory["m"] = beta1 * memory.get("m", 0) + (1 - beta1) * g
    v = memory["v"] = beta2 * memory.get("v", 0) + (1 - beta2) * g * g
    return m / (1 - beta1**t), v / (1 - beta2**t)


@by_element
def adam(t, g, w, memory):
    m, v = moments(t, g, memory)
    return m / (math.sqrt(v) + 1e-8)


@by_element
def adamw(t, g, w, memory):
    m, v = moments(t, g, memory)
    return m / (math.sqrt(v) + 1e-8) + 0.01 * w


@by_element
def nadam(t, g, w, memory):
    _, v = moments(t, g, memory)
    ahead = 0.9 * memory["m"] / (1 - 0.9 ** (t + 1)) + 0.1 * g / (1 - 0.9**t)
    return ahead / (math.sqrt(v) + 1e-8)


@by_element
def amsgrad(t, g, w, memory):
    m, v = moments(t, g, memory)
    memory["max"] = max(memory.get("max", 0), v)
    return m / (math.sqrt(memory["max"]) + 1e-8)


@by_element
def sgd(t, g, w, memory):
    memory["m"] = 0.9 * memory.get("m", 0) + g
    return memory["m"]


@by_element
def nesterov(t, g, w, memory):
    memory["m"] = 0.9 * memory.get("m", 0) + g
    return g + 0.9 * memory["m"]


@by_element
def rmsprop(t, g, w, memory):
    memory["v"] = 0.99 * memory.get("v", 0) + 0.01 * g * g
    return g / (math.sqrt(memory["v"]) + 1e-8)


@by_element
def adagrad(t, g, w, memory):
    memory["sum"] = memory.get("sum", 0.1) + g * g
    return g / math.sqrt(memory["sum"] + 1e-7)


@by_element
def lion(t, g, w, memory):
    m = memory.get("m", 0)
    memory["m"] = 0.99 * m + 0.01 * g
    return math.copysign(1, 0.9 * m + 0.1 * g)


def adafactor(_):
    found, v = [], np.zeros(2)
    for t, g in enumerate(np.asarray(GRADIENTS), 1):
        kept = 1 - t**-0.8
        v = kept * v + (1 - kept) * (g * g + 1e-30)
        u = g / np.sqrt(v)
        found.append(u / max(1, math.sqrt(np.mean(u * u))))
    return found


def lamb(_):
    w, m, v, found = np.asarray(W), np.zeros(2), np.zeros(2), []
    for t, g in enumerate(np.asarray(GRADIENTS), 1):
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        u = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.99**t)) + 1e-6) + 0.1 * w
        u = u * np.linalg.norm(w) / np.linalg.norm(u)
        found.append(u)
        w = w - RATE * u
    return found


def schedule_free(method):
    """Alg. 1 of arXiv 2405.15682, rate 1; from where `updates_of` puts the weights."""
    y, z, v, found = np.asarray(W), np.asarray(W), np.zeros(2), []
    for t, g in enumerate(np.asarray(GRADIENTS), 1):
        v = 0.999 * v + 0.001 * g * g
        x = (y - 0.1 * z) / 0.9
        z = z - g / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        x = (1 - 1 / t) * x + z / t
        after = 0.9 * x + 0.1 * z
        found.append(y - after)
        y = y - RATE * found[-1]
    return found


def prodigy(method):
    """Alg. 4 of arXiv 2306.06101 with a rate of 1 and d from 1e-6."""
    w0 = w = np.asarray(W)
    m, v, s, r, d, found = np.zeros(2), np.zeros(2), np.zeros(2), 0.0, 1e-6, []
    beta3 = math.sqrt(0.999)
    # The estimate without the rate in its denominator, for warm-ups from 0.
    for t, g in enumerate(np.asarray(GRADIENTS), 1):
        rate = d * math.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        m, v = 0.9 * m + 0.1 * d * g, 0.999 * v + 0.001 * (d * g) ** 2
        r = beta3 * r + d / 1e-6 * rate * np.dot(g, w0 - w)
        s = beta3 * s + d * d * g / 1e-6
        d = max(d, r / np.abs(s).sum())
        found.append(rate * m / (np.sqrt(v) + d * 1e-8))
        w = w - RATE * found[-1]
    return found


BY_HAND = {
    "adam": ({}, adam),
    "adamw": ({}, adamw),
    "nadam": ({}, nadam),
    "amsgrad": ({}, amsgrad),
    "sgd": ({}, sgd),
    "sgd-nesterov": ({"nesterov": True}, nesterov),
    "rmsprop": ({}, rmsprop),
    "adagrad": ({}, adagrad),
    "lion": ({}, lion),
    "adafactor": ({}, adafactor),
    "lamb": ({"weight_decay": 0.1}, lamb),
    "schedule_free": ({}, schedule_free),
    "prodigy": ({}, prodigy),
    "optax": ({"call": "adam(b1=0.9, b2=0.99)"}, adam),
    # A vector is no kernel to Muon: Adam has it.
    "muon": ({}, adam),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_two_updates_are_those_derived_by_hand(name):
    settings, by_hand = BY_HAND[name]
    method = OPTIMIZERS[name.partition("-")[0]](**settings)
    np.testing.assert_allclose(
        updates_of(method), by_hand(method), rtol=2e-5, atol=1e-5
    )


def test_every_optimizer_is_derived_by_hand():
    assert {name.partition("-")[0] for name in BY_HAND} == set(OPTIMIZERS)


SHAPES = [(3, 3, 16, 8), (3, 3, 2, 32), (40, 8), (3, 3, 8, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("polish", "least", "most"), [(0, 0.65, 1.25), (3, 0.99, 1.01)]
)
def test_muons_update_of_a_kernel_is_nearly_orthogonal_with_adams_rms(
    shape, polish, least, most
):
    """As Newton-Schulz promises: singular values near 1, to 1e-2 once polished.

    The matrix of a convolution is (k k in, out).
    """
    gradient = jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)
    tx = optimizers.Muon(polish=polish).rule()
    params = {"conv": {"kernel": gradient, "gain": jnp.zeros(())}}
    updates, _ = tx.update(params, tx.init(params), params)
    matrix = np.asarray(updates["conv"]["kernel"], np.float64).reshape(-1, shape[-1])
    values = np.linalg.svd(matrix / (0.2 * math.sqrt(max(matrix.shape))), False)[1]
    assert least < values.min() and values.max() < most
    # Its directions are the gradient's: U V^T of the singular value decomposition.
    u, _, vt = np.linalg.svd(
        np.asarray(gradient, np.float64).reshape(matrix.shape), False
    )
    aligned = (
        np.sum(matrix * (u @ vt)) / np.linalg.norm(matrix) / math.sqrt(len(values))
    )
    assert aligned > 0.97
    if matrix.shape[0] != matrix.shape[1]:
        rms = math.sqrt(np.mean(matrix**2)) * math.sqrt(max(matrix.shape))
        assert rms / math.sqrt(max(matrix.shape)) == pytest.approx(0.2, rel=0.32)


@pytest.mark.slow
def test_muon_leaves_gains_and_biases_to_adam():
    tree = {"layer": {"kernel": jnp.ones((4, 3)), "bias": jnp.full(3, 0.2)}}
    tree["layer"]["gain"] = jnp.asarray(-0.5)
    (muon, adam_rule) = optimizers.Muon().rule(), optimizers.Adam().rule()
    one, _ = muon.update(tree, muon.init(tree), tree)
    other, _ = adam_rule.update(tree, adam_rule.init(tree), tree)
    for name in ("bias", "gain"):
        np.testing.assert_array_equal(one["layer"][name], other["layer"][name])
    assert np.ptp(one["layer"]["kernel"]) < 1e-6  # rank 1: every element the same
    assert abs(float(one["layer"]["kernel"][0, 0]) - 1) > 0.1


def walk(opt, steps=4, params=None, state=None, start=0):
    """Steps of the chain with gradients by step; the weights after each, and the state."""
    tx = chain.make_optimizer(opt, 1e-4)
    params = params or {"layer": {"kernel": jnp.asarray([W, (1.0, 0.3)])}}
    state = state or tx.init(params)
    for step in range(start, start + steps):
        g = jnp.asarray(GRADIENTS) * math.cos(step)
        updates, state = tx.update({"layer": {"kernel": g}}, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    return params, state


@pytest.mark.slow
@pytest.mark.parametrize("method", ["adam", "adamw", "nadam", "amsgrad", "sgd", "lamb"])
def test_a_beta1_that_moves_is_that_of_the_images_past_skipped_updates(method):
    """One cycle over 100 images in batches of 10; with fixed beta1, the method's own rule."""
    same = {"name": "one_cycle", "beta1": (0.9, 0.9), "end_mimg": 1e-4}
    own = {"momentum": 0.9} if method == "sgd" else {"beta1": 0.9}
    chosen = {"name": method, **own}
    moved, _ = walk(optimizer_config(method=chosen, schedule=same))
    own, _ = walk(optimizer_config(method=chosen, schedule=same | {"beta1": ()}))
    for one, other in zip(*map(jax.tree.leaves, (moved, own)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    wide, _ = walk(
        optimizer_config(method=chosen, schedule=same | {"beta1": (0.5, 0.99)})
    )
    assert any(
        np.abs(a - b).max() > 1e-4
        for a, b in zip(*map(jax.tree.leaves, (wide, own)), strict=True)
    )


def test_a_beta1_that_moves_does_not_wait_for_skipped_updates():
    schedule = {"name": "one_cycle", "end_mimg": 1e-4}
    opt = optimizer_config(schedule=schedule, nonfinite="skip")
    tx = chain.make_optimizer(opt, 1e-4)
    params = {"w": jnp.ones(2)}
    state = tx.init(params)
    for step in range(4):
        g = {"w": jnp.full(2, np.nan if step == 2 else 1.0)}
        _, state = tx.update(g, state, params)
    (counted,) = links.links(state, by_images.ByImagesState)
    assert int(counted.steps) == 4


@pytest.mark.parametrize("method", ["schedule_free", "prodigy", "optax"])
def test_a_rule_that_takes_the_rate_has_the_schedules_and_the_warmups(method):
    """With an initial rate of 0 the first step moves nothing; later steps do."""
    opt = optimizer_config(
        method={"name": method}, warmup={"name": "linear", "rampup_mimg": 3e-5}
    )
    start = {"layer": {"kernel": jnp.asarray([W, (1.0, 0.3)])}}
    first, state = walk(opt, 1, start)
    np.testing.assert_allclose(
        first["layer"]["kernel"], start["layer"]["kernel"], rtol=1e-6
    )
    later, _ = walk(opt, 3, first, state, start=1)
    assert np.abs(later["layer"]["kernel"] - first["layer"]["kernel"]).max() > 0


def test_averages_of_a_schedule_free_run_are_of_its_x():
    opt = optimizer_config(method={"name": "schedule_free", "beta1": 0.9})
    params, state = walk(opt, 3)
    (link,) = links.links(state, contrib.ScheduleFreeState)
    x = (params["layer"]["kernel"] - 0.1 * link.z["layer"]["kernel"]) / 0.9
    found = chain.averaged(params, state)["layer"]["kernel"]
    np.testing.assert_allclose(found, x, rtol=1e-5)
    assert np.abs(found - params["layer"]["kernel"]).max() > 1e-3


def test_an_optimizer_of_optax_leaves_frozen_features_alone():
    method = optimizers.OptaxOptimizer("adamw(weight_decay=1.0)")
    tx, tree = method.rule(), {"features": {"freqs": jnp.ones(3)}, "w": jnp.ones(3)}
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, tree), tx.init(tree), tree)
    np.testing.assert_array_equal(updates["features"]["freqs"], 0)
    np.testing.assert_allclose(updates["w"], 1.0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"forced_weight_norm": True, "method": {"name": "schedule_free"}},
            "recovers its averages from the weights",
        ),
        (
            {
                "forced_weight_norm": True,
                "method": {"name": "optax", "call": "contrib_free()"},
            },
            "Optax has no",
        ),
        (
            {"schedule": {"name": "one_cycle"}, "method": {"name": "adagrad"}},
            "beta1 is fixed",
        ),
        (
            {"schedule": {"name": "plateau"}, "method": {"name": "prodigy"}},
            "a plateau cannot scale it",
        ),
        (
            {"penalty": {"name": "weight_decay"}, "method": {"name": "prodigy"}},
            "own weight_decay",
        ),
        (
            {"penalty": {"name": "weight_decay"}, "method": {"name": "adamw"}},
            "set penalty.name=none",
        ),
        ({"method": {"name": "optax", "call": "lbfgs()"}}, "does not make an"),
        (
            {"method": {"name": "optax", "call": "adam(learning_rate=1.0)"}},
            "with optimizer.alpha_ref instead",
        ),
        ({"method": {"name": "optax", "call": "adam(beta=1.0)"}}, "no argument 'beta'"),
        ({"method": {"name": "adm"}}, "Did you mean 'adam'"),
    ],
)
def test_an_invalid_combination_is_refused_with_the_reason(changes, said):
    with pytest.raises(ValueError, match=said) as caught:
        optimizer_config(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    "opt",
    [
        {"schedule": {"name": "one_cycle", "end_mimg": 1e-4}},
        {"method": {"name": "schedule_free"}},
        {"method": {"name": "muon"}},
        {"clip": {"name": "zclip", "warmup": 2}},
        {"noise": {"name": "annealed"}},
    ],
)
def test_a_chain_resumed_at_any_image_takes_the_same_steps(opt):
    opt = optimizer_config(**opt)
    whole, _ = walk(opt, 6)
    for resumed_at in (1, 3, 5):
        params, state = walk(opt, resumed_at)
        params, state = jax.tree.map(
            lambda x: jnp.asarray(np.asarray(x)), (params, state)
        )
        rest, _ = walk(opt, 6 - resumed_at, params, state, start=resumed_at)
        np.testing.assert_array_equal(rest["layer"]["kernel"], whole["layer"]["kernel"])


def test_the_paper_chains_state_has_the_layout_it_had():
    """Links that are off leave no trace, so that old checkpoints can be read."""
    tx = chain.make_optimizer(optimizer_config(), 1e-4)
    state = tx.init({"w": jnp.ones(2)})
    kinds = [type(each).__name__ for each in state]
    assert kinds == ["EmptyState", "GuardState", "ScaleByScheduleState"]
    assert type(state[1].inner).__name__ == "ScaleByAdamState"
