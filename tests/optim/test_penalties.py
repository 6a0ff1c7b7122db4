"""Penalties by hand through the whole chain: their size, their place and their leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optimizer_options import optimizer_config

from edm_jax.optim import chain, leaves, penalties

PARAMS = {
    "conv": {"kernel": jnp.asarray([[2.0, -1.0]]), "bias": jnp.asarray([3.0, 1.0])},
    "norm0": {"scale": jnp.asarray([1.0, 1.0]), "bias": jnp.asarray([2.0, 2.0])},
    "emb_linear": {"gain": jnp.asarray(4.0)},
    "embedding": {
        "label": {"kernel": jnp.asarray([[5.0]])},
        "noise_features": {"freqs": jnp.asarray([7.0])},
    },
}
G, RATE, STRENGTH = 0.5, 0.1, 0.2


def config(penalty, **changes):
    rule = {"name": "sgd", "momentum": 0.0}
    settings = {"batch_size": 1, "method": rule, "loss_scale": 4.0, "penalty": penalty}
    return optimizer_config(**settings | changes)


def change(opt, gradient=G):
    """The change of the parameters in one step."""
    tx = chain.make_optimizer(opt, 1.0)
    grads = jax.tree.map(lambda w: jnp.full_like(w, 4.0 * gradient), PARAMS)
    updates, _ = tx.update(grads, tx.init(PARAMS), PARAMS)
    return updates


OF_WEIGHTS = {  # what each adds to the gradient of SGD
    "weight_decay": lambda w: STRENGTH * w,
    "l2": lambda w: STRENGTH * w,
    "l1": lambda w: STRENGTH * np.sign(w),
}


@pytest.mark.parametrize("name", OF_WEIGHTS)
@pytest.mark.parametrize("also", [(), ("biases",), ("gains", "norms"), ("embeddings",)])
def test_a_penalty_adds_its_gradient_to_weights_and_to_the_kinds_that_are_chosen(
    name, also
):
    penalty = {"name": name, "strength": STRENGTH, **dict.fromkeys(also, True)}
    found = change(config(penalty))
    penalized = {"weights", *also}

    def check(path, w, update):
        expected = G + (
            OF_WEIGHTS[name](np.asarray(w)) if leaves.kind(path) in penalized else 0
        )
        np.testing.assert_allclose(update, -RATE * expected, rtol=1e-6)

    jax.tree_util.tree_map_with_path(check, PARAMS, found)


def test_the_kinds_of_leaves():
    kinds = jax.tree_util.tree_map_with_path(lambda path, _: leaves.kind(path), PARAMS)
    assert kinds == {
        "conv": {"kernel": "weights", "bias": "biases"},
        "norm0": {"scale": "norms", "bias": "norms"},
        "emb_linear": {"gain": "gains"},
        "embedding": {
            "label": {"kernel": "embeddings"},
            "noise_features": {"freqs": "frozen"},
        },
    }


def test_decoupled_decay_is_behind_the_rule_and_l2_before_it():
    """Lion's sign reveals the place: its update has size 1 for any gradient."""
    lion = {"name": "lion"}
    found = change(config({"name": "weight_decay", "strength": STRENGTH}, method=lion))
    expected = -RATE * (1 + STRENGTH * np.asarray([[2.0, -1.0]]))
    np.testing.assert_allclose(found["conv"]["kernel"], expected, rtol=1e-6)
    found = change(config({"name": "l2", "strength": 1.0}, method=lion))
    np.testing.assert_allclose(found["conv"]["kernel"], -RATE * np.asarray([[1, -1.0]]))


def test_a_penalty_is_not_clipped_and_the_gradient_is():
    opt = config(
        {"name": "l2", "strength": STRENGTH}, clip={"name": "value", "limit": 0.1}
    )
    found = change(opt)["conv"]["kernel"]
    expected = -RATE * (0.1 + STRENGTH * np.asarray([[2.0, -1.0]]))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_loss_scale_is_divided_out_before_the_gradient_is_clipped():
    opt = config({"name": "none"}, clip={"name": "value", "limit": 0.6})
    np.testing.assert_allclose(change(opt)["conv"]["bias"], -RATE * G, rtol=1e-6)


def test_under_forced_weight_normalization_decay_only_lengthens_the_step():
    """normalize(w - a (u + s w)) = normalize(w - a / (1 - a s) u): as the note says."""
    chosen = {"name": "weight_decay", "strength": STRENGTH}
    decayed = config(chosen, forced_weight_norm=True)
    longer = config(
        {"name": "none"},
        forced_weight_norm=True,
        alpha_ref=RATE / (1 - RATE * STRENGTH),
    )
    one, other = (change(opt)["conv"]["kernel"] for opt in (decayed, longer))
    np.testing.assert_allclose(one, other, atol=5e-6)
    assert "forced weight normalization" in chain.note(decayed)
    assert chain.note(longer) == chain.note(config(chosen)) == ""


def test_every_penalty_is_checked_above():
    assert {"none", *OF_WEIGHTS} == set(penalties.PENALTIES)
