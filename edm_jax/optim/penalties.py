"""Penalties on the size of the weights.

Each leaves out gains, biases, norms and embeddings unless its field of that name is
True, and always the frozen Fourier features.
"""

import dataclasses
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax

from edm_jax.fields import Positive, Settings
from edm_jax.models.unet import Params
from edm_jax.optim import leaves
from edm_jax.optim.links import Link, NoLink


@runtime_checkable
class Penalty(Link, Protocol):
    """An entry of PENALTIES."""

    decoupled: ClassVar[bool]  # added behind the update rule rather than before it


@dataclasses.dataclass(frozen=True)
class _Masked(Settings):
    decoupled: ClassVar[bool] = False
    strength: Positive = 0.01
    gains: bool = False
    biases: bool = False
    norms: bool = False
    embeddings: bool = False

    def mask(self, params: Params) -> Params:
        """Which leaves are penalized."""
        optional = ("gains", "biases", "norms", "embeddings")
        chosen = [kind for kind in optional if getattr(self, kind)]
        return leaves.of_kinds(params, ["weights", *chosen])


@dataclasses.dataclass(frozen=True)
class WeightDecay(_Masked):
    """u + strength w behind the update rule: decoupled, w -= rate strength w.

    arXiv 1711.05101, Alg. 2. The rate is the whole one, as in torch's AdamW and Optax;
    the paper multiplies by the schedule's factor alone.
    """

    decoupled: ClassVar[bool] = True

    def link(self) -> optax.GradientTransformation | None:
        """Adds to the updates."""
        return optax.add_decayed_weights(self.strength, self.mask)


@dataclasses.dataclass(frozen=True)
class L2(_Masked):
    """g + strength w before the update rule: the gradient of strength |w|^2 / 2.

    Adam divides it by the root of the second moment with the rest of the gradient.
    """

    def link(self) -> optax.GradientTransformation | None:
        """Adds to the gradients."""
        return optax.add_decayed_weights(self.strength, self.mask)


@dataclasses.dataclass(frozen=True)
class L1(_Masked):
    """g + strength sign(w) before the update rule: the gradient of strength |w|_1."""

    def link(self) -> optax.GradientTransformation | None:
        """Adds to the gradients."""

        def add(g: Any, w: Any) -> jax.Array:
            if w is None:
                raise ValueError("An L1 penalty needs the weights: give it the params.")
            return g + self.strength * jnp.sign(w)

        return optax.masked(optax.stateless_with_tree_map(add), self.mask)


PENALTIES = {"none": NoLink, "weight_decay": WeightDecay, "l1": L1, "l2": L2}


def decay(strength: float) -> list[optax.GradientTransformation]:
    """The decoupled weight decay of a method that has its own; no link for 0."""
    return [optax.add_decayed_weights(strength, WeightDecay().mask)] * bool(strength)
