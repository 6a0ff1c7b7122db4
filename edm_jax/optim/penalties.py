"""Penalties on the size of the weights.

Each one leaves out gains, biases, norms and embeddings unless its field of that name is
True. Frozen Fourier features are never penalized.
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

    decoupled: ClassVar[bool]  # added after the update rule rather than before it


@dataclasses.dataclass(frozen=True)
class _Masked(Settings):
    decoupled: ClassVar[bool] = False
    strength: Positive = 0.01
    gains: bool = False
    biases: bool = False
    norms: bool = False
    embeddings: bool = False

    def mask(self, params: Params) -> Params:
        """A tree of booleans: True for leaves that are penalized."""
        optional = ("gains", "biases", "norms", "embeddings")
        chosen = [kind for kind in optional if getattr(self, kind)]
        return leaves.of_kinds(params, ["weights", *chosen])


@dataclasses.dataclass(frozen=True)
class WeightDecay(_Masked):
    """u + strength w after the update rule: decoupled, w -= rate strength w.

    arXiv 1711.05101, Alg. 2. The rate is the full rate, as in torch's AdamW and Optax;
    the paper multiplies by the schedule's factor only.
    """

    decoupled: ClassVar[bool] = True

    def link(self) -> optax.GradientTransformation | None:
        """Adds to the updates."""
        return optax.add_decayed_weights(self.strength, self.mask)


@dataclasses.dataclass(frozen=True)
class L2(_Masked):
    """g + strength w before the update rule: the gradient of strength |w|^2 / 2.

    Adam divides it by the root of the second moment, like the rest of the gradient.
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
                raise ValueError("An L1 penalty needs the weights: pass params.")
            return g + self.strength * jnp.sign(w)

        return optax.masked(optax.stateless_with_tree_map(add), self.mask)


PENALTIES = {"none": NoLink, "weight_decay": WeightDecay, "l1": L1, "l2": L2}


def decay(strength: float) -> list[optax.GradientTransformation]:
    """Decoupled weight decay for a method with its own field; no link for 0."""
    return [optax.add_decayed_weights(strength, WeightDecay().mask)] * bool(strength)
