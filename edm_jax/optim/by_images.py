"""Update rules whose settings change with the images seen."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from edm_jax.models.unet import Params


class ByImagesState(NamedTuple):
    """Steps taken, and the state of the rule."""

    steps: jax.Array
    inner: Any


def by_images(
    make: Callable[[jax.Array], optax.GradientTransformation],
) -> optax.GradientTransformation:
    """Applies the rule `make(count)` at step `count`.

    Unlike `optax.inject_hyperparams`, it counts every step, even when a guard inside
    skips the update, so the settings remain functions of the images.

    Args:
        make: maps the number of steps taken to a rule, whose state must always have the
            same layout.
    """

    def init(params: Params) -> ByImagesState:
        count = jnp.zeros((), jnp.int32)
        return ByImagesState(count, make(count).init(params))

    def update(updates: Params, state: Any, params: Params | None = None):
        updates, inner = make(state.steps).update(updates, state.inner, params)
        return updates, ByImagesState(state.steps + 1, inner)

    return optax.GradientTransformation(init, update)
