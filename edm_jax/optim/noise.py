"""Noise on the gradients."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from edm_jax.fields import Index, NotNegative, Positive, Settings
from edm_jax.models.unet import Params
from edm_jax.optim import leaves
from edm_jax.optim.links import NoLink


class NoiseState(NamedTuple):
    """Updates seen."""

    updates: jax.Array


@dataclasses.dataclass(frozen=True)
class Annealed(Settings):
    """g + n, n ~ N(0, eta / (1 + t)^gamma), t in updates (arXiv 1511.06807, Eq. 1).

    n depends only on the seed and t, so that a resumed run draws the same noise.
    """

    eta: Positive = 0.01
    gamma: NotNegative = 0.55
    seed: Index = 0

    def link(self) -> optax.GradientTransformation | None:
        """Adds the noise; frozen features get none."""

        def init(params: Params) -> NoiseState:
            del params
            return NoiseState(jnp.zeros((), jnp.int32))

        def update(updates: Params, state: Any, params: Params | None = None):
            del params
            key = jax.random.fold_in(jax.random.PRNGKey(self.seed), state.updates)
            std = jnp.sqrt(self.eta / (1.0 + state.updates) ** self.gamma)
            trained = jax.tree.leaves(
                leaves.of_kinds(updates, set(leaves.KINDS) - {"frozen"})
            )
            flat, form = jax.tree.flatten(updates)
            noisy = [
                g
                + std * jax.random.normal(jax.random.fold_in(key, i), g.shape, g.dtype)
                if moves
                else g
                for i, (g, moves) in enumerate(zip(flat, trained, strict=True))
            ]
            return jax.tree.unflatten(form, noisy), NoiseState(state.updates + 1)

        return optax.GradientTransformation(init, update)


NOISES = {"none": NoLink, "annealed": Annealed}
