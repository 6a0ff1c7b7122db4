"""The edge of stability against steps on quadratics, which converge or diverge."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optimizer_options import optimizer_config

from edm_jax.optim import chain, stability

CURVATURE = 3.0


def distance(opt, steps=2000):
    """The distance to the minimum of CURVATURE w^2 / 2 after steps from 1, and the state."""
    tx = chain.make_optimizer(opt, 1.0)
    params = {"w": jnp.ones(1)}

    def step(carry, _):
        params, state = carry
        grads = jax.tree.map(lambda w: CURVATURE * w, params)
        updates, state = tx.update(grads, state, params)
        return (jax.tree.map(jnp.add, params, updates), state), None

    (params, state), _ = jax.lax.scan(step, (params, tx.init(params)), length=steps)
    return float(jnp.abs(params["w"][0])), state


@pytest.mark.parametrize(
    "method",
    [
        {"name": "sgd", "momentum": 0.0},
        {"name": "sgd", "momentum": 0.9},
        # With an eps far above the gradients P is constant, as the theory has it.
        {"name": "adam", "eps": 1e9},
        {"name": "adam", "eps": 1e9, "beta1": 0.5},
    ],
)
def test_steps_stay_below_the_edge_and_diverge_above_it(method):
    def at(rate):
        return distance(optimizer_config(method=method, alpha_ref=rate))

    opt = optimizer_config(method=method)
    edge = stability.edge(opt, at(0.1)[1], None)
    scale = 1.0 if edge.scale is None else float(edge.scale["w"][0])
    limit = edge.limit / (CURVATURE / scale)
    assert at(0.97 * limit)[0] < 1 and at(1.03 * limit)[0] > 10


def test_adams_edge_is_38_and_of_other_methods_there_is_none():
    state = distance(optimizer_config(), steps=1)[1]
    assert stability.edge(optimizer_config(), state, None).limit == pytest.approx(38)
    assert stability.edge(optimizer_config(), state, 0.5).limit == pytest.approx(6)
    before = chain.make_optimizer(optimizer_config(), 1.0).init({"w": jnp.ones(1)})
    assert stability.edge(optimizer_config(), before, None) is None
    for name in ("lion", "lamb", "muon"):
        assert (
            stability.edge(optimizer_config(method={"name": name}), state, None) is None
        )
    nesterov = optimizer_config(method={"name": "sgd", "nesterov": True})
    assert stability.edge(nesterov, state, None) is None


def test_the_scale_is_the_root_of_the_unbiased_second_moment():
    """After one step v / (1 - beta2) is the squared gradient."""
    edge = stability.edge(
        optimizer_config(), distance(optimizer_config(), steps=1)[1], None
    )
    np.testing.assert_allclose(edge.scale["w"], CURVATURE, rtol=1e-6)
