"""Counts gradient elements that are not finite, and keeps them out of the moments."""

import dataclasses
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from edm_jax.fields import Settings
from edm_jax.models.unet import Params
from edm_jax.optim.links import links


class GuardState(NamedTuple):
    """Running count of elements that were not finite, and the guarded state."""

    total: jax.Array
    inner: Any


class Policy(Protocol):
    """An entry of POLICIES.

    The state of its guard is a `GuardState`, so that a run can resume with another policy.
    """

    done: ClassVar[str]  # the action that the alert reports
    stops: ClassVar[bool]  # whether the run ends

    def guard(self, rule: optax.GradientTransformation) -> optax.GradientTransformation:
        """Wraps the update rule: counts non-finite elements and keeps them out of it."""
        ...


@dataclasses.dataclass(frozen=True)
class Zero(Settings):
    """Replaces gradient elements that are not finite with 0, as the original code does."""

    done: ClassVar[str] = "zeroed"
    stops: ClassVar[bool] = False
    skips: ClassVar[bool] = False  # the whole update

    def guard(self, rule: optax.GradientTransformation) -> optax.GradientTransformation:
        """Wraps the rule, so that it sees finite elements only."""
        return guard_nonfinite(rule, self.skips)


@dataclasses.dataclass(frozen=True)
class Skip(Zero):
    """Skips the whole update and keeps the moments."""

    done: ClassVar[str] = "update skipped"
    skips: ClassVar[bool] = True


@dataclasses.dataclass(frozen=True)
class Stop(Skip):
    """Skips the update and ends the run."""

    done: ClassVar[str] = "stopping"
    stops: ClassVar[bool] = True


POLICIES = {"zero": Zero, "skip": Skip, "stop": Stop}


def guard_nonfinite(
    inner: optax.GradientTransformation, skip: bool
) -> optax.GradientTransformation:
    """Wraps `inner`: counts elements that are not finite, and passes 0 in their place.

    It wraps the update rule only: the learning rate after it counts images, not updates.

    Args:
        inner: the update rule, such as Adam.
        skip: if any element is not finite, make the update 0 and keep the state of
            `inner`. The state has the same layout either way.
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
    """(leaves,) int32: the number of elements of each leaf that are not finite."""
    bad = [jnp.sum(~jnp.isfinite(x), dtype=jnp.int32) for x in jax.tree.leaves(tree)]
    return jnp.stack(bad)


def nonfinite_count(opt_state: Any) -> jax.Array:
    """Gradient elements that were not finite so far."""
    totals = [link.total for link in links(opt_state, GuardState)]
    return sum(totals, jnp.zeros((), jnp.int32))
