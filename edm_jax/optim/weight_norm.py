"""Forced weight normalization, the last link of a chain (App. B.5)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from edm_jax.models import layers
from edm_jax.models.unet import Params
from edm_jax.optim.links import links


class ForcedWeightNormState(NamedTuple):
    """The divisor of each kernel's output units, (1, ..., out); 1 for other leaves."""

    scale: Params


def forced_weight_norm() -> optax.GradientTransformation:
    """Scales every kernel back to RMS 1 per output unit after the update (Eq. 66).

    The last link of a chain: replaces the update u of weights w by normalize(w + u) - w.
    Alg. 1 normalizes before each gradient instead; if the initial weights are projected
    once (`project`), both take the same gradients at the same weights. Averages are taken
    of the weights as Adam left them, before the projection: see `unprojected`. Gains and
    frozen Fourier features do not change.
    """

    def init(params: Params) -> ForcedWeightNormState:
        return ForcedWeightNormState(_scales(params, jnp.ones_like))

    def update(updates: Params, state: Any, params: Params = None):
        del state
        if params is None:
            raise ValueError("forced_weight_norm needs the weights: pass params.")
        adam = optax.apply_updates(params, updates)
        scale = _scales(adam, lambda magnitude: magnitude)
        updates = jax.tree.map(lambda w, s, p: w / s - p, adam, scale, params)
        return updates, ForcedWeightNormState(scale)

    return optax.GradientTransformation(init, update)


def project(params: Params) -> Params:
    """Scales every kernel to RMS 1 per output unit (Eq. 66); other leaves do not change."""
    return jax.tree.map(
        jnp.divide, params, _scales(params, lambda magnitude: magnitude)
    )


def unprojected(params: Params, opt_state: Any) -> Params:
    """The weights as Adam left them, before `forced_weight_norm`; the EMA uses these."""
    for link in links(opt_state, ForcedWeightNormState):
        params = jax.tree.map(jnp.multiply, params, link.scale)
    return params


def _scales(params: Params, of_magnitude: Callable[[jax.Array], jax.Array]) -> Params:
    def scale(path: tuple[Any, ...], w: jax.Array) -> jax.Array:
        is_kernel = path[-1].key == "kernel"
        return of_magnitude(layers.unit_magnitude(w)) if is_kernel else jnp.ones(())

    return jax.tree_util.tree_map_with_path(scale, params)
