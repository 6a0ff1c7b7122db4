"""Gradients that are not finite: counted, and kept away from the moments."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from edm_jax.models.unet import Params
from edm_jax.optim.links import links


class GuardState(NamedTuple):
    """Running count of elements that were not finite, and the guarded state."""

    total: jax.Array
    inner: Any


def guard_nonfinite(
    inner: optax.GradientTransformation, skip: bool
) -> optax.GradientTransformation:
    """`inner`, given 0 for elements that are not finite, which are counted.

    skip: where there are any, the update is 0 and the state of `inner` is kept. Wraps
    Adam alone: the learning rate behind it counts images, not updates. The state has
    the same layout either way, so that a run can go on with the other.
    """

    def init(params: Params) -> GuardState:
        return GuardState(jnp.zeros((), jnp.int32), inner.init(params))

    def update(updates: Params, state: Any, params: Params = None):
        bad = jnp.sum(nonfinite_by_leaf(updates))
        updates = jax.tree.map(lambda g: jnp.where(jnp.isfinite(g), g, 0), updates)
        updates, new = inner.update(updates, state.inner, params)
        if skip:
            updates = jax.tree.map(lambda u: jnp.where(bad == 0, u, 0), updates)
            new = jax.tree.map(
                lambda after, before: jnp.where(bad == 0, after, before),
                new,
                state.inner,
            )
        return updates, GuardState(state.total + bad, new)

    return optax.GradientTransformation(init, update)


def nonfinite_by_leaf(tree: Params) -> jax.Array:
    """(leaves,) int32: how many elements of each are not finite."""
    bad = [jnp.sum(~jnp.isfinite(x), dtype=jnp.int32) for x in jax.tree.leaves(tree)]
    return jnp.stack(bad)


def nonfinite_count(opt_state: Any) -> jax.Array:
    """Gradient elements that were not finite so far."""
    totals = [link.total for link in links(opt_state, GuardState)]
    return sum(totals, jnp.zeros((), jnp.int32))
